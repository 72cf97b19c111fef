"""Writing: an ONNX file becomes a .tflite file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from penstock import graph
from penstock.errors import InputError
from penstock.jsonable import Json
from penstock.quantization.unfuse import unfuse
from penstock.tflite import WEIGHTED, layers, moving, pointwise, resizing, windows
from penstock.tflite.flatfile import to_bytes
from penstock.tflite.held import RefusedError
from penstock.tflite.lowering import Lowering
from penstock.tflite.place import Place

if TYPE_CHECKING:
    import onnx_ir as ir

RULES: dict[str, Callable[[Place], None]] = {
    **layers.RULES, **windows.RULES, **pointwise.RULES, **moving.RULES, **resizing.RULES,
}  # fmt: skip
MOVING = frozenset({"DEQUANTIZE", "QUANTIZE", "RESHAPE", "TRANSPOSE"})  # they compute nothing
MOST_TOLD = 5  # refused nodes that a message lists


@dataclass(frozen=True, slots=True)
class Written:
    """The file's bytes, and what is told of it."""

    data: bytes
    facts: Mapping[str, Json]


def written(
    path: Path, *, batch: int = 1, sizes: Mapping[str, int] | None = None, layout: str = "nchw", ends: str = "float"
) -> Written:
    """Return a TFLite file that computes what an ONNX file does, at one size of the batch and of other named axes.

    ``layout`` is the order of axes of four-dimensional inputs and outputs, ``nchw`` or ``nhwc``; with ``ends`` "int8"
    integers go in and come out. Raises ``InputError`` for what can't be written, with the nodes.
    """
    from penstock.quantization import prepare

    model = graph.load(path)
    graph.inline(model)
    unfuse(model)
    fixed(model, batch, sizes or {}, path)
    model = prepare.folded(model)
    prepare.named(model)
    lowering = Lowering(model, layout == "nhwc", ends == "int8")
    try:
        lowering.run(RULES)
    except RefusedError as error:
        do = "float ends take any model: leave --ends out" if ends == "int8" else "run the .onnx on another backend"
        what = f"the model can't be said in TFLite: {error}"
        raise InputError("cannot-write-tflite", what, where=str(path), do=do) from error
    if lowering.refused:
        told = "; ".join(f"{op} {name!r}: {why}" for name, op, why in lowering.refused[:MOST_TOLD])
        more = f" (and {len(lowering.refused) - MOST_TOLD} more)" if len(lowering.refused) > MOST_TOLD else ""
        count = len(lowering.refused)
        what = f"{count} node{'s' * (count != 1)} can't be said in TFLite's operators: {told}{more}"
        raise InputError("cannot-write-tflite", what, where=str(path), do="run the .onnx on another backend")
    net = lowering.net
    data = to_bytes(net.tensors, net.operators, lowering.inputs, lowering.outputs, "penstock")
    counted: dict[str, Json] = dict(sorted(Counter(one.form for one in net.operators).items()))
    weighted = [one.outputs[0].grid is not None for one in net.operators if one.form in WEIGHTED]
    of_layers: dict[str, Json] = {"int8": sum(weighted), "fp32": len(weighted) - sum(weighted)}
    computing = [one.outputs[0].grid is None for one in net.operators if one.form not in MOVING]
    return Written(data, {
        "format": "tflite", "operators": counted, "operators_in_float": sum(computing),
        "operators_on_integers": len(computing) - sum(computing),
        "weighted_in": {name: count for name, count in of_layers.items() if count},
        "batch": batch, "layout": layout, "ends": ends,
        "inputs": {name: [*tensor.shape] for name, tensor in lowering.inputs},
        "outputs": {name: [*tensor.shape] for name, tensor in lowering.outputs}, "size_bytes": len(data),
    })  # fmt: skip


def fixed(model: ir.Model, batch: int, sizes: Mapping[str, int], path: Path) -> None:
    """Give the inputs a whole size: the first axis that isn't known becomes the batch. Raises ``InputError``."""
    import onnx_ir as ir

    for value in model.graph.inputs:
        if value.shape is None:
            what = f"the input {value.name!r} has no shape"
            raise InputError("cannot-write-tflite", what, where=str(path), do="export the model with shapes")
        dims = list(value.shape)
        for axis, dim in enumerate(dims):
            if isinstance(dim, int) and dim >= 0:
                continue
            name = "" if isinstance(dim, int) else str(dim.value or "")  # some exporters write -1 for an open one
            if axis and name not in sizes:
                what = f"axis {axis} of the input {value.name!r} has no fixed size, and TFLite's sizes are fixed"
                do = f"give it: --sizes {name}=N" if name else "export the model with that size"
                raise InputError("cannot-write-tflite", what, where=str(path), do=do)
            dims[axis] = sizes.get(name, batch)
        value.shape = ir.Shape(dims)
    for node in model.graph:
        for value in node.outputs:
            if value not in model.graph.outputs:
                value.shape = None
    for value in model.graph.outputs:
        value.shape = None
