"""Say an operator by its function body in the standard, in the words of an older opset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penstock.rewriting import Refusal, Rewrite

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from penstock.opsets.history import Schema
    from penstock.opsets.place import Place


def has(schema: Schema) -> bool:
    """Whether the standard defines an operator by others."""
    known: Any = schema  # onnx's stubs don't know these
    return bool(known.has_function or known.has_context_dependent_function)


def expanded(node: ir.Node, place: Place, schema: Schema, boundary: int) -> Rewrite:
    """Replace a node by its function's body, converted to the opset below ``boundary``. Raises ``Refusal``."""
    from penstock.opsets.steps import convert

    model, opset = _model(node, place, schema, boundary)
    done = convert(model, place.opset)
    if done.refused:
        first = done.refused[0]
        raise Refusal(f"its function body needs {first.op}: {first.reason}")
    return Rewrite(_moved(node, place, model), f"replaced by its function body of opset {opset}")


def _model(node: ir.Node, place: Place, schema: Schema, boundary: int) -> tuple[ir.Model, int]:
    """Build a model of the body, whose inputs are typed as the node's."""
    import onnx
    import onnx_ir as ir

    from penstock.passes._library import quiet

    with quiet():
        function, opset = _function(node, place, schema, boundary)
    proto = ir.serde.serialize_node(node)
    absent = {name for index, name in enumerate(function.input) if place.input(node, index) is None}
    attributes = {one.name: one for one in proto.attribute}
    defaults = {name: a.default_value for name, a in schema.attributes.items() if a.default_value.name}
    nodes = [_bound(one, absent, defaults | attributes) for one in function.node]
    inputs = [onnx.ValueInfoProto(name=name, type=_type(place, value))
              for name, value in zip(function.input, node.inputs, strict=False) if value is not None]  # fmt: skip
    outputs = [onnx.ValueInfoProto(name=name) for name, old in zip(function.output, node.outputs, strict=False)
               if old.uses() or old.is_graph_output()]  # fmt: skip
    graph = onnx.helper.make_graph(nodes, "body", inputs, outputs)
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)
    return ir.serde.deserialize_model(made), opset


def _function(node: ir.Node, place: Place, schema: Any, boundary: int) -> tuple[onnx.FunctionProto, int]:
    import onnx
    import onnx_ir as ir

    if schema.has_function:
        known = schema.function_opset_versions
        opset = max((one for one in known if one <= boundary), default=min(known))
        body = schema.get_function_with_opset_version(opset)
        return body if isinstance(body, onnx.FunctionProto) else onnx.FunctionProto.FromString(body), opset
    known = schema.context_dependent_function_opset_versions
    opset = max((one for one in known if one <= boundary), default=min(known))
    types = [onnx.TypeProto() if value is None else _type(place, value) for value in node.inputs]
    written = ir.serde.serialize_node(node).SerializeToString()
    try:
        body = schema.get_context_dependent_function_with_opset_version(
            opset, written, [type_.SerializeToString() for type_ in types]
        )
        return onnx.FunctionProto.FromString(body), opset
    except Exception as error:  # pybind raises what onnx's C++ raised
        raise Refusal(f"onnx gives no function body for it: {error}") from error


def _type(place: Place, value: ir.Value) -> onnx.TypeProto:
    import onnx_ir as ir

    from penstock.rewriting.knowledge import _type_proto

    if value.type is not None and not isinstance(value.type, ir.TensorType):
        return ir.serde.serialize_type(value.type)
    return _type_proto(place.dtype(value), place.shape(value))


def _bound(node: onnx.NodeProto, absent: set[str], attributes: dict[str, onnx.AttributeProto]) -> onnx.NodeProto:
    """Put the call's attributes into a node of the body, and into the bodies in it; drop inputs that aren't given."""
    import onnx

    made = onnx.NodeProto()
    made.CopyFrom(node)
    made.input[:] = ["" if name in absent else name for name in node.input]
    del made.attribute[:]
    for one in node.attribute:
        if one.ref_attr_name:
            if one.ref_attr_name in attributes:
                made.attribute.add().CopyFrom(attributes[one.ref_attr_name])
                made.attribute[-1].name = one.name
            continue
        made.attribute.add().CopyFrom(one)
        if one.HasField("g"):
            inner = made.attribute[-1].g
            for index, kept in enumerate(one.g.node):
                inner.node[index].CopyFrom(_bound(kept, absent, attributes))
    return made


def _moved(node: ir.Node, place: Place, model: ir.Model) -> dict[ir.Value, ir.Value]:
    """Take the nodes over from the model of the body; return what becomes of the node's outputs."""
    from onnx_ir import convenience

    graph = model.graph
    given = [value for value in node.inputs if value is not None]
    read = [old for old in node.outputs if old.uses() or old.is_graph_output()]
    results = dict(zip(read, list(graph.outputs), strict=True))
    for mine, theirs in zip(list(graph.inputs), given, strict=True):
        if any(value is mine for value in results.values()):
            results = {old: theirs if value is mine else value for old, value in results.items()}
        convenience.replace_all_uses_with(mine, theirs, replace_graph_outputs=True)
    graph.outputs.clear()
    for value in list(graph.initializers.values()):
        assert value.const_value is not None
        fresh = place.constant(value.const_value.numpy(), value.const_value.dtype)
        results = {old: fresh if one is value else one for old, one in results.items()}
        convenience.replace_all_uses_with(value, fresh)
    for one in list(graph):
        graph.remove(one)
        place.made.append(one)
        for value in (value for body in bodies_in(one) for value in _values(body)):
            value.name = place.free_name(f"{node.outputs[0].name}_{value.name}")
    return results


def bodies_in(node: ir.Node) -> list[ir.Graph]:
    """Return the graphs in a node's attributes."""
    from penstock.rewriting.walk import bodies_of

    return [body for attribute in node.attributes.values() for body in bodies_of(attribute)]


def _values(graph: ir.Graph) -> list[ir.Value]:
    made = [value for one in graph.all_nodes() for value in one.outputs]
    inner = [value for one in graph.all_nodes() for body in bodies_in(one) for value in body.inputs]
    return [*graph.inputs, *made, *inner]
