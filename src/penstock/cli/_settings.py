"""Resolve one section of settings for a command that isn't a whole build."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from penstock import settings

T = TypeVar("T")


def one(section: str, cls: type[T], flags: Mapping[str, Mapping[str, Any]], config: str | None) -> T:
    """Return the section's settings from flags, environment, file and defaults."""
    file = Path(config) if config else settings.find_file(Path.cwd())
    table = settings.read_file(file) if file else {}
    return settings.resolve(section, flags.get(section, {}), os.environ, table, cls)


@contextlib.contextmanager
def checking(flags: Mapping[str, Mapping[str, Any]], config: str | None) -> Iterator[None]:
    """Hold every model that is opened inside the block to the limits of the section ``check``."""
    from penstock import precheck

    with precheck.limits(one("check", precheck.CheckSettings, flags, config)):
        yield
