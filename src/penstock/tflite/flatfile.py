"""A TFLite file from tensors and operators: the tables of TensorFlow Lite's schema, version 3, as a flatbuffer.

The numbers of fields and of enumerations are those of the schema (tensorflow/lite/schema/schema.fbs); a test reads what
is written with the classes that LiteRT's own package generates from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import flatbuffers
import numpy as np

Kind = Literal["int8", "uint8", "bool", "int32", "uint32", "float32", "int32s"]
Array = np.ndarray[Any, np.dtype[Any]]

VERSION = 3
IDENTIFIER = b"TFL3"
ALIGNMENT = 16  # of a tensor's bytes: kernels read them where they lie in the file

TYPES: Mapping[np.dtype[Any], int] = {
    np.dtype(np.float32): 0, np.dtype(np.int32): 2, np.dtype(np.uint8): 3, np.dtype(np.int64): 4,
    np.dtype(np.bool_): 6, np.dtype(np.int16): 7, np.dtype(np.int8): 9,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Form:
    """An operator of the schema: its number, its table of options, the fields of that table in their order."""

    number: int
    options: int = 0  # member of the union BuiltinOptions, 0: no table
    fields: Mapping[str, Kind] = field(default_factory=dict)


_CONV: dict[str, Kind] = {"padding": "int8", "stride_w": "int32", "stride_h": "int32"}
_DILATION: dict[str, Kind] = {"dilation_w": "int32", "dilation_h": "int32"}
_POOL: dict[str, Kind] = _CONV | {"filter_w": "int32", "filter_h": "int32", "activation": "int8"}
_FUSED: dict[str, Kind] = {"activation": "int8"}
_CORNERS: dict[str, Kind] = {"align_corners": "bool", "half_pixel": "bool"}

FORMS: Mapping[str, Form] = {
    "ADD": Form(0, 11, _FUSED),
    "AVERAGE_POOL_2D": Form(1, 5, _POOL),
    "CONCATENATION": Form(2, 10, {"axis": "int32", "activation": "int8"}),
    "CONV_2D": Form(3, 1, _CONV | {"activation": "int8"} | _DILATION),
    "DEPTHWISE_CONV_2D": Form(4, 2, _CONV | {"multiplier": "int32", "activation": "int8"} | _DILATION),
    "DEPTH_TO_SPACE": Form(5, 94, {"block_size": "int32"}),
    "DEQUANTIZE": Form(6, 38),
    "FULLY_CONNECTED": Form(9, 8, {"activation": "int8", "weights_format": "int8", "keep_num_dims": "bool"}),
    "LOGISTIC": Form(14),
    "MAX_POOL_2D": Form(17, 5, _POOL),
    "MUL": Form(18, 21, _FUSED),
    "RELU": Form(19),
    "RELU6": Form(21),
    "RESHAPE": Form(22, 17, {"new_shape": "int32s"}),
    "RESIZE_BILINEAR": Form(
        23, 15, {"old_h": "int32", "old_w": "int32", "align_corners": "bool", "half_pixel": "bool"}
    ),
    "SOFTMAX": Form(25, 9, {"beta": "float32"}),
    "SPACE_TO_DEPTH": Form(26, 19, {"block_size": "int32"}),
    "TANH": Form(28),
    "PAD": Form(34, 22),
    "TRANSPOSE": Form(39, 26),
    "EXP": Form(47, 33),
    "LOG": Form(73),
    "SQRT": Form(75),
    "POW": Form(78, 56),
    "NEG": Form(59, 42),
    "ABS": Form(101, 78),
    "MEAN": Form(40, 27, {"keep_dims": "bool"}),
    "SUM": Form(74, 27, {"keep_dims": "bool"}),
    "REDUCE_MAX": Form(82, 27, {"keep_dims": "bool"}),
    "GATHER": Form(36, 23, {"axis": "int32", "batch_dims": "int32"}),
    "CAST": Form(53, 37, {"from": "int8", "to": "int8"}),
    "ARG_MAX": Form(56, 40, {"output_type": "int8"}),
    "SUB": Form(41, 28, _FUSED),
    "DIV": Form(42, 29, _FUSED),
    "STRIDED_SLICE": Form(
        45, 32, {"begin": "int32", "end": "int32", "ellipsis": "int32", "new": "int32", "shrink": "int32"}
    ),
    "PRELU": Form(54),
    "MAXIMUM": Form(55, 39),
    "MINIMUM": Form(57, 39),
    "PADV2": Form(60, 43),
    "SLICE": Form(65, 48),
    "TRANSPOSE_CONV": Form(67, 49, _CONV | {"activation": "int8"}),
    "RESIZE_NEAREST_NEIGHBOR": Form(97, 74, _CORNERS),
    "LEAKY_RELU": Form(98, 75, {"alpha": "float32"}),
    "QUANTIZE": Form(114, 89),
    "HARD_SWISH": Form(117, 91),
}


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """How integers stand for numbers: x ≈ scale·(q − zero_point), one for all or one for each slice along ``axis``."""

    scale: Array  # (1,) or (n,) float32
    zero_point: Array  # (1,) or (n,) int64
    axis: int = 0


@dataclass(slots=True, eq=False)
class Tensor:
    """A tensor of the file; one with ``data`` is a constant."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    grid: Grid | None = None
    data: Array | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Operator:
    """A node of the file. ``version`` is the least version of the operator that has what this node asks for."""

    form: str
    inputs: tuple[Tensor | None, ...]  # None: an optional one that isn't there
    outputs: tuple[Tensor, ...]
    version: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)


def to_bytes(
    tensors: Sequence[Tensor], operators: Sequence[Operator], inputs: Sequence[tuple[str, Tensor]],
    outputs: Sequence[tuple[str, Tensor]], description: str,
) -> bytes:  # fmt: skip
    """Return the file. ``inputs`` and ``outputs`` are the model's, in order, with the names that a signature gives."""
    return _Writer(tensors, operators).file(inputs, outputs, description)


class _Writer:
    def __init__(self, tensors: Sequence[Tensor], operators: Sequence[Operator]) -> None:
        self.tensors, self.operators = tensors, operators
        self.index = {id(tensor): position for position, tensor in enumerate(tensors)}
        held = sum(tensor.data.nbytes for tensor in tensors if tensor.data is not None)
        self.builder = flatbuffers.Builder(held + 4096)

    def file(
        self, inputs: Sequence[tuple[str, Tensor]], outputs: Sequence[tuple[str, Tensor]], description: str
    ) -> bytes:
        buffers = [self._table([])]  # the first one is empty by the schema: of tensors without data
        held = []
        for tensor in self.tensors:
            if tensor.data is not None:
                raw = np.frombuffer(np.ascontiguousarray(tensor.data).tobytes(), np.uint8)
                buffers.append(self._table([(0, "offset", self._vector(raw, ALIGNMENT))]))
            held.append(self._tensor(tensor, len(buffers) - 1 if tensor.data is not None else 0))
        codes = sorted({(FORMS[one.form].number, one.version) for one in self.operators})
        nodes = [self._operator(one, codes.index((FORMS[one.form].number, one.version))) for one in self.operators]
        graph = self._table([
            (0, "offset", self._offsets(held)), (1, "offset", self._indices([t for _, t in inputs])),
            (2, "offset", self._indices([t for _, t in outputs])), (3, "offset", self._offsets(nodes)),
            (4, "offset", self.builder.CreateString("main")),
        ])  # fmt: skip
        signature = self._table([
            (0, "offset", self._offsets([self._named(name, tensor) for name, tensor in inputs])),
            (1, "offset", self._offsets([self._named(name, tensor) for name, tensor in outputs])),
            (2, "offset", self.builder.CreateString("serving_default")), (4, "uint32", 0),
        ])  # fmt: skip
        listed = [
            self._table([(0, "int8", min(number, 127)), (2, "int32", version), (3, "int32", number)])
            for number, version in codes
        ]
        fields = [
            (0, "uint32", VERSION), (1, "offset", self._offsets(listed)), (2, "offset", self._offsets([graph])),
            (3, "offset", self.builder.CreateString(description)), (4, "offset", self._offsets(buffers)),
            (7, "offset", self._offsets([signature])),
        ]  # fmt: skip
        self.builder.Finish(self._table(fields), IDENTIFIER)
        return bytes(self.builder.Output())

    def _tensor(self, tensor: Tensor, buffer: int) -> int:
        shape = self._vector(np.asarray(tensor.shape, np.int32))
        fields = [
            (0, "offset", shape), (1, "int8", TYPES[np.dtype(tensor.dtype)]), (2, "uint32", buffer),
            (3, "offset", self.builder.CreateString(tensor.name)),
        ]  # fmt: skip
        if tensor.grid is not None:
            scale = self._vector(tensor.grid.scale.astype(np.float32))
            zero = self._vector(tensor.grid.zero_point.astype(np.int64))
            grid = self._table([(2, "offset", scale), (3, "offset", zero), (6, "int32", tensor.grid.axis)])
            fields.append((4, "offset", grid))
        return self._table([*fields, (8, "bool", True)])  # has_rank: a shape of no sizes is a scalar's

    def _operator(self, one: Operator, code: int) -> int:
        form = FORMS[one.form]
        options = 0
        if form.options:
            assert set(one.options) <= set(form.fields), one
            options = self._table([
                (number, *self._option(kind, one.options[name]))
                for number, (name, kind) in enumerate(form.fields.items()) if name in one.options
            ])  # fmt: skip
        inputs, outputs = self._indices(one.inputs), self._indices(one.outputs)
        fields = [(0, "uint32", code), (1, "offset", inputs), (2, "offset", outputs)]
        if form.options:
            fields += [(3, "uint8", form.options), (4, "offset", options)]
        return self._table(fields)

    def _option(self, kind: Kind, value: Any) -> tuple[str, Any]:
        return ("offset", self._vector(np.asarray(value, np.int32))) if kind == "int32s" else (kind, value)

    def _named(self, name: str, tensor: Tensor) -> int:
        return self._table([(0, "offset", self.builder.CreateString(name)), (1, "uint32", self.index[id(tensor)])])

    def _table(self, fields: Sequence[tuple[int, str, Any]]) -> int:
        """Write a table of (number, kind, value), which must hold no default: a slot is always written out."""
        builder = self.builder
        builder.StartObject(max((number for number, *_ in fields), default=-1) + 1)
        for number, kind, value in fields:
            if kind == "offset":
                builder.PrependUOffsetTRelativeSlot(number, value, 0)
            else:
                _SLOTS[kind](builder, number, value, None)
        return int(builder.EndObject())

    def _vector(self, array: Array, alignment: int = 0) -> int:
        """Write the bytes of an array in one go."""
        builder, raw = self.builder, np.ascontiguousarray(array).tobytes()
        builder.StartVector(array.itemsize, array.size, max(array.itemsize, alignment))
        builder.head -= len(raw)
        builder.Bytes[builder.head : builder.head + len(raw)] = raw
        return int(builder.EndVector())

    def _offsets(self, offsets: Sequence[int]) -> int:
        builder = self.builder
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return int(builder.EndVector())

    def _indices(self, tensors: Sequence[Tensor | None]) -> int:
        return self._vector(np.asarray([-1 if one is None else self.index[id(one)] for one in tensors], np.int32))


_SLOTS = {
    "int8": flatbuffers.Builder.PrependInt8Slot, "uint8": flatbuffers.Builder.PrependUint8Slot,
    "bool": flatbuffers.Builder.PrependBoolSlot, "int32": flatbuffers.Builder.PrependInt32Slot,
    "uint32": flatbuffers.Builder.PrependUint32Slot, "float32": flatbuffers.Builder.PrependFloat32Slot,
}  # fmt: skip
