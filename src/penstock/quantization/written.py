"""Written: what a quantized file says of its layers, for quantizers that don't say it themselves.

What was clipped isn't in the file, which holds no statistics.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from penstock import graph
from penstock.quantization.account import tensor
from penstock.quantization.grid import SPANS, Grid
from penstock.rewriting.walk import bodies_in

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

    from penstock.jsonable import Json

PAIRS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
WHOLE = ("QLinear", "QGemm", "QAttention")  # how operators on integers begin
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
NARROW = ("int8", "uint8", "int4", "uint4")
FLOATS = ("float16", "float32", "float64", "bfloat16")


def layers(path: Path, library: str) -> list[Json]:
    """Tell of each node of a quantized file whether it computes on integers, what it reads and makes, and why not.

    ``library`` is who left a tensor in float, for the reason. Raises ``InputError`` for what is no model.
    """
    found: list[Json] = []
    whole: set[ir.Value] = set()  # tensors of integers
    for node in graph.load(path).graph:
        integers = node.op_type.startswith(WHOLE) or any(value in whole for value in node.inputs if value is not None)
        if node.op_type == "QuantizeLinear" or (integers and node.op_type not in PAIRS):
            whole.update(node.outputs)
        if node.op_type not in (*PAIRS, "Constant"):
            found.append(_layer(node, library, integers=integers))
    return found


def on_integers(path: Path) -> tuple[int, int]:
    """Return how many Conv, Gemm and MatMul of a file compute on integers of 8 bits, and how many don't.

    Those that read activations of 16 bits don't: runtimes have few kernels for these, and are asked for none. Of a
    model with bodies nothing is said, (0, 0): a runtime's profile counts their nodes once a trip.
    """
    loaded = graph.load(path, weights=False)
    if loaded.functions or any(True for node in loaded.graph for _ in bodies_in(node)):
        return 0, 0
    found = [one for one in layers(path, "") if isinstance(one, dict) and str(one["op"]).endswith(WEIGHTED)]
    whole = sum(one["state"] == "integer" and not _reads_wide(one) for one in found)
    return whole, len(found) - whole


def _reads_wide(layer: Mapping[str, Json]) -> bool:
    reads = layer["reads"]
    return isinstance(reads, list) and any(isinstance(one, dict) and "16" in str(one.get("dtype")) for one in reads)


def _layer(node: ir.Node, library: str, *, integers: bool) -> Json:
    told: dict[str, Json] = {"node": str(node.name), "op": node.op_type, "state": "integer", "reason": ""}
    if integers:
        return told | {"reads": [], "makes": []} | _weights(node)
    inputs = [value for value in node.inputs if value is not None]
    given = [(value, found) for value in inputs if not _constant(value) and (found := _given(value)) is not None]
    told["reads"] = [tensor(str(value.name), grid, {}) for value, grid in given]
    kept = {value: grid for value in node.outputs if (grid := _taken(value)) is not None}
    told["makes"] = [tensor(str(value.name), grid, {}) for value, grid in kept.items()]
    told |= _weights(node)
    moving = [value for value in inputs if not _constant(value) and _is_float(value)]
    floats = [value for value in moving if _given(value) is None]
    if not given or floats:
        held = "weights" if "weights" in told else "float"
        reason = f"{library} left its input {floats[0].name!r} in float" if floats else "it reads nothing quantized"
        return told | {"state": held, "reason": reason}
    second = node.inputs[1] if node.op_type in WEIGHTED and len(node.inputs) > 1 else None
    if second is not None and second.const_value is not None and _is_float(second):
        return told | {"state": "float", "reason": f"{library} left its weights in float"}
    beside = [value for value in node.outputs if value not in kept and not value.is_graph_output() and _is_float(value)]
    if beside and not kept and not _clipped_behind(beside[0]):
        return told | {"state": "float", "reason": f"{library} left its result {beside[0].name!r} in float"}
    return told


def _clipped_behind(value: ir.Value) -> bool:
    """Whether a Relu or a Clip alone reads it whose result is quantized: a runtime computes both in one."""
    users = [use.node for use in value.uses()]
    return len(users) == 1 and users[0].op_type in ("Relu", "Clip") and _taken(users[0].outputs[0]) is not None


def _weights(node: ir.Node) -> dict[str, Json]:
    """Tell of the first constant of integers of 8 bits or fewer that a node reads, and how many scales it has."""
    whole = node.op_type.startswith(WHOLE)
    for place, value in enumerate(node.inputs):
        maker = value.producer() if value is not None else None
        pair = maker if maker is not None and maker.op_type == "DequantizeLinear" else None
        source = pair.inputs[0] if pair is not None else value if whole else None
        held = source.const_value if source is not None else None
        if source is None or held is None or held.dtype.name.lower() not in NARROW or held.size < 2:
            continue
        beside = pair.inputs[1] if pair is not None else next(iter(node.inputs[place + 1 :]), None)
        scales = beside.const_value.size if beside is not None and beside.const_value is not None else 1
        shape: list[Json] = [int(dim) for dim in held.shape.numpy()]
        dtype = graph.dtype_name(source)
        return {"weights": {"dtype": dtype, "shape": shape, "scales": int(scales), "sqnr_db": None}}
    return {}


def _given(value: ir.Value) -> Grid | None:
    """Return the grid that a tensor comes from."""
    maker = value.producer()
    return _grid(maker) if maker is not None and maker.op_type == "DequantizeLinear" else None


def _taken(value: ir.Value) -> Grid | None:
    """Return the grid that a tensor is brought to."""
    found = [use.node for use in value.uses() if use.node.op_type == "QuantizeLinear"]
    return _grid(found[0]) if found else None


def _grid(pair: ir.Node) -> Grid | None:
    """Read the grid of one of a pair, ``None`` where it isn't constant."""
    scale, zero = (
        pair.inputs[i].const_value if len(pair.inputs) > i and pair.inputs[i] is not None else None  # type: ignore[union-attr]  # not None
        for i in (1, 2)
    )
    if scale is None:
        return None
    dtype = "uint8" if zero is None else zero.dtype.name.lower()
    if dtype not in SPANS:
        return None
    zeros = np.zeros(scale.numpy().shape, np.int64) if zero is None else zero.numpy().astype(np.int64)
    return Grid(dtype, scale.numpy().astype(np.float32), zeros, None, *SPANS[dtype])


def _constant(value: ir.Value) -> bool:
    """Whether a tensor is a constant, or one that is dequantized."""
    if value.const_value is not None:
        return True
    maker = value.producer()
    source = maker.inputs[0] if maker is not None and maker.op_type == "DequantizeLinear" else None
    return source is not None and source.const_value is not None


def _is_float(value: ir.Value) -> bool:
    return value.dtype is None or graph.dtype_name(value) in FLOATS
