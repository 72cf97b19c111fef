"""Some nodes of a model as a model of its own: what they read from outside goes in, what others read of them comes out.

Constants that they read come along. Where a type or shape isn't known, the input or output is declared without it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from penstock.rewriting.knowledge import Knowledge, constant, to_ir
from penstock.rewriting.walk import inside

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir


def extract(
    model: ir.Model, nodes: Collection[ir.Node], shown: Collection[str] = (),
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> bytes:  # fmt: skip
    """Return the model of these nodes, serialized, in the order of the graph, at the model's opsets.

    ``shown`` names what comes out although no other node reads it; ``shapes`` are those of inner tensors that go in.
    """
    import onnx
    import onnx_ir as ir

    known = Knowledge(model)
    known.learn(model.graph)
    wanted = set(nodes)
    chosen = [node for node in model.graph.all_nodes() if node in wanted]
    within = {inner for node in chosen for inner in inside(node)}
    proto = onnx.ModelProto(ir_version=model.ir_version or 10)
    proto.opset_import.extend(onnx.helper.make_opsetid(*item) for item in model.opset_imports.items())
    proto.graph.name = "extract"
    proto.graph.node.extend(ir.serde.serialize_node(node) for node in chosen)
    read = dict.fromkeys(value for node in chosen for one in inside(node) for value in one.inputs if value is not None)
    made = {value for node in within for value in node.outputs}
    made |= {
        value for node in within for body in _bodies(node) for value in (*body.inputs, *body.initializers.values())
    }
    for value in read:
        if value in made:
            continue
        tensor = constant(value)
        if tensor is not None and value.producer() is None:
            proto.graph.initializer.append(ir.serde.serialize_tensor(_named(tensor, str(value.name))))
        else:
            inner = (shapes or {}).get(str(value.name)) if value.producer() is not None else None
            proto.graph.input.append(_declared(value, known, inner))
    for node in chosen:
        for value in node.outputs:
            read_outside = any(use.node not in within for use in value.uses())
            if value.is_graph_output() or read_outside or value.name in shown:
                proto.graph.output.append(_declared(value, known))
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def _bodies(node: ir.Node) -> list[ir.Graph]:
    from penstock.rewriting.walk import bodies_of

    return [body for attribute in node.attributes.values() for body in bodies_of(attribute)]


def _named(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    import onnx_ir as ir

    return tensor if tensor.name == name else ir.tensor(tensor.numpy(), dtype=tensor.dtype, name=name)


def _declared(value: ir.Value, known: Knowledge, given: Sequence[int] | None = None) -> onnx.ValueInfoProto:
    import onnx_ir as ir

    shape = known.shape(value)
    described = ir.Shape(given) if given is not None else None if shape is None else to_ir(shape)
    plain = ir.Value(name=value.name, type=value.type, shape=described)
    return ir.serde.serialize_value(plain)
