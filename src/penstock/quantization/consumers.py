"""Consumers: which tensors a runtime wants to see quantized, so that it fuses all it can.

A table of one entry each. What an entry says is tested on what the runtime makes of the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_MOVING = frozenset({
    "DepthToSpace", "Expand", "Flatten", "Gather", "MaxPool", "Reshape", "Resize", "Slice", "SpaceToDepth", "Split",
    "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Consumer:
    """What one kind of runtime does with Q/DQ pairs."""

    name: str
    summary: str
    activations: tuple[str, ...]  # types of activations that it takes; the first is the default
    symmetric: bool  # zero points of activations are 0
    weighted: frozenset[str]  # computed on integers where their weights are constant
    float_outputs: frozenset[str]  # those among them that can give a float result
    arithmetic: frozenset[str]  # integers in, integers on another grid out
    moving: frozenset[str]  # move elements: integers out on the grid they came on
    integer_bias: bool = True  # the bias is int32 on the grid of products; else it stays float
    one_grid_concat: bool = False  # all that is concatenated has the result's grid
    everything: bool = False  # there is no float arithmetic: nothing may stay in float
    fixed: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # ranges of outputs, known by definition
    absorbs: bool = True  # a Relu or Clip before a grid that clips as it does is no operator of its own


CONSUMERS: dict[str, Consumer] = {
    entry.name: entry
    for entry in (
        Consumer(
            "ort-cpu", "ONNX Runtime on a CPU",
            ("uint8", "int8", "uint16", "int16"), False,
            frozenset({"Conv", "Gemm", "MatMul"}), frozenset({"Gemm", "MatMul"}),
            frozenset({"Add", "AveragePool", "Concat", "GlobalAveragePool", "LeakyRelu", "Mul", "Sigmoid"}), _MOVING,
        ),
        Consumer(
            "openvino", "OpenVINO on a CPU",
            ("uint8", "int8"), False,
            _WEIGHTED, _WEIGHTED,
            frozenset({"Add", "AveragePool", "Concat", "GlobalAveragePool", "Mul"}), _MOVING, integer_bias=False,
            one_grid_concat=True,
        ),
        Consumer(
            "integer-only", "TFLite-like runtimes and NPUs, which have no float arithmetic",
            ("int8", "int16"), False,
            _WEIGHTED, frozenset(),
            frozenset({
                "Add", "AveragePool", "Concat", "GlobalAveragePool", "HardSigmoid", "HardSwish", "LeakyRelu", "Mul",
                "PRelu", "ReduceMean", "Sigmoid", "Softmax", "Sub", "Tanh",
            }),
            _MOVING | {"Clip", "GlobalMaxPool", "Pad", "Relu"}, one_grid_concat=True, everything=True,
            fixed={"Sigmoid": (0.0, 255 / 256), "Softmax": (0.0, 255 / 256), "Tanh": (-1.0, 127 / 128)},
        ),
        Consumer(
            "tensorrt", "TensorRT, which wants symmetric activations and fuses from the inputs of its layers",
            ("int8",), True,
            _WEIGHTED, _WEIGHTED,
            frozenset({"Add", "AveragePool"}), frozenset({"MaxPool"}), integer_bias=False, absorbs=False,
        ),
    )
}  # fmt: skip
