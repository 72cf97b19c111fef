"""Import libraries that are slow to import, and that most commands never use, when something of them is used.

onnx-ir imports sympy to compute with symbolic dimensions, which Penstock does by itself: that is a third of the time
that a small command takes, and a worker's process. Only these do it, whose processes are Penstock's own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from types import ModuleType

NAMES = ("sympy", "onnx_ir._symbolic_shapes")


class Deferred:
    """A finder of modules that hands out these as modules that are executed at their first use."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find one of the names."""
        if name not in NAMES:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = LazyLoader(spec.loader)
        return spec


def install() -> None:
    """Defer them in this process, once."""
    if not any(isinstance(finder, Deferred) for finder in sys.meta_path):
        sys.meta_path.insert(0, Deferred())
