"""Deployment targets: one file each, found by the registry; see :class:`Target`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from penstock.jsonable import Json


class Target(Protocol):
    """A kind of machine that a deployment is shipped to. `penstock list targets` shows it."""

    def available(self) -> str:
        """Return "" when deployments can be made for it here, else why not and what to install."""

    def facts(self) -> Mapping[str, Json]:
        """Return what is known of it: architecture, runtime, limits."""
