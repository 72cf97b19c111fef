"""What a tensor says of its data outside the model file, and whether that is a plain file beside the model."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.analysis.finding import Finding, refusal, shown

if TYPE_CHECKING:
    import onnx

_KEYS = {"location", "offset", "length", "checksum", "basepath"}
_CURE = "put the data file beside the model and export again"


def examine(tensor: onnx.TensorProto, model: Path) -> Iterator[Finding]:
    """Yield why a tensor's external data can't be trusted: at most one finding."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    where = f"{model}, tensor {shown(tensor.name)}"

    def bad(what: str) -> Finding:
        return refusal("bad-external-data", what, where, _CURE)

    if any(isinstance(text, bytes) for item in entries.items() for text in item):  # so protobuf gives what is no text
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
        yield from _on_disk(tensor, entries, model, where)


def _on_disk(tensor: onnx.TensorProto, entries: dict[str, str], model: Path, where: str) -> Iterator[Finding]:
    def bad(what: str) -> Finding:
        return refusal("bad-external-data", what, where, _CURE)

    location = entries["location"]
    parts = Path(location).parts
    if not parts or Path(location).is_absolute() or ".." in parts or "\\" in location or ":" in parts[0]:
        yield bad(f"its external data lies outside the model's folder: {shown(location)}")
        return
    if (link := linked(model.parent, parts)) is not None:
        do = f"`penstock check {model} --copy-links` shows where it leads and puts a copy in its place"
        what = f"its external data goes through a link, which may lead outside the folder: {shown(location)} ({link})"
        yield refusal("linked-external-data", what, where, do)
        return
    try:
        info = (model.parent / location).lstat()
    except OSError:
        yield bad(f"its external data is missing: {shown(location)}")
        return
    if not stat.S_ISREG(info.st_mode):
        yield bad(f"its external data is not a plain file: {shown(location)}")
        return
    try:
        offset, length = int(entries.get("offset") or "0"), int(entries.get("length") or "0")
    except ValueError:
        yield bad("the offset or length of its external data is not a number")
        return
    needed = bytes_of(tensor)
    if needed is not None and entries.get("length") and length != needed:
        yield bad(f"its external data claims {length} bytes, its shape and type need {needed}")
        return
    length = length if needed is None else needed
    if offset < 0 or length < 0 or offset + length > info.st_size:
        yield bad(f"its external data claims {offset}+{length} bytes of a file that has {info.st_size}")


def linked(folder: Path, parts: tuple[str, ...]) -> str | None:
    """Tell what kind of link a relative path goes through; ``None`` for none."""
    target = folder
    for part in parts:
        target = target / part
        if target.is_symlink():
            return "a symbolic link"
    try:
        info = target.lstat()
    except OSError:
        return None
    return "a hard link" if stat.S_ISREG(info.st_mode) and info.st_nlink > 1 else None


def bytes_of(tensor: onnx.TensorProto) -> int | None:
    """Return how many bytes a tensor's raw data has; ``None`` for texts and types that are not known."""
    import math

    import onnx

    if any(dim < 0 for dim in tensor.dims):
        return None
    try:
        name = onnx.TensorProto.DataType.Name(tensor.data_type)
        width = int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except (KeyError, TypeError, ValueError):
        return None
    if name in ("STRING", "UNDEFINED"):
        return None
    count = int(math.prod(tensor.dims))
    packed = {"INT4": 2, "UINT4": 2, "FLOAT4E2M1": 2, "INT2": 4, "UINT2": 4}.get(name)
    return -(-count // packed) if packed else count * width
