"""Places: a line of the user's own code, told as ``file:line``, relative to where Python finds the file.

The user's code is all that is neither Python's library nor an installed package. A place never is an absolute path, and
never leads out of a folder.
"""

from __future__ import annotations

import functools
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import penstock

_INSTALLED = {"site-packages", "dist-packages"}
_FILES: dict[str, Path] = {}  # a name that was told → the file; for the text of its lines


def place(file: str, line: int, root: Path | None = None, package: str = "") -> str:
    """Return ``file:line`` relative to ``root``, else to the nearest folder that Python imports from.

    It is empty for code that isn't the user's. ``package`` names one in ``root`` that is the user's wherever it lies.
    """
    if file.startswith("<") or not Path(file).is_absolute():
        return ""
    path = _resolved(file)
    inside = root is not None and path.is_relative_to(root / package if package else root)
    if not (inside and package) and is_library(path):
        return ""
    home = root if root is not None and path.is_relative_to(root) else _nearest(path)
    name = path.relative_to(home).as_posix() if home is not None else path.name
    _FILES[name] = path
    return f"{name}:{line}"


def innermost(frames: Iterable[tuple[str, int]], root: Path | None = None, package: str = "") -> str:
    """Return the first place that is the user's, of frames from the innermost outwards."""
    return next((found for file, line in frames if (found := place(file, line, root, package))), "")


def text(place: str) -> str:
    """Return ``file:line: the text of that line`` for a place that was told before."""
    name, _, line = place.rpartition(":")
    try:
        rows = _FILES[name].read_text(encoding="utf-8").splitlines()
        return f"{place}: {rows[int(line) - 1].strip()}"
    except (KeyError, OSError, ValueError, IndexError):
        return place


@functools.lru_cache(maxsize=4096)
def is_library(path: Path) -> bool:
    """Tell whether a resolved path is Python's own, of an installed package, torch's or Penstock's."""
    return not _INSTALLED.isdisjoint(path.parts) or any(path.is_relative_to(folder) for folder in _libraries())


@functools.lru_cache(maxsize=4096)
def _resolved(file: str) -> Path:
    return Path(file).resolve()


def _libraries() -> list[Path]:
    names = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib", "scripts")]
    packages = [penstock.__file__, getattr(sys.modules.get("torch"), "__file__", None)]
    return [*(Path(name).resolve() for name in names), *(Path(file).resolve().parent for file in packages if file)]


def _nearest(path: Path) -> Path | None:
    folders = [*(_resolved(entry) for entry in sys.path if entry), Path.cwd()]
    return max((f for f in folders if path.is_relative_to(f)), key=lambda folder: len(folder.parts), default=None)
