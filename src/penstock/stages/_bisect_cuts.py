"""Cuts of a model: some of its nodes, run alone on one side, and on the other what makes the same tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from penstock import graph, store
from penstock.backends import Backend, Loadable
from penstock.deployment import Deployment
from penstock.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Side:
    """One way to compute: a model, a backend, and how messages call it."""

    label: str
    model: ir.Model
    backend: Backend
    deployment: Deployment


@dataclass(slots=True)
class Pair:
    """Both sides, with the nodes of the first in order, and those of the second by what they make."""

    one: Side
    other: Side
    feeds: Arrays
    nodes: list[ir.Node] = field(default_factory=list)
    makers: dict[str, ir.Node] = field(default_factory=dict)
    probes: int = 0

    def __post_init__(self) -> None:
        self.nodes = [node for node in self.one.model.graph if node.outputs]
        self.makers = {str(v.name): node for node in self.other.model.graph for v in node.outputs if v.name}

    def results(self, place: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Run so many nodes of the first side, and of the other those that make the same tensors."""
        ours = run(self.one, self.nodes[:place], self.feeds)
        return ours, run(self.other, self._before(ours), self.feeds)

    def apart(self, nodes: Sequence[ir.Node], feeds: Arrays) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Run these nodes alone, and of the other side those of the same results."""
        return run(self.one, nodes, feeds), run(self.other, self.like(nodes), feeds)

    def like(self, nodes: Sequence[ir.Node]) -> list[ir.Node]:
        """Return the other side's nodes that make what these make."""
        names = [str(value.name) for node in nodes for value in node.outputs]
        return [*dict.fromkeys(self.makers[name] for name in names if name in self.makers)]

    def _before(self, wanted: Mapping[str, object]) -> list[ir.Node]:
        """Return the other side's nodes that make these tensors, and all before them."""
        waiting = [self.makers[name] for name in wanted if name in self.makers]
        found: dict[ir.Node, None] = {}
        while waiting:
            node = waiting.pop()
            if node in found:
                continue
            found[node] = None
            waiting += [p for v in reads(node) if (p := v.producer()) is not None and p.graph is node.graph]
        return [*found]


def run(side: Side, nodes: Sequence[ir.Node], feeds: Arrays) -> dict[str, np.ndarray]:
    """Run some nodes of a side's model on a model of their own; return what comes out, by name."""
    from penstock.rewriting.extract import extract

    with store.scratch() as work:
        path = work / "cut.onnx"
        store.write_bytes(path, extract(side.model, nodes))
        signature = graph.signature(graph.load(path, weights=False))
        lacking = [spec.name for spec in signature.inputs if spec.name not in feeds]
        if lacking:
            what = f"the tensor {lacking[0]!r} is read by a node and isn't known at the cut"
            raise InputError("cannot-cut", what, where=side.label, do="compare models of the same structure")
        try:
            session = side.backend.load(Loadable(path), side.deployment)
        except InputError as error:
            what = f"{side.label} can't load a part of the model: {error.what}"
            raise InputError(
                "cannot-cut", what, where=side.label, do="choose another backend to compare with"
            ) from error
        try:
            found = session.run({spec.name: feeds[spec.name] for spec in signature.inputs})
        finally:
            session.close()
        return dict(zip([spec.name for spec in signature.outputs], found, strict=True))


def reads(node: ir.Node) -> list[ir.Value]:
    """Return what a node reads, its bodies included, of the graph around it."""
    from penstock.rewriting.walk import inside

    within = [*inside(node)]
    made = {value for one in within for value in one.outputs}
    found = dict.fromkeys(value for one in within for value in one.inputs if value is not None and value not in made)
    return [value for value in found if value.producer() is None or value.producer() not in within]
