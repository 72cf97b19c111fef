"""Cuts of a model: some of its nodes, run alone on one side, and on the other what makes the same tensors.

Tensors go by their names. Where one model has a pair of QuantizeLinear and DequantizeLinear behind a tensor and the
other has none, the counterpart of the tensor is what the pair makes of it: an activation that a quantizer took into the
node before is there, in the bounds of the grid. Nodes that compute from constants alone, such as the DequantizeLinear
of weights, are no places to cut at: they go with the nodes that read them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from penstock import graph, store
from penstock.backends import Loadable
from penstock.deployment import Deployment
from penstock.errors import InputError
from penstock.measures import Runnable

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    Arrays = Mapping[str, np.ndarray]


@dataclass(slots=True)
class Side:
    """One way to compute: a model, a backend, and how messages call it."""

    label: str
    model: ir.Model
    deployment: Deployment
    libraries: tuple[str, ...] = ()  # of custom operators
    constant: set[ir.Node] = field(default_factory=set)  # nodes that compute from constants alone

    def __post_init__(self) -> None:
        for node in self.model.graph:
            makers = [value.producer() for value in reads(node)]
            known = all(
                maker in self.constant if maker is not None else value.const_value is not None
                for value, maker in zip(reads(node), makers, strict=True)
            )
            if known and node.inputs and not any(value.is_graph_output() for value in node.outputs):
                self.constant.add(node)

    def needed(self, nodes: Iterable[ir.Node]) -> list[ir.Node]:
        """Return these nodes and those that make what they read of constants."""
        found = dict.fromkeys(nodes)
        waiting = [*found]
        while waiting:
            makers = [value.producer() for value in reads(waiting.pop())]
            new = [maker for maker in makers if maker in self.constant and maker not in found]
            found |= dict.fromkeys(maker for maker in new if maker is not None)
            waiting += [maker for maker in new if maker is not None]
        return [*found]


@dataclass(slots=True)
class Pair:
    """Both sides, with the nodes of the first in order, and those of the second by what they make."""

    one: Side
    other: Side
    feeds: Arrays
    nodes: list[ir.Node] = field(default_factory=list)
    makers: dict[str, ir.Node] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)  # the first side's tensors → their counterparts
    probes: int = 0

    def __post_init__(self) -> None:
        self.nodes = [node for node in self.one.model.graph if node.outputs and node not in self.one.constant]
        self.makers = {str(v.name): node for node in self.other.model.graph for v in node.outputs if v.name}
        self.names = _counterparts(self.one.model, self.other.model)

    def results(self, place: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Run so many nodes of the first side, and of the other those that make the same tensors.

        Both come by the first side's names. Raises ``InputError`` where the other side hasn't all tensors of the cut: a
        part of them tells nothing of the rest.
        """
        nodes, ends = self.nodes[:place], _ends(self.nodes[:place])
        known = [name for name in ends if name in self.names]
        alone = [name for name in ends if name not in self.names]
        if not known or (alone and place < len(self.nodes)):
            what = f"only {self.one.label} has the tensor {alone[0]!r}" if alone else "nothing comes out of the cut"
            raise InputError("cannot-cut", what, where=self.one.label, do="compare models of the same tensors")
        ours = run(self.one, nodes, self.feeds)
        return ours, self._theirs(known, self.feeds)

    def apart(self, nodes: Sequence[ir.Node], feeds: Arrays) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Run these nodes alone, and of the other side those of the same results, by the first side's names."""
        ours = run(self.one, nodes, feeds)
        return ours, self._theirs([name for name in ours if name in self.names], self.given(feeds))

    def given(self, feeds: Arrays) -> dict[str, np.ndarray]:
        """Return arrays by the other side's names."""
        return {self.names[name]: array for name, array in feeds.items() if name in self.names}

    def like(self, nodes: Sequence[ir.Node], feeds: Arrays) -> tuple[list[ir.Node], list[str]]:
        """Return the other side's nodes that make what these make of such feeds, and what that is called there."""
        wanted = [self.names[name] for name in _ends(nodes) if name in self.names]
        return self.other.needed(self._before(wanted, self.given(feeds))), wanted

    def _theirs(self, wanted: Sequence[str], feeds: Arrays) -> dict[str, np.ndarray]:
        """Compute the counterparts of the first side's tensors."""
        there = {name: self.names[name] for name in wanted}
        made = [name for name in there.values() if name not in feeds]
        found = dict(feeds)
        if made:
            found |= run(self.other, self._before(made, feeds), feeds, made)
        return {name: found[there[name]] for name in wanted if there[name] in found}

    def _before(self, wanted: Iterable[str], given: Collection[str]) -> list[ir.Node]:
        """Return the other side's nodes that make these tensors, and all before them up to tensors that are given."""
        waiting = [self.makers[name] for name in wanted if name in self.makers and name not in given]
        found: dict[ir.Node, None] = {}
        while waiting:
            node = waiting.pop()
            if node in found:
                continue
            found[node] = None
            waiting += [
                maker for value in reads(node)
                if value.name not in given and (maker := value.producer()) is not None and maker.graph is node.graph
            ]  # fmt: skip
        return [*found]


def run(side: Side, nodes: Sequence[ir.Node], feeds: Arrays, shown: Collection[str] = ()) -> dict[str, np.ndarray]:
    """Run some nodes of a side's model on a model of their own; return what comes out, by name.

    What others read comes out, and what is ``shown``. Raises ``InputError`` of the id "cannot-cut" where the side can't
    run them alone.
    """
    from penstock.rewriting.extract import extract

    with store.scratch() as work:
        path = work / "cut.onnx"
        shapes = {name: array.shape for name, array in feeds.items()}
        store.write_bytes(path, extract(side.model, side.needed(nodes), shown, shapes))
        signature = graph.signature(graph.load(path, weights=False))
        lacking = [spec.name for spec in signature.inputs if spec.name not in feeds]
        if lacking:
            what = f"the tensor {lacking[0]!r} is read by a node and isn't known at the cut"
            raise InputError("cannot-cut", what, where=side.label, do="compare models of the same structure")
        try:
            session = Runnable(side.deployment, Loadable(path, libraries=side.libraries), True).open()
            try:
                found = session.run({spec.name: feeds[spec.name] for spec in signature.inputs})
            finally:
                session.close()
        except InputError as error:
            what = f"{side.label} can't run a part of the model: {error.what}"
            raise InputError(
                "cannot-cut", what, where=side.label, do="choose another backend to compare with"
            ) from error
        import numpy as np

        if odd := [
            spec.name for spec, one in zip(signature.outputs, found, strict=True) if not isinstance(one, np.ndarray)
        ]:
            what = f"{odd[0]!r} is no tensor but a sequence, a map or nothing, which isn't compared"
            raise InputError("cannot-cut", what, where=side.label, do="compare models without them at their ends")
        return dict(zip([spec.name for spec in signature.outputs], found, strict=True))


def reads(node: ir.Node) -> list[ir.Value]:
    """Return what a node reads, its bodies included, of the graph around it."""
    from penstock.rewriting.walk import inside

    within = [*inside(node)]
    made = {value for one in within for value in one.outputs}
    found = dict.fromkeys(value for one in within for value in one.inputs if value is not None and value not in made)
    return [value for value in found if value.producer() is None or value.producer() not in within]


def _ends(nodes: Sequence[ir.Node]) -> list[str]:
    """Return what comes out of some nodes: what is handed out, or read by others."""
    from penstock.rewriting.walk import inside

    within = {inner for node in nodes for inner in inside(node)}
    return [
        str(value.name) for node in nodes for value in node.outputs
        if value.is_graph_output() or any(use.node not in within for use in value.uses())
    ]  # fmt: skip


def _counterparts(one: ir.Model, other: ir.Model) -> dict[str, str]:
    """Map the tensors of a model to those of another that hold the same."""
    ours, theirs = _rounded(one), _rounded(other)
    there = {str(value.name) for value in _tensors(other)}
    found: dict[str, str] = {}
    for value in _tensors(one):
        name = str(value.name)
        if name in there and (name in ours) == (name in theirs):
            found[name] = name
        elif name in there and name in theirs:
            found[name] = theirs[name][0]
    for name, pairs in ours.items():
        if name in there and name not in theirs:
            found |= dict.fromkeys(pairs, name)
    if _has_pairs(one) == _has_pairs(other):  # a quantizer takes a Relu into the grid; between two alike there is none
        return found
    return _behind_clips(found, _clipped(one), _clipped(other))


def _has_pairs(model: ir.Model) -> bool:
    return any(node.op_type == "QuantizeLinear" for node in model.graph)


def _behind_clips(found: dict[str, str], ours: Mapping[str, str], theirs: Mapping[str, str]) -> dict[str, str]:
    """Let a tensor that a Relu reads on one side alone stand for what that Relu makes.

    Quantizers take a Relu into the grid, and some name that after what the layer makes, not after what the Relu does.
    """
    made: dict[str, str] = {}
    taken = {*found.values()}
    for name, there in found.items():
        if name in ours and there not in theirs and ours[name] not in found:
            made[ours[name]] = there
        elif there in theirs and name not in ours and theirs[there] not in taken:
            made[name] = theirs[there]
        else:
            made[name] = there
    return made


def _clipped(model: ir.Model) -> dict[str, str]:
    """Map tensors that a Relu or a Clip alone reads to what it makes."""
    found = {}
    for value in _tensors(model):
        users = [use.node for use in value.uses()]
        if len(users) == 1 and users[0].op_type in ("Relu", "Clip") and not value.is_graph_output():
            found[str(value.name)] = str(users[0].outputs[0].name)
    return found


def _rounded(model: ir.Model) -> dict[str, list[str]]:
    """Map tensors that nothing but pairs read, of QuantizeLinear and DequantizeLinear, to what these make."""
    found: dict[str, list[str]] = {}
    for value in _tensors(model):
        uses = [use.node for use in value.uses()]
        if not uses or value.is_graph_output() or any(node.op_type != "QuantizeLinear" for node in uses):
            continue
        behind = [use.node for node in uses for use in node.outputs[0].uses()]
        if behind and all(node.op_type == "DequantizeLinear" for node in behind):
            found[str(value.name)] = [str(node.outputs[0].name) for node in behind]
    return found


def _tensors(model: ir.Model) -> list[ir.Value]:
    return [*model.graph.inputs, *(value for node in model.graph for value in node.outputs if value.name)]
