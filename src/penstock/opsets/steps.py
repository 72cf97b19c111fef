"""Take a model from opset to opset: the graph with its bodies, and every local function by its own import."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock.graph import first_line
from penstock.opsets import Change, Direction, Refused, adapter, bodies, history
from penstock.opsets.fitting import fit, wrong_type
from penstock.opsets.place import Place
from penstock.passes._library import node_label
from penstock.rewriting import Refusal, Rewrite
from penstock.rewriting.editor import Editor
from penstock.rewriting.trace import Trace

if TYPE_CHECKING:
    import onnx_ir as ir

    from penstock.opsets.history import Schema

ROUNDS_OF_TYPES = 8  # functions in functions whose types are found from their callers


@dataclass(frozen=True, slots=True)
class Converted:
    """What was done. Where ``refused`` holds something, the model is half converted, and of no use."""

    changes: tuple[Change, ...]
    refused: tuple[Refused, ...]


def convert(model: ir.Model, target: int, *, stop: bool = False) -> Converted:
    """Convert a model in place, its functions included. Other domains' operators stay as they are.

    With ``stop`` it ends at the first opset that refuses a node, having told all nodes that are refused there.
    """
    steps = Steps(model)
    for name, graph, imports in steps.scopes():
        if (opset := imports.get("")) is not None:
            steps.walk(name, graph, opset, target, stop=stop)
            imports[""] = target
    steps.forget_types()
    return Converted(tuple(steps.changes), tuple(steps.refused))


class Steps:
    """A model on its way."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.changes: list[Change] = []
        self.refused: list[Refused] = []
        trace = Trace()
        trace.begin(model)
        self.editor = Editor(model, trace)
        self.known = self.editor.known
        self.place = self.editor.site = Place(self.known)
        self.place.free_name = self.editor.free_name
        self._from: dict[ir.Node, tuple[str, str]] = {}  # new nodes → label and operator of the one they came from
        self._stuck: set[ir.Node] = set()
        self._bound: set[ir.Value] = set()  # whose types were found from callers or bodies
        self._function = ""
        for function in model.functions.values():
            self.place.functions |= {id(function.graph), *(id(graph) for graph in function.subgraphs())}
        self.editor.find_owners()
        self._learn()

    def scopes(self) -> list[tuple[str, ir.Graph, dict[str, int]]]:
        """Return what has opset imports of its own: the graph, and each function."""
        main = [("", self.model.graph, self.model.opset_imports)]
        functions = [("::".join(filter(None, key)), function.graph, function.opset_imports)
                     for key, function in self.model.functions.items()]  # fmt: skip
        return main + functions

    def walk(self, name: str, graph: ir.Graph, opset: int, target: int, *, stop: bool = False) -> None:
        """Convert the nodes of one scope, opset by opset."""
        self._function = name
        way: Direction = "up" if target > opset else "down"
        while opset != target:
            after = opset + 1 if way == "up" else opset - 1
            boundary = max(opset, after)
            changed = history.changed_at(boundary)
            self.known.move_to(after)
            self.place.opset = after
            for node in [*graph.all_nodes()]:
                if node.domain == "" and node.op_type in changed and node not in self._stuck:
                    self._convert(node, way, boundary)
            opset = after
            if stop and any(one.function == name for one in self.refused):
                return

    # -- one node ------------------------------------------------------------------------------------------------------

    def _convert(self, node: ir.Node, way: Direction, boundary: int) -> None:
        label, op = self._from.get(node, (node_label(node), node.op_type))
        if node.graph is None:
            return  # it went with another one
        before = history.schema(node.op_type, boundary - 1 if way == "up" else boundary)
        after = history.schema(node.op_type, boundary if way == "up" else boundary - 1)
        try:
            if before is None:
                if way == "up" and after is not None:
                    raise Refusal(f"opset {boundary - 1} has no {node.op_type}; the model is not of its opset")
                if way == "up" or after is None:
                    raise Refusal(f"opset {boundary} has no {node.op_type}")
            self._one(node, way, boundary, before, after)
            return
        except Refusal as refusal:
            reason = str(refusal)
        except Exception as error:  # a node that makes no sense, or a mistake here: it is refused as well
            reason = f"its conversion failed: {type(error).__name__}: {first_line(error)}"
        self.editor.drop()
        self._stuck.add(node)
        self.refused.append(Refused(label, op, boundary, reason, self._function))

    def _one(self, node: ir.Node, way: Direction, boundary: int, before: Schema | None, after: Schema | None) -> None:
        self.place.node = node
        self.place.made.clear()
        rewrite: Rewrite | None = None
        try:
            if chosen := adapter(way, boundary, node.op_type):
                rewrite = chosen(node, self.place)
            if rewrite is None:
                if after is None:
                    raise Refusal(f"{node.op_type} came with opset {boundary}, and nothing before says the same")
                what = fit(node, self.place, before, after, way, boundary)
                if isinstance(what, Rewrite):
                    rewrite = what
                elif what:
                    self._log(node, boundary, what)
        except Refusal:
            self.editor.drop()
            if way == "up" or before is None or not bodies.has(before):
                raise
            rewrite = bodies.expanded(node, self.place, before, boundary)
        if rewrite is not None:
            self._carry_out(node, rewrite, boundary)

    def _carry_out(self, node: ir.Node, rewrite: Rewrite, boundary: int) -> None:
        origin = self._from.get(node, (node_label(node), node.op_type))
        made = [*self.place.made]
        self._log(node, boundary, rewrite.what)
        self.editor.carry_out(node, rewrite, "convert")
        placed = [one for one in made if one.graph is not None]
        if node.graph is None and node.name:
            for one in placed:
                if any(value in rewrite.values.values() for value in one.outputs):
                    one.name = node.name
                    break
        for one in placed:
            self._from[one] = origin
            known = history.schema(one.op_type, self.place.opset) if one.domain == "" else None
            if one.domain == "" and known is None:
                raise Refusal(f"it would need {one.op_type}, which opset {self.place.opset} doesn't have")
            if known is not None and (problem := wrong_type(one, self.place, known, None)):
                raise Refusal(f"{one.op_type} of opset {self.place.opset} {problem}")

    def _log(self, node: ir.Node, boundary: int, what: str) -> None:
        label, op = self._from.get(node, (node_label(node), node.op_type))
        self.changes.append(Change(label, op, boundary, what))

    # -- types ---------------------------------------------------------------------------------------------------------

    def _learn(self) -> None:
        """Find out types and shapes everywhere; a function's inputs are what all its callers give."""
        calls: dict[tuple[str, str, str], list[ir.Node]] = {key: [] for key in self.model.functions}
        for _, graph, _ in self.scopes():
            for node in graph.all_nodes():
                if (found := calls.get(node.op_identifier())) is not None:
                    found.append(node)
        for _ in range(ROUNDS_OF_TYPES if calls else 1):
            before = len(self._bound)
            self._learn_scope(self.model.graph, self.model.opset_imports)
            for key, function in self.model.functions.items():
                self._bind(function.inputs, calls[key])
                self._learn_scope(function.graph, function.opset_imports)
                for call in calls[key]:
                    for inner, outer in zip(function.outputs, call.outputs, strict=False):
                        if outer.type is None and inner.type is not None:
                            outer.type = inner.type
                            self._bound.add(outer)
            if len(self._bound) == before:
                return

    def _learn_scope(self, graph: ir.Graph, imports: dict[str, int]) -> None:
        self.known.move_to(imports.get("", history.newest()))
        self.known.learn(graph)

    def _bind(self, inputs: Iterable[ir.Value], calls: list[ir.Node]) -> None:
        for index, value in enumerate(inputs):
            given = [self.place.input(call, index) for call in calls]
            types = {None if one is None else one.type for one in given}
            shapes = {self.place.shape(one) for one in given}
            if value.type is None and len(types) == 1 and (type_ := types.pop()) is not None:
                value.type = type_
                self._bound.add(value)
            if value not in self.known.shapes and len(shapes) == 1 and (shape := shapes.pop()) is not None:
                self.known.shapes[value] = shape

    def forget_types(self) -> None:
        """Take away the types that were noted inside functions: a function is for all types."""
        for function in self.model.functions.values():
            for value in function.inputs:
                if value in self._bound:
                    value.type = None
            for node in function.all_nodes():
                for value in node.outputs:
                    with contextlib.suppress(ValueError):
                        value.type, value.shape = None, None
