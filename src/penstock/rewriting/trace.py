"""The log of a rewriting: the graph as it came, without weights, and one event for each change.

Every node has an id that stays its own (``n12``). Base and events together give the graph after every change
(:func:`snapshot`), for whoever wants to look at it step by step.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from penstock import source_lines
from penstock.jsonable import from_json

if TYPE_CHECKING:
    import onnx_ir as ir

LONGEST_ATTRIBUTE = 8  # numbers of an attribute that are written out


@dataclass(frozen=True, slots=True)
class NodeRow:
    """One node: where it lies (``scope``: "" for the main graph, else owner and attribute), and how it is wired."""

    id: str
    scope: str
    op: str  # with the domain before it where it isn't standard
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, str]
    line: str = ""  # of the user's code


@dataclass(frozen=True, slots=True)
class Rewiring:
    """The inputs and outputs of a node that stays, as they are afterwards."""

    id: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Event:
    """One change: by which pass, what in a few words, which nodes went and came (before node ``before``)."""

    number: int
    rule: str
    what: str
    removed: tuple[str, ...]
    added: tuple[NodeRow, ...]
    before: str
    rewired: tuple[Rewiring, ...]
    saved_bytes: int  # of intermediate values per run, dynamic sizes counted as 1
    lines: tuple[str, ...]  # of the user's code behind the nodes that went
    order: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # scope → ids, where a pass moved nodes
    places: Mapping[str, str] = field(default_factory=dict)  # new nodes that came before another node than ``before``


@dataclass(slots=True)
class Trace:
    """The log while it grows. ``rows`` is the graph as it is now."""

    base: tuple[NodeRow, ...] = ()
    events: list[Event] = field(default_factory=list)
    rows: dict[ir.Node, NodeRow] = field(default_factory=dict)
    _ids: dict[ir.Node, str] = field(default_factory=dict)

    def begin(self, model: ir.Model) -> None:
        """Give every node its id, and keep the graph as the base."""
        for node, scope in self._walk(model):
            self.rows[node] = self._row(node, scope, self._id(node))
        self.base = tuple(self.rows.values())

    def add(
        self, rule: str, what: str, removed: Sequence[ir.Node], made: Sequence[ir.Node], updated: Iterable[ir.Node], *,
        before: ir.Node, saved: int, places: Mapping[ir.Node, ir.Node] | None = None,
    ) -> Event:  # fmt: skip
        """Log one rewrite that was carried out."""
        place = self.rows[before]
        others = {node: self.rows[other].id for node, other in (places or {}).items() if other is not before}
        lines = tuple(dict.fromkeys(line for node in removed if (line := self.rows[node].line)))
        added = []
        for node in made:
            self.rows[node] = self._row(node, place.scope, self._id(node))
            added.append(self.rows[node])
            added += self._bodies(node, self.rows[node].id)
        gone = tuple(row.id for node in removed for row in self._take_out(node))
        rewired = tuple(self._rewire(node) for node in updated)
        event = Event(
            len(self.events), rule, what, gone, tuple(added), place.id, rewired, saved, lines,
            places={self.rows[node].id: id for node, id in others.items()},
        )  # fmt: skip
        self.events.append(event)
        return event

    def compare(self, model: ir.Model, rule: str, what: str) -> Event:
        """Log what a pass did that works on the whole model, by comparing; it may have changed no node."""
        walked = list(self._walk(model))
        now = {node for node, _ in walked}
        gone = [node for node in self.rows if node not in now]
        removed = tuple(self.rows.pop(node).id for node in gone)
        added, rewired = [], []
        for node, scope in walked:
            before = self.rows.get(node)
            if before is None:
                self.rows[node] = self._row(node, scope, self._id(node))
                added.append(self.rows[node])
            elif not _stayed(node, scope, before) and (row := self._row(node, scope, before.id)) != before:
                if row == replace(before, inputs=row.inputs, outputs=row.outputs):
                    rewired.append(Rewiring(row.id, row.inputs, row.outputs))
                else:  # more than its wiring: it goes and comes back
                    removed = (*removed, row.id)
                    added.append(row)
                self.rows[node] = row
        order: dict[str, list[str]] = {}
        for node, scope in walked:
            order.setdefault(scope, []).append(self.rows[node].id)
        self.rows = {node: self.rows[node] for node, _ in walked}
        event = Event(
            len(self.events), rule, what, removed, tuple(added), "", tuple(rewired), 0, (),
            {scope: tuple(ids) for scope, ids in order.items()},
        )  # fmt: skip
        self.events.append(event)
        return event

    def replaced(self, old: ir.Node, new: ir.Node) -> None:
        """Let a copy of a node go by its id."""
        self._ids[new] = self._ids.pop(old)
        self.rows[new] = self.rows.pop(old)

    def id_of(self, node: ir.Node) -> str:
        """Return a node's id."""
        return self.rows[node].id

    def _id(self, node: ir.Node) -> str:
        return self._ids.setdefault(node, f"n{len(self._ids)}")

    def _walk(self, model: ir.Model) -> Iterable[tuple[ir.Node, str]]:
        yield from self._walk_graph(model.graph, "")
        for function in model.functions.values():
            yield from self._walk_graph(function.graph, f"{function.domain}::{function.name}")

    def _walk_graph(self, graph: ir.Graph, scope: str) -> Iterable[tuple[ir.Node, str]]:
        from penstock.rewriting.walk import bodies_of, has_attributes

        for node in graph:
            yield node, scope
            if not has_attributes(node):
                continue
            for attribute in node.attributes.values():
                for number, body in enumerate(bodies_of(attribute)):
                    owner = self._id(node)
                    yield from self._walk_graph(body, f"{owner}/{attribute.name}{number or ''}")

    def _bodies(self, node: ir.Node, owner: str) -> list[NodeRow]:
        """Give ids to what lies inside a new node."""
        from penstock.rewriting.walk import bodies_of

        found = []
        for attribute in node.attributes.values():
            for number, body in enumerate(bodies_of(attribute)):
                for inner in body:
                    row = self._row(inner, f"{owner}/{attribute.name}{number or ''}", self._id(inner))
                    self.rows[inner] = row
                    found += [row, *self._bodies(inner, row.id)]
        return found

    def _take_out(self, node: ir.Node) -> Iterable[NodeRow]:
        from penstock.rewriting.walk import inside

        for one in inside(node):
            if (row := self.rows.pop(one, None)) is not None:
                yield row

    def _rewire(self, node: ir.Node) -> Rewiring:
        row = replace(self.rows[node], inputs=_names(node.inputs), outputs=_names(node.outputs))
        self.rows[node] = row
        return Rewiring(row.id, row.inputs, row.outputs)

    def _row(self, node: ir.Node, scope: str, id: str) -> NodeRow:
        op = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        held = node.attributes.data
        attributes = {name: _text(attribute) for name, attribute in held.items()} if held else {}
        line = source_lines.line_of(node) if node.metadata_props else ""
        return NodeRow(id, scope, op, node.name or "", _names(node.inputs), _names(node.outputs), attributes, line)


def _stayed(node: ir.Node, scope: str, row: NodeRow) -> bool:
    """Whether a node without attributes is as its row says: most are, and a row takes long to make."""
    return (
        not (node.attributes.data or row.attributes or node.metadata_props or row.line or node.domain)
        and (node.op_type, node.name or "", scope) == (row.op, row.name, row.scope)
        and (_names(node.inputs), _names(node.outputs)) == (row.inputs, row.outputs)
    )


def _names(values: Iterable[ir.Value | None]) -> tuple[str, ...]:
    return tuple(["" if value is None else value.name or "" for value in values])


def _text(attribute: ir.Attr) -> str:
    """Return an attribute in a few words: numbers as they are, tensors and graphs by their size."""
    if attribute.is_ref():
        return f"@{attribute.ref_attr_name}"
    value = attribute.value
    if isinstance(value, int | float | str):
        return str(value)
    kind = attribute.type.name
    if kind == "TENSOR":
        return f"{value.dtype.name}{list(value.shape.numpy())}"
    if kind in ("GRAPH", "GRAPHS"):
        return "graph"
    if kind in ("INTS", "FLOATS", "STRINGS"):
        shown = ", ".join(str(item) for item in value[:LONGEST_ATTRIBUTE])
        return f"[{shown}{', …' if len(value) > LONGEST_ATTRIBUTE else ''}]"
    return kind.lower()


def read(text: str) -> tuple[list[NodeRow], list[Event]]:
    """Read what ``penstock optimize --trace`` writes: the graph as it came, and the events. Raises ``ValueError``."""
    found = json.loads(text)
    if not isinstance(found, dict) or not all(isinstance(found.get(name), list) for name in ("base", "events")):
        raise ValueError("this is no trace: it has no base and no events")
    return [from_json(NodeRow, row) for row in found["base"]], [from_json(Event, event) for event in found["events"]]


def snapshot(base: Sequence[NodeRow], events: Sequence[Event]) -> dict[str, list[NodeRow]]:
    """Return the graph after these events, scope → nodes in order."""
    rows = {row.id: row for row in base}
    order: dict[str, list[str]] = {}
    for row in base:
        order.setdefault(row.scope, []).append(row.id)
    for event in events:
        gone = set(event.removed)
        if event.order:
            for id in gone:
                rows.pop(id, None)
            rows |= {row.id: row for row in event.added}
            order = {scope: list(ids) for scope, ids in event.order.items()}
        else:
            for row in event.added:
                rows[row.id] = row
                place = order.setdefault(row.scope, [])
                before = event.places.get(row.id, event.before)
                at = place.index(before) if before in place else len(place)
                place.insert(at, row.id)
            for id in gone:
                if (old := rows.pop(id, None)) is not None:
                    order[old.scope].remove(id)
        for wiring in event.rewired:
            rows[wiring.id] = replace(rows[wiring.id], inputs=wiring.inputs, outputs=wiring.outputs)
    return {scope: [rows[id] for id in ids] for scope, ids in order.items() if ids}
