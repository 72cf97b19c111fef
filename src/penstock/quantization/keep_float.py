"""Keep float layers in float: ONNX Runtime quantizes weights between a DequantizeLinear and a QuantizeLinear.

Its WeightBiasQuantization takes any Conv, ConvTranspose, Gemm or MatMul there for one that was meant to compute on
integers, and rounds its weights on one grid for the whole tensor, in silence. A layer that was left in float for the
sake of accuracy would lose what it was left for. A Max with the lowest float behind the layer changes no value, and is
what the runtime doesn't look through.

It makes a MatMulNBits of a MatMul whose weights are dequantized and whose data isn't of 8 bits, and that operator
rounds its data to int8, unless the session asks for something else: activations of 16 bits would be none. The same Max,
behind the weights, keeps the MatMul.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from penstock.quantization.ends import CLIPS
from penstock.quantization.placement import WEIGHTED, Placement, weight_index

if TYPE_CHECKING:
    import onnx_ir as ir

    from penstock.quantization.grid import Grid

LOWEST = float(np.finfo(np.float32).min)


def keep_float(graph: ir.Graph, placement: Placement, lowest: Callable[[], ir.Value]) -> list[str]:
    """Put a Max behind each float layer that would be quantized; return their names."""
    import onnx_ir as ir

    done = []
    for node in list(graph):
        if node.op_type not in WEIGHTED or node.name in placement.weights or weight_index(node) < 0:
            continue
        if not _between(node):
            continue
        out = node.outputs[0]
        guard = ir.node("Max", [out, lowest()], name=f"{node.name}_stays_float")
        guard.outputs[0].name = f"{out.name}_stays_float"
        guard.outputs[0].type, guard.outputs[0].shape = out.type, out.shape
        for use in [*out.uses()]:
            if use.node is not guard:
                use.node.replace_input_with(use.idx, guard.outputs[0])
        graph.insert_after(node, guard)
        done.append(str(node.name))
    return done


def rounds_again(node: ir.Node, data: Grid) -> bool:
    """Whether ONNX Runtime would round a layer's 16-bit data to 8 bits."""
    return node.op_type == "MatMul" and data.dtype in ("int16", "uint16")


def _between(node: ir.Node) -> bool:
    """Whether a node reads what is dequantized, and what it makes is quantized, perhaps clipped first."""
    data = node.inputs[0].producer() if node.inputs[0] is not None else None
    if data is None or data.op_type != "DequantizeLinear" or node.outputs[0].is_graph_output():
        return False
    readers = [use.node for use in node.outputs[0].uses()]
    if len(readers) == 1 and readers[0].op_type in (*CLIPS, "LeakyRelu"):
        readers = [use.node for use in readers[0].outputs[0].uses()]
    return bool(readers) and any(reader.op_type == "QuantizeLinear" for reader in readers)
