"""Resolve one section of settings for a command that isn't a whole build."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from penstock import settings

T = TypeVar("T")


def one(section: str, cls: type[T], flags: Mapping[str, Mapping[str, Any]], config: str | None) -> T:
    """Return the section's settings from flags, environment, file and defaults."""
    file = Path(config) if config else settings.find_file(Path.cwd())
    table = settings.read_file(file) if file else {}
    return settings.resolve(section, flags.get(section, {}), os.environ, table, cls)
