"""What a tensor says of its data outside the model file, and whether that is a plain file beside the model.

A model of a hundred bytes can ask for gigabytes that are nowhere: by a file of holes, which read as zeros, or by many
tensors that claim the same bytes. Real weights are neither, however large they are, so that is what is refused, and
not size.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import math
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.analysis.finding import Finding, refusal, shown

if TYPE_CHECKING:
    import onnx

NOTHING_BYTES = 64 << 20  # what may be claimed twice, or be a hole, without a question
MOST_SEGMENTS = 10_000  # of a file with holes that are looked at
_KEYS = {"location", "offset", "length", "checksum", "basepath"}
_CURE = "put the data file beside the model and export again"
_NUMBER = re.compile(r"[0-9]{1,20}")


@dataclass(slots=True)
class _File:
    """One file of external data: why it can't be read, or its size; and how many bytes the tensors claim of it."""

    problem: Finding | None = None
    size: int = 0
    claimed: int = 0


class Files:
    """The files of external data of one model, each looked at once."""

    def __init__(self, model: Path) -> None:
        self.model = model
        self.links: list[Path] = []  # files that are links themselves, in folders that aren't
        self._known: dict[str, _File] = {}

    def examine(self, tensor: onnx.TensorProto) -> Iterator[Finding]:
        """Yield why a tensor's external data can't be trusted: at most one finding."""
        entries = {entry.key: entry.value for entry in tensor.external_data}
        where = f"{self.model}, tensor {shown(tensor.name)}"

        def bad(what: str) -> Finding:
            return refusal("bad-external-data", what, where, _CURE)

        if any(isinstance(text, bytes) for item in entries.items() for text in item):  # protobuf's way with no text
            yield bad("its external data is described by what is no text in UTF-8")
            return
        location = entries.get("location", "")
        if len(entries) != len(tensor.external_data):
            yield bad("its external data gives a key twice")  # readers differ in which of the two they take
        elif unknown := sorted(set(entries) - _KEYS):
            yield bad(f"its external data has the unknown key {shown(unknown[0])}")
        elif location.startswith("*/"):
            do = "save the model to a file again: what it points at is the memory of the program that made it"
            yield refusal("in-memory-external-data", f"its data is a place in memory: {shown(location)}", where, do)
        elif not location or "\0" in location:
            yield bad("its external data names no file")
        else:
            if location not in self._known:
                self._known[location] = self._look(location, where)
            yield from self._claim(tensor, entries, self._known[location], where)

    def paths(self) -> tuple[Path, ...]:
        """Return the files that can be read, in order of first use."""
        return tuple(self.model.parent / location for location, file in self._known.items() if file.problem is None)

    def _claim(self, tensor: onnx.TensorProto, entries: dict[str, str], file: _File, where: str) -> Iterator[Finding]:
        """Hold what a tensor claims of its file against the file."""
        if file.problem is not None:
            yield Finding(file.problem.id, file.problem.severity, file.problem.what, where, file.problem.do)
            if not file.size:
                return

        def bad(what: str) -> Finding:
            return refusal("bad-external-data", what, where, _CURE)

        texts = [entries.get(key) or "0" for key in ("offset", "length")]
        if not all(_NUMBER.fullmatch(text) for text in texts):
            yield bad("its external data claims an offset or length that is not a number of the digits 0 to 9")
            return
        offset, length = map(int, texts)
        needed = bytes_of(tensor)
        if needed is not None and entries.get("length") and length != needed:
            yield bad(f"its external data claims {length} bytes, its shape and type need {needed}")
            return
        length = length if needed is None else needed
        if offset + length > file.size:
            yield bad(f"its external data claims {offset}+{length} bytes of a file that has {file.size}")
            return
        file.claimed += length

    def _look(self, location: str, where: str) -> _File:
        """Look at a file without opening it."""

        def bad(what: str) -> _File:
            return _File(refusal("bad-external-data", what, where, _CURE))

        parts = Path(location).parts
        if not parts or Path(location).is_absolute() or ".." in parts or "\\" in location or ":" in parts[0]:
            return bad(f"its external data lies outside the model's folder: {shown(location)}")
        if location.rpartition("/")[2] in ("", "."):
            return bad(f"its external data is a folder, not a plain file: {shown(location)}")
        path = self.model.parent
        for part in parts:
            path = path / part
            try:
                info = path.lstat()
            except OSError as error:
                missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
                reason = "is missing" if missing else f"can't be looked at ({os.strerror(error.errno or 0)})"
                told = bad(f"its external data {reason}: {shown(location)}")
                return self._beside_the_target(told, where) if missing and self.model.is_symlink() else told
            if stat.S_ISLNK(info.st_mode) or (stat.S_ISREG(info.st_mode) and info.st_nlink > 1):
                break
        linked = stat.S_ISLNK(info.st_mode)
        if linked or (stat.S_ISREG(info.st_mode) and info.st_nlink > 1):
            return self._linked(location, path, "a symbolic link" if linked else "a hard link", where)
        if not stat.S_ISREG(info.st_mode):
            return bad(f"its external data is not a plain file: {shown(location)}")
        return _File(size=info.st_size)

    def _beside_the_target(self, told: _File, where: str) -> _File:
        """Say that the model file is a link itself: weights are looked for beside the link, not where it leads."""
        assert told.problem is not None
        target = ascii(str(self.model.readlink()))[:400]
        do = (
            f"the model file is a link to {target}; if its weights lie there and you trust them, name that file instead"
        )
        return _File(refusal("bad-external-data", told.problem.what, where, do))

    def _linked(self, location: str, path: Path, kind: str, where: str) -> _File:
        what = f"its external data goes through a link, which may lead outside the folder: {shown(location)} ({kind})"
        if path == self.model.parent / location:
            self.links.append(path)
            do = f"`penstock check {self.model} --copy-links` shows where it leads and puts a copy in its place"
        else:
            do = f"put a copy of the folder in place of the link {path}, if you trust where it leads"
        size = 0
        with contextlib.suppress(OSError):  # a copy would have it: what doesn't fit then is told before any is made
            info = (self.model.parent / location).stat()
            size = info.st_size if stat.S_ISREG(info.st_mode) else 0
        return _File(refusal("linked-external-data", what, where, do), size)

    def over_claimed(self) -> Iterator[Finding]:
        """Yield what the files can't hold of what all tensors together claim, and files that are made of holes."""
        for location, file in self._known.items():
            if file.problem is not None:
                continue
            where = f"{self.model}, external data {shown(location)}"
            if file.claimed > 2 * file.size + NOTHING_BYTES:
                what = f"its tensors claim {file.claimed:,} bytes of a file that has {file.size:,}"
                do = "export the model again, each tensor with data of its own"
                yield refusal("shared-external-data", what, where, do)
            elif (missing := holes(self.model.parent / location)) * 2 > file.size:
                yield hollow(missing, file.size, where, self.model.parent / location)


def hollow(missing: int, size: int, where: str, path: Path) -> Finding:
    """Build the finding for a file that is mostly not there."""
    what = f"{missing:,} of the {size:,} bytes of the file are holes: they take no room on the disk and read as zeros"
    do = f"download it again; where it really holds zeros, put a copy there made with cp --sparse=never {path} COPY"
    return refusal("sparse-file", what, where, do)


def holes(path: Path) -> int:
    """Count the bytes of a plain file that are holes; 0 where they are few, or where the system doesn't tell."""
    if not hasattr(os, "SEEK_DATA"):
        return 0
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return 0
    try:
        size = os.fstat(handle).st_size
        missing = at = 0
        for _ in range(MOST_SEGMENTS if size > NOTHING_BYTES else 0):
            try:
                data = os.lseek(handle, at, os.SEEK_DATA)
            except OSError as error:
                return _many(missing + (size - at if error.errno == errno.ENXIO else 0))
            missing += data - at
            at = os.lseek(handle, data, os.SEEK_HOLE)
            if at >= size:
                break
        return _many(missing)
    except OSError:
        return 0
    finally:
        os.close(handle)


def _many(missing: int) -> int:
    return missing if missing > NOTHING_BYTES else 0


@functools.cache
def _width(data_type: int) -> tuple[int, int] | None:
    """Return a type's bytes and how many of its values share them; ``None`` for texts and types that are not known."""
    import onnx

    try:
        name = onnx.TensorProto.DataType.Name(data_type)
        width = int(onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize)
    except (KeyError, TypeError, ValueError):
        return None
    if name in ("STRING", "UNDEFINED"):
        return None
    packed = {"INT4": 2, "UINT4": 2, "FLOAT4E2M1": 2, "INT2": 4, "UINT2": 4}.get(name)
    return (1, packed) if packed else (width, 1)


def bytes_of(tensor: onnx.TensorProto) -> int | None:
    """Return how many bytes a tensor's raw data has; ``None`` for texts and types that are not known."""
    dims = tensor.dims
    if any(dim < 0 for dim in dims) or (width := _width(tensor.data_type)) is None:
        return None
    return -(-int(math.prod(dims)) * width[0] // width[1])
