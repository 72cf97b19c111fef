"""Unfuse: ONNX Runtime's FusedConv taken apart into standard operators, which quantizers know and every runtime has.

A model that was saved after ONNX Runtime optimized it holds them: Y = activation(Conv(X, W, B) + Z), where Z and the
activation may be missing. The runtime fuses what stays in float again when it loads the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from penstock import graph

if TYPE_CHECKING:
    import onnx_ir as ir

DOMAIN, OPERATOR = "com.microsoft", "FusedConv"
OF_ACTIVATION = ("activation", "activation_params")
CLIP_HAS_INPUTS = 11  # the opset from which on Clip's limits are inputs


def unfuse(model: ir.Model) -> int:
    """Take every FusedConv whose activation is known apart, in place; return how many."""
    opset = model.opset_imports.get("") or 1
    found = [node for node in graph.all_nodes(model) if (node.domain, node.op_type) == (DOMAIN, OPERATOR)]
    return sum(_apart(node, opset) for node in found)


def _apart(node: ir.Node, opset: int) -> bool:
    import onnx_ir as ir

    kind = node.attributes.get_string("activation", "")
    params = [float(one) for one in node.attributes.get_floats("activation_params", ())]
    make = ACTIVATIONS.get(kind)
    if (kind and make is None) or node.graph is None:
        return False
    output, name = node.outputs[0], node.name or output_name(node)
    kept = [one for key, one in node.attributes.items() if key not in OF_ACTIVATION]
    made = [ir.Node("", "Conv", list(node.inputs[:3]), kept, name=name)]
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        made.append(ir.Node("", "Add", [made[-1].outputs[0], node.inputs[3]], name=f"{name}_sum"))
    if make is not None:
        made += make(made[-1].outputs[0], params, f"{name}_{kind.lower()}", opset)
    for one in (one for one in made if one.op_type != "Constant"):
        one.outputs[0].type, one.outputs[0].shape = output.type, output.shape
    for one in made[:-1]:
        one.outputs[0].name = f"{one.name}_output"
    result, held = made[-1].outputs[0], node.graph
    result.name = output.name
    ir.convenience.replace_all_uses_with(output, result, replace_graph_outputs=True)
    held.insert_before(node, made)
    held.remove(node, safe=True)
    return True


def output_name(node: ir.Node) -> str:
    """Return a name for a node that has none, after what it makes."""
    return node.outputs[0].name or node.op_type


def _plain(op: str, *names: str) -> Callable[[ir.Value, Sequence[float], str, int], list[ir.Node]]:
    """Return what makes an activation whose parameters are attributes of these names."""

    def make(value: ir.Value, params: Sequence[float], name: str, opset: int) -> list[ir.Node]:
        import onnx_ir as ir

        given = [ir.AttrFloat32(key, one) for key, one in zip(names, params, strict=False)]
        return [ir.Node("", op, [value], given, name=name)]

    return make


def _clip(value: ir.Value, params: Sequence[float], name: str, opset: int) -> list[ir.Node]:
    import numpy as np
    import onnx_ir as ir

    if opset < CLIP_HAS_INPUTS:
        return _plain("Clip", "min", "max")(value, params, name, opset)
    limits = [
        ir.tensor(np.float32(one), name=f"{name}_{end}") for end, one in zip(("min", "max"), params, strict=False)
    ]
    held = [ir.Node("", "Constant", [], [ir.AttrTensor("value", one)], name=one.name) for one in limits]
    for one in held:
        one.outputs[0].name = str(one.name)
    return [*held, ir.Node("", "Clip", [value, *(one.outputs[0] for one in held)], name=name)]


ACTIVATIONS: Mapping[str, Callable[[ir.Value, Sequence[float], str, int], list[ir.Node]]] = {
    "Relu": _plain("Relu"),
    "Tanh": _plain("Tanh"),
    "Sigmoid": _plain("Sigmoid"),
    "LeakyRelu": _plain("LeakyRelu", "alpha"),
    "HardSigmoid": _plain("HardSigmoid", "alpha", "beta"),
    "Clip": _clip,
}
