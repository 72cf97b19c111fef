"""Submodules that stay visible in an export: their operators become a local function, called where the submodule was.

dynamo notes for each operator the submodules whose ``forward`` it came from. All operators of one call go into a
function; weights become inputs of it, so that calls of equal structure share one. Another structure gets a function of
its own, with a number behind the name. Calls inside calls are functions that call functions.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from penstock.errors import InputError
from penstock.frontends._torch_lines import STACK
from penstock.graph import KEPT_DOMAIN

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

_SCOPES = "pkg.torch.onnx.name_scopes"
_ENTERED = re.compile(r'File "[^"]*", line \d+, in _wrapped_call_impl\b')
_KIND = "pkg.torch.export.graph_signature.InputSpec.kind"


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of a submodule: its key differs between two calls of one submodule, its path doesn't."""

    key: str
    path: str
    cls: str  # with its module


_Stack = tuple[_Call, ...]  # from the whole model inwards


@dataclass(slots=True)
class _Outliner:
    model: ir.Model
    stacks: dict[ir.Node, _Stack]
    made: dict[bytes, str] = field(default_factory=dict)  # structure → name of the function
    taken: dict[str, int] = field(default_factory=dict)  # class → how many functions are named after it


def outline(model: ir.Model, program: torch.export.ExportedProgram, classes: Sequence[str]) -> None:
    """Put each call of a submodule of these classes into a function.

    Raises ``InputError`` for a class that isn't there, and for a call whose operators can't be cut out.
    """
    work = _Outliner(model, _stacks(model, program))
    there = {call: stack[: i + 1] for stack in work.stacks.values() for i, call in enumerate(stack) if i}
    _need_there(classes, there, program)
    wanted = [call for call in there if any(_named(call.cls, name) for name in classes)]
    # the innermost first; else in the graph's order, so that the first call's function bears the plain name
    for call in sorted(wanted, key=lambda call: -len([one for one in there[call] if one in wanted])):
        _cut(work, call, there[call][:-1], there)
    model.graph.sort()
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del model.graph.initializers[name]


def calls(model: ir.Model) -> dict[str, list[str]]:
    """Return the kept functions of a model, each with the submodules that it stands for, or the functions it is in."""
    found: dict[str, list[str]] = {}
    for node in model.graph.all_nodes():
        if node.domain == KEPT_DOMAIN:
            found.setdefault(node.op_type, []).append(str(node.name))
    for function in model.functions.values():
        for name in dict.fromkeys(node.op_type for node in function.all_nodes() if node.domain == KEPT_DOMAIN):
            found.setdefault(name, []).append(f"in {function.name}")
    return dict(sorted(found.items()))


def _stacks(model: ir.Model, program: torch.export.ExportedProgram) -> dict[ir.Node, _Stack]:
    made: dict[str, _Stack] = {}
    for fx in program.graph.nodes:
        stack: dict[str, tuple[str, Any]] = fx.meta.get("nn_module_stack") or {}
        made[fx.name] = tuple(
            _Call(key, path, cls if isinstance(cls, str) else f"{cls.__module__}.{cls.__qualname__}")
            for key, (path, cls) in stack.items()
        )
    found = {}
    for node in model.graph:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
        if scopes and made.get(scopes[-1]):
            found[node] = made[scopes[-1]]
    return found


def _named(cls: str, name: str) -> bool:
    return name in (cls, cls.rpartition(".")[2])


def _need_there(classes: Sequence[str], calls: Iterable[_Call], program: torch.export.ExportedProgram) -> None:
    import torch

    bodies = any(isinstance(part, torch.fx.GraphModule) for part in program.graph_module.children())
    there = sorted({call.cls.rpartition(".")[2] for call in calls})
    for name in classes:
        if not any(_named(call.cls, name) for call in calls):
            what = f"no operator of the model comes from a submodule of the class {name!r}"
            do = f"there are: {', '.join(there) or 'none'}; the exporter merges some into others, --raw leaves them"
            if bodies:
                do += "; in the bodies of torch.cond and while_loop none is kept: keep the module around them, or none"
            raise InputError("no-such-class", what, where=f"--keep-function {name}", do=do)


def _cut(work: _Outliner, call: _Call, around: _Stack, there: Iterable[_Call]) -> None:
    """Move one call's nodes into a function, or call the one that is there already."""
    import onnx_ir as ir

    graph = work.model.graph
    nodes = _closed(work, [node for node in graph if call in work.stacks.get(node, ())], call)
    inside, owners = set(nodes), _owners(graph)
    held = {value for node in nodes for value in node.outputs}
    outputs = [
        value
        for node in nodes
        for value in node.outputs
        if value.is_graph_output() or any(owners[use.node] not in inside for use in value.uses())
    ]
    read = list(dict.fromkeys(value for node in nodes for value in _reads(node) if value not in held))
    read = [value for value in read if not value.is_initializer()] + [v for v in read if v.is_initializer()]
    arguments = [value for value in read if not _is_constant(value)]
    inner = {value: ir.Value() for value in arguments}
    constants = {
        value: ir.Node("", "Constant", [], [_attribute(value)], num_outputs=1) for value in read if value not in inner
    }
    results = [ir.Value(name=value.name, type=value.type, shape=value.shape) for value in outputs]
    made = ir.Node(KEPT_DOMAIN, "", arguments, outputs=results, name=f"{call.path}#{len(work.stacks)}")
    if called := _call_site(nodes, work.stacks, len(around)):
        made.metadata_props[STACK] = called
    graph.insert_before(nodes[0], made)
    for value, result in zip(outputs, results, strict=True):
        for use in list(value.uses()):
            if owners[use.node] not in inside:
                use.node.replace_input_with(use.idx, result)
        for index, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[index] = result
    renamed = inner | {value: node.outputs[0] for value, node in constants.items()}
    for node in nodes:
        _replace(node, renamed)
    graph.remove(nodes)
    body = ir.Graph(list(inner.values()), outputs, nodes=[*constants.values(), *nodes])
    paths = [call.path, *dict.fromkeys(one.path for one in there if one.cls == call.cls)]
    _canonical(body, list(zip(inner.values(), arguments, strict=True)), paths)
    body.opset_imports.update({d: v for d, v in work.model.opset_imports.items() if d in _domains(nodes) | {""}})
    made.op_type = _adopt(work, call, body)
    made.name = call.path if call.key.partition("@")[1] == "" else f"{call.path}@{call.key.partition('@')[2]}"
    work.stacks[made] = around


def _call_site(nodes: Sequence[ir.Node], stacks: Mapping[ir.Node, _Stack], outside: int) -> str:
    """Return the stack at which a submodule was called that has ``outside`` modules around it, "" where none tells.

    A call of a module is two frames of torch's; of those in a node's stack the last belongs to its own module.
    """
    for node in nodes:
        text, inside = node.metadata_props.get(STACK, ""), len(stacks.get(node, ())) - outside
        frames = [match.start() for match in _ENTERED.finditer(text)]
        if 0 < inside <= len(frames):
            return text[: frames[-inside]].rstrip()
    return ""


def _closed(work: _Outliner, nodes: list[ir.Node], call: _Call) -> list[ir.Node]:
    """Add what lies between the nodes and belongs to no submodule. Raises ``InputError`` where others lie there."""
    graph = work.model.graph
    owners = _owners(graph)
    after = set(nodes)  # what reads them, directly or through others
    for node in graph:
        if any(value.producer() in after for value in _reads(node)):
            after.add(node)
    before = set(nodes)
    for node in reversed(graph):
        users = {owners[use.node] for value in node.outputs for use in value.uses()}
        if users & before:
            before.add(node)
    between = (after & before) - set(nodes)
    for node in between:
        if node in work.stacks:
            what = f"the submodule {call.path!r} can't be cut out: {node.op_type} of another lies between its operators"
            do = "keep the module around it as a function instead, or leave this one out"
            raise InputError("function-not-closed", what, where=f"--keep-function {call.cls}", do=do)
    return [node for node in graph if node in between or node in set(nodes)]


def _owners(graph: ir.Graph) -> dict[ir.Node, ir.Node]:
    """Return for each node, those of bodies too, the node of the main graph that holds it (maybe itself)."""
    return {inner: node for node in graph for inner in [node, *_nested(node)]}


def _nested(node: ir.Node) -> list[ir.Node]:
    return [deeper for body in _inner(node) for inner in body for deeper in [inner, *_nested(inner)]]


def _inner(node: ir.Node) -> list[ir.Graph]:
    import onnx_ir as ir

    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            found.extend(attribute.as_graphs())
    return found


def _reads(node: ir.Node) -> list[ir.Value]:
    """List what a node reads, and what its bodies read from around them."""
    found = [value for value in node.inputs if value is not None]
    for body in _inner(node):
        own = {*body.inputs, *body.initializers.values(), *(value for inner in body for value in inner.outputs)}
        found += [value for inner in body for value in _reads(inner) if value not in own]
        found += [value for value in body.outputs if value not in own]
    return found


def _replace(node: ir.Node, values: dict[ir.Value, ir.Value]) -> None:
    for index, value in enumerate(node.inputs):
        if value in values:
            node.replace_input_with(index, values[value])
    for body in _inner(node):
        for inner in body:
            _replace(inner, values)
        for index, output in enumerate(body.outputs):
            if output in values:
                body.outputs[index] = values[output]


def _is_constant(value: ir.Value) -> bool:
    """Tell whether an initializer is no weight: sizes, axes and single numbers that the exporter wrote."""
    import onnx_ir as ir

    if not value.is_initializer() or value.const_value is None or _KIND in value.metadata_props:
        return False
    return value.const_value.size == 1 or (value.dtype in (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL))


def _attribute(value: ir.Value) -> ir.Attr:
    import onnx_ir as ir

    assert value.const_value is not None
    return ir.AttrTensor("value", ir.tensor(value.const_value.numpy()))


def _within(name: str, paths: Sequence[str]) -> str:
    """Return a weight's name inside the submodule that it is of; of a shared one that may be another call's path."""
    return next((name[len(path) + 1 :] for path in paths if name.startswith(f"{path}.")), "")


def _canonical(body: ir.Graph, inputs: list[tuple[ir.Value, ir.Value]], paths: Sequence[str]) -> None:
    """Name values by their place, weights as the submodule knows them; drop types, in which calls may differ."""
    taken: set[str] = set()
    for number, (value, outside) in enumerate(inputs):
        name = str(outside.name)
        relative = _within(name, paths) if outside.is_initializer() else ""
        value.name = relative if relative and relative not in taken else f"input.{number}"
        taken.add(str(value.name))
    for number, node in enumerate(body.all_nodes()):
        node.name = f"{node.op_type}.{number}"
        stack = node.metadata_props.get(STACK)
        node.metadata_props.clear()
        if stack:
            node.metadata_props[STACK] = stack
        node.doc_string = None
        for index, value in enumerate(node.outputs):
            value.name = f"{node.op_type}.{number}" + (f".{index}" if index else "") if value.name else value.name
            value.metadata_props.clear()
            value.shape, value.type = None, None
        for place, deeper in enumerate(_inner(node)):
            deeper.name, deeper.doc_string = f"{node.op_type}.{number}.{place}", None
            for index, value in enumerate(deeper.inputs):
                value.name = f"{node.op_type}.{number}.{place}.{index}"


def _domains(nodes: Iterable[ir.Node]) -> set[str]:
    found: set[str] = set()
    for node in nodes:
        found |= {node.domain}.union(*(_domains(body) for body in _inner(node)))
    return found


def _adopt(work: _Outliner, call: _Call, body: ir.Graph) -> str:
    """Return the name of the function with this body, which is added where there is none."""
    import onnx_ir as ir

    work.model.opset_imports[KEPT_DOMAIN] = 1
    name = call.cls.rpartition(".")[2]
    plain = ir.Function(KEPT_DOMAIN, name, graph=body, attributes=())
    # calls from other lines have other stacks, and the same lines of the class: the first call's stand for all
    stacks = {node: node.metadata_props.pop(STACK) for node in plain.all_nodes() if STACK in node.metadata_props}
    structure = name.encode() + ir.serde.serialize_function(plain).SerializeToString(deterministic=True)
    for node, stack in stacks.items():
        node.metadata_props[STACK] = stack
    if structure not in work.made:
        work.taken[name] = work.taken.get(name, 0) + 1
        if work.taken[name] > 1:
            plain.name = f"{name}_{work.taken[name]}"
        work.made[structure] = plain.name
        work.model.functions[plain.identifier()] = plain
    return work.made[structure]
