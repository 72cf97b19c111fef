"""Where a result is written: to a file of its own, not over one that the same command reads or writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from penstock import precheck
from penstock.errors import UsageError


def keep_apart(written: Mapping[str, str | Path | None], read: Mapping[str, str | Path | None]) -> None:
    """Raise ``UsageError`` where a result would replace what is read, or another result.

    ``written`` maps flags to files; ``read`` maps what a file is called to the argument that names it, which may be
    more than a file (``net.py:Net``) or none (``zoo:digits``). ``None`` and an empty text name nothing.
    """
    kept = {path: called for called, named in read.items() if named for path in _files(str(named))}
    for flag, target in written.items():
        if not target:
            continue
        path = Path(target).resolve()
        if path in kept:
            what, do = f"{flag} would write over {kept[path]}", f"choose another file with {flag}"
            raise UsageError("written-over", what, where=str(target), do=do)
        kept[path] = f"the result of {flag}"


def _files(named: str) -> list[Path]:
    """Return the files that an argument names, those beside a model among them."""
    head, _, _ = named.rpartition(":")
    path = next((one for one in (Path(named), Path(head)) if str(one) and one.is_file()), None)
    if path is None:
        return []
    beside = precheck.files_beside(path) if path.suffix == ".onnx" else ()
    return [path.resolve(), *(one.resolve() for one in beside)]
