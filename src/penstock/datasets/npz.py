"""An .npz file: x (or inputs, images) and y (or labels), x_test and y_test; or one array for each input of the model.

Whatever is not a label is an input. A sole input may have any name; several are named as the model names them. A name
that ends in ``_test`` is the part to evaluate, one that ends in ``_train`` is the same as the bare name.
Large arrays aren't held in memory: as ``numpy.savez`` stores them, they are read from the file itself when they are
asked for; as ``numpy.savez_compressed`` does, they are unpacked into the temporary folder first.
"""

from __future__ import annotations

import math
import struct
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import IO

from penstock import store
from penstock.data import Dataset, DataSettings, Preprocessing, Samples, Split
from penstock.datasets import _checks, _stored
from penstock.errors import InputError, StoreError
from penstock.progress import SILENT, Progress

MOST_AXES = 64  # of an array of numpy
LABELS = ("y", "labels")
WRITE = "write it with numpy.savez(path, x=images, y=labels)"


def claims(spec: str) -> bool:
    """Tell whether ``spec`` names an .npz file, whether or not it is there."""
    return spec.lower().endswith(".npz")


def need(spec: str) -> None:
    """Raise ``InputError`` where the file isn't there."""
    if not Path(spec).expanduser().is_file():
        raise InputError("no-such-file", "there is no such file", where=spec, do="check --data")


def open(spec: str, settings: DataSettings, progress: Progress = SILENT) -> Dataset:
    """Read the arrays; objects are refused, nothing is unpickled.

    Raises ``InputError`` for a file that is absent, damaged or too large, for arrays that don't fit each other, and
    for samples or labels that are no finite numbers.
    """
    path = Path(spec).expanduser()
    train, test = _sorted_out(_read(path), spec)
    parts = [_split(part, spec) for part in (train, test)]
    first, second = parts
    if first is None:
        raise InputError("data-empty", "there are no arrays of samples", where=spec, do=WRITE)
    if second is not None:
        _checks.same_form(first, second, spec)
    classes = _checks.numbered_classes(first, second)
    return Dataset(path.name, first, second, classes, Preprocessing(), _checks.digest(first, second))


def _read(path: Path) -> dict[str, Samples]:
    import numpy as np

    if not path.is_file():
        raise InputError("no-such-data", "there is no such file", where=str(path), do="check the path given to --data")
    try:
        with zipfile.ZipFile(path) as file:
            size = sum(member.file_size for member in file.infolist())
            if size > _checks.LIMIT_BYTES:
                raise _checks.too_large(size, str(path))
            large = {
                one.filename.removesuffix(".npy"): found
                for one in file.infolist()
                if one.file_size > _stored.HELD_BYTES and (found := _large(path, file, one)) is not None
            }
        with np.load(path, allow_pickle=False) as arrays:
            held = {name: arrays[name] for name in arrays.files if name not in large}
        return large | {name: array for name, array in held.items() if isinstance(array, np.ndarray)}
    except (InputError, StoreError):
        raise
    except Exception as error:  # a parser meets arbitrary bytes: whatever it raises is about the file
        reason = "it holds Python objects" if "allow_pickle" in str(error) else str(error) or type(error).__name__
        raise InputError(
            "unreadable-data", f"the .npz can't be read: {reason}", where=str(path), do=f"{WRITE}, numbers only"
        ) from error


def _large(path: Path, file: zipfile.ZipFile, member: zipfile.ZipInfo) -> _stored.Stored | None:
    """Return an array that stays where it is, or goes to the temporary folder; ``None`` where it can't be cut in rows.

    The member is read once as a whole, which checks its sum: what lies in another order of axes or bytes can't be cut.
    """
    import numpy as np

    with file.open(member) as data:
        version = (0, 0)
        with suppress(ValueError):  # a member that is no array, which is passed over later
            version = np.lib.format.read_magic(data)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        read = readers.get(version)
        if read is None:
            return None
        shape, column_major, dtype = read(data)
        if column_major or not shape or not dtype.isnative or dtype.kind not in "buif":
            return None
        if min(shape) < 0 or len(shape) > MOST_AXES:
            raise ValueError(f"{member.filename} says that its shape is {shape[:MOST_AXES]}")
        head = data.tell()
        if member.file_size - head != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{member.filename} has {member.file_size - head} bytes for an array of shape {shape}")
        if member.compress_type == zipfile.ZIP_STORED:
            _pass_over(data)
            return _stored.Stored(store.OwnFile(path), _start(path, member) + head, shape, dtype)
        return _stored.Stored(_unpacked(data), 0, shape, dtype)


def _pass_over(data: IO[bytes]) -> None:
    """Read to the end: the sum of a member is checked there."""
    while data.read(_checks.CHUNK_BYTES):
        pass


def _unpacked(data: IO[bytes]) -> store.OwnFile:
    file = store.nameless()
    while chunk := data.read(_checks.CHUNK_BYTES):
        _stored.write(file, chunk)
    return file


def _start(path: Path, member: zipfile.ZipInfo) -> int:
    """Find where the bytes of a member begin: behind a head whose names may be longer than the directory's."""
    with path.open("rb") as file:
        file.seek(member.header_offset + 26)
        names, extra = struct.unpack("<HH", file.read(4))
    return member.header_offset + 30 + int(names) + int(extra)


def _sorted_out(arrays: dict[str, Samples], where: str) -> tuple[dict[str, Samples], dict[str, Samples]]:
    """Deal the arrays to the two parts, under their bare names."""
    parts: tuple[dict[str, Samples], dict[str, Samples]] = ({}, {})
    for name, array in arrays.items():
        bare = name.removesuffix("_train").removesuffix("_test")
        part = parts[name.endswith("_test")]
        if bare in part:
            what = f"{bare!r} and {bare + '_train'!r} are both there"
            raise InputError("data-ambiguous", what, where=where, do=WRITE)
        part[bare] = array
    return parts


def _split(part: dict[str, Samples], where: str) -> Split | None:
    """Check one part; ``None`` where it is absent. A sole input goes under ""."""
    if not part:
        return None
    given = [name for name in LABELS if name in part]
    if len(given) > 1:
        raise InputError("data-ambiguous", "both 'y' and 'labels' are there", where=where, do="keep one of them")
    found = part[given[0]] if given else None
    labels = found[:] if isinstance(found, _stored.Stored) else found
    inputs = {name: array for name, array in part.items() if name not in LABELS}
    if len(inputs) == 1:
        inputs = {"": next(iter(inputs.values()))}
    return _checks.split(inputs, labels, where)
