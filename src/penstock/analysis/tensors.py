"""Hold what tensors and values claim to be against the limits, against what they hold, and against their files."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.analysis import external_data
from penstock.analysis.finding import Finding, refusal, shown

if TYPE_CHECKING:
    import onnx

MAX_RANK = 64
_TRUST = "raise [check] max_tensor_bytes if you trust the model"


def examine(
    tensors: Sequence[onnx.TensorProto],
    sparse: Sequence[onnx.SparseTensorProto],
    files: external_data.Files,
    max_tensor_bytes: int,
    figures: dict[str, int],
) -> Iterator[Finding]:
    """Yield what is wrong with tensors: where their data lies, how large they claim to be, whether it is there."""
    figures |= {"tensors": len(tensors), "declared_bytes": 0}
    for tensor in tensors:
        where = functools.partial(_place, files.model, "tensor", tensor)
        if len(tensor.dims) > MAX_RANK:
            yield _rank(len(tensor.dims), where())
            continue
        needed = external_data.bytes_of(tensor)
        figures["declared_bytes"] += needed or 0
        if needed is not None and needed > max_tensor_bytes:
            what = f"it claims {needed:,} bytes, {max_tensor_bytes:,} are allowed"
            yield refusal("tensor-too-large", what, where(), _TRUST)
        elif tensor.data_location == tensor.EXTERNAL or tensor.external_data:
            yield from files.examine(tensor)
        elif problem := _misfit(tensor, needed):
            yield refusal("bad-tensor", problem, where(), "the file is damaged: export the model again")
    yield from files.over_claimed()
    for entry in sparse:
        where = functools.partial(_place, files.model, "sparse tensor", entry.values)
        if len(entry.dims) > MAX_RANK:
            yield _rank(len(entry.dims), where())
            continue
        if any(dim < 0 for dim in entry.dims):
            do = "the file is damaged: export the model again"
            yield refusal("bad-tensor", f"it has a negative dimension: {[*entry.dims][:8]}", where(), do)
            continue
        dense = math.prod(entry.dims) * 8
        figures["declared_bytes"] += dense
        if dense > max_tensor_bytes:
            what = f"as a dense tensor it claims {dense:,} bytes, {max_tensor_bytes:,} are allowed"
            yield refusal("tensor-too-large", what, where(), _TRUST)


def _place(path: Path, kind: str, named: onnx.TensorProto | onnx.ValueInfoProto) -> str:
    return f"{path}, {kind} {shown(named.name)}"


def _rank(rank: int, where: str) -> Finding:
    what = f"it has {rank} dimensions, {MAX_RANK} are allowed"
    return refusal("too-many-dims", what, where, "export the model again")


def _misfit(tensor: onnx.TensorProto, needed: int | None) -> str:
    """Tell how the data inside a tensor doesn't fit its shape and type; empty where it does."""
    if any(dim < 0 for dim in tensor.dims):
        return f"it has a negative dimension: {[*tensor.dims][:8]}"
    count = math.prod(tensor.dims)
    if tensor.data_type == tensor.STRING:
        return "" if len(tensor.string_data) == count else f"it holds {len(tensor.string_data)} texts, not {count}"
    if needed is None:
        return f"its type {tensor.data_type} is not known"
    if tensor.HasField("raw_data"):
        held = len(tensor.raw_data)
        return "" if held == needed else f"it holds {held} bytes, its shape and type need {needed}"
    lengths = {
        len(values)
        for values in (
            tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data
        )
        if len(values)
    }  # fmt: skip
    allowed = {count, needed, 2 * count}  # packed types have a value a byte, complex ones two values each
    if (lengths or {0}) <= allowed:
        return ""
    return f"it holds {max(lengths, default=0)} values, its shape needs {count}"


def declared(values: Iterable[onnx.ValueInfoProto], path: Path, max_elements: int) -> Iterator[Finding]:
    """Yield inputs and outputs that claim to be larger than is allowed."""
    for value in values:
        if not value.HasField("type") or not value.type.HasField("tensor_type"):
            continue
        shape = value.type.tensor_type.shape.dim
        if len(shape) > MAX_RANK:
            yield _rank(len(shape), _place(path, "value", value))
        elif math.prod(dim.dim_value for dim in shape if dim.dim_value > 0) > max_elements:
            what = f"it is declared with more than {max_elements:,} elements"
            yield refusal("tensor-too-large", what, _place(path, "value", value), _TRUST)
