"""What must hold after a third party's pass: same interface, same opsets, a graph at least as valid as before."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from penstock import graph, guard
from penstock.analysis.weightless import weightless
from penstock.passes._library import expanded_size, quiet
from penstock.signature import Signature

if TYPE_CHECKING:
    import onnx_ir as ir

INLINED_NODES = 10_000  # functions that stand for more are checked by their bodies alone


@dataclass(frozen=True, slots=True)
class Soundness:
    """What the model was like before the first pass."""

    signature: Signature
    opsets: dict[str, int]
    domains: frozenset[str]
    valid: bool  # it passes onnx.checker
    full: bool  # it passes the checker's shape inference as well

    @classmethod
    def of(cls, model: ir.Model) -> Soundness:
        """Look at the model as it is."""
        looked_into = not model.functions or expanded_size(model, INLINED_NODES) < INLINED_NODES
        valid = not _checker(model, full=False)
        full = valid and looked_into and not _checker(model, full=True)
        return cls(graph.signature(model), dict(model.opset_imports), frozenset(_domains(model)), valid, full)

    def complaint(self, model: ir.Model) -> str:
        """Say what is wrong with the model after a pass; empty where nothing is."""
        if graph.signature(model) != self.signature:
            return "it changes the model's inputs or outputs"
        for domain, version in model.opset_imports.items():
            if domain in self.opsets and self.opsets[domain] != version:
                return f"it changes the opset of {domain or 'ai.onnx'!r} from {self.opsets[domain]} to {version}"
        if new := sorted(_domains(model) - self.domains):
            return f"it brings in operators of {new[0]!r}"
        if broken := _miswired(model):
            return broken
        complaint = _checker(model, full=self.full) if self.valid else ""
        return f"onnx.checker refuses the result: {complaint}" if complaint else ""


def _domains(model: ir.Model) -> set[str]:
    nodes = [*model.graph.all_nodes(), *(node for f in model.functions.values() for node in f.all_nodes())]
    return {node.domain for node in nodes}


def _miswired(model: ir.Model) -> str:
    return _unready(model.graph, set(), set())


def _unready(scope: ir.Graph, ready: set[ir.Value], names: set[str]) -> str:
    """Find a node that reads what isn't computed yet, or a name that is given twice; inner graphs see outer values."""
    ready = ready | {*scope.inputs, *scope.initializers.values()}
    names = names | {str(value.name) for value in ready}
    for node in scope:
        for value in node.inputs:
            if value is not None and value not in ready:
                return f"the node {node.name!r} reads {value.name!r}, which is not computed before it"
        for inner in _bodies(node):
            if found := _unready(inner, ready, names):
                return found
        for value in node.outputs:
            if value.name and value.name in names:
                return f"the name {value.name!r} is given to two values"
            ready.add(value)
            names.add(str(value.name))
    missing = next((value for value in scope.outputs if value not in ready), None)
    return "" if missing is None else f"the output {missing.name!r} is not computed"


def _bodies(node: ir.Node) -> Iterable[ir.Graph]:
    import onnx_ir as ir

    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _checker(model: ir.Model, *, full: bool) -> str:
    """Return onnx.checker's complaint about the model without its large weights, or nothing."""
    import onnx

    try:
        with quiet(), guard.limited_memory():
            onnx.checker.check_model(weightless(model), full_check=full)
    except Exception as error:  # the checker, protobuf and onnx-ir each raise types of their own
        return graph.first_line(error)
    return ""


def refusal_of(path: Path, *, full: bool = False) -> str:
    """Return what onnx.checker says against a model file, or nothing; weights beside it aren't read.

    ``full`` adds the checker's shape inference.
    """
    import onnx

    proto = onnx.ModelProto()
    try:
        with quiet(), guard.limited_memory():
            data = path.read_bytes()
            proto.ParseFromString(data)
            beside = any(tensor.data_location == tensor.EXTERNAL for tensor in proto.graph.initializer)
            onnx.checker.check_model(weightless(graph.parse(path)) if beside else data, full_check=full)
    except Exception as error:  # the checker, protobuf and onnx-ir each raise types of their own
        return graph.first_line(error)
    return ""
