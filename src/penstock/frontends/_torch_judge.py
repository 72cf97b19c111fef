"""Why an exported model differs from its module: found by experiment, told as node, line and cure. Imports torch.

1. A size of the example is baked into a node if the model agrees with the module once that number is changed.
2. A squeeze without an axis is the cause if it drops other axes at this size than at the example's.
3. A value is baked in if the constant is another one in an export from other values.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from penstock import graph, source_lines, store
from penstock.backends import Session
from penstock.errors import GateError, InputError, PenstockError
from penstock.frontends._torch_cures import BRANCH, for_size
from penstock.frontends._torch_eager import squeezes
from penstock.frontends._torch_lines import Home
from penstock.frontends._torch_module import Feeds, array_of, line_of
from penstock.frontends._torch_plan import Plan, resized
from penstock.metrics import compare
from penstock.signature import Signature

NODE = re.compile(r"Name:'(?P<name>[^']*)'")
SHAPING = ("Reshape", "Expand", "Slice", "ConstantOfShape", "Range", "Tile", "Concat", "Split", "Pad", "Gather")
TRIALS = 16  # nodes whose size is changed to see whether the model is right then
NOT_A_NUMBER = "NaN or infinity stands in other places"
CLOSE = 0.05  # a relative difference up to this may be rounding


@dataclass(frozen=True, slots=True)
class Judge:
    """Holds one exported model against its module."""

    module: torch.nn.Module
    session: Session
    load: Callable[[Path], Session]
    path: Path
    signature: Signature
    tolerance: float
    home: Home
    plan: Plan
    exporter: str
    again: Callable[[Plan], ir.Model]
    layers: Mapping[str, str]  # node → the layer of torch's own that it comes from

    def difference(self, feeds: Feeds, want: list[torch.Tensor], label: str, sizes: Mapping[str, int] | None) -> float:
        """Return the largest relative difference of all outputs; ``sizes`` are None for a probe.

        Raises ``GateError`` beyond the tolerance.
        """
        wanted = [array_of(tensor) for tensor in want]
        try:
            got = self._outputs(self.session, feeds)
        except InputError as error:
            raise self._failed(error, feeds, wanted, label, sizes) from error
        if len(got) != len(wanted):
            what = f"the exported model has {len(got)} outputs, the module {len(wanted)}"
            raise GateError("export-differs", what, where=line_of(self.module), do=self._other())
        worst = 0.0
        for spec, ours, theirs in zip(self.signature.outputs, got, wanted, strict=True):
            figure, told = self._compared(ours, theirs)
            if told:
                about = f"the output {spec.name!r} differs from the module's: {told}"
                raise self._differs(_Case(spec.name, about, figure, ours, theirs, feeds, wanted, label), sizes)
            worst = max(worst, figure)
        return worst

    def _outputs(self, session: Session, feeds: Feeds) -> list[np.ndarray]:
        names = [spec.name for spec in self.signature.inputs]
        given = (array for name, array in feeds.items() if name in names or len(names) == len(feeds))
        return session.run(dict(zip(names, given, strict=False)))

    def _compared(self, ours: np.ndarray, theirs: np.ndarray) -> tuple[float, str]:
        """Return the relative difference and, where it is too large, what is wrong."""
        difference = compare(ours, theirs, logits=False)
        figure = difference.relative
        if figure is None:  # integers and booleans have no tolerance
            figure = 0.0 if difference.equal else math.inf
        if difference.nonfinite and not difference.reason:
            return figure, NOT_A_NUMBER
        if difference.reason or not figure <= self.tolerance:
            return figure, difference.reason or f"{figure:.2g} relative, the limit is {self.tolerance:g}"
        return figure, ""

    def _failed(
        self, error: InputError, feeds: Feeds, wanted: list[np.ndarray], label: str, sizes: Mapping[str, int] | None
    ) -> GateError:
        match = NODE.search(error.what)
        named = match["name"] if match else ""
        if sizes is None:
            what = f"the exported model can't run the inputs of {label}: {error.what}"
            return GateError("branch-lost", what, where=self._where(named), do=BRANCH)
        if sizes == self.plan.sizes():
            what = f"the exported model can't run the example's own sizes: {error.what}"
            return GateError("export-differs", what, where=self._where(named), do=self._other())
        node = self._holder(feeds, wanted, sizes) or named
        where = self._where(node)
        if node:
            what = f"a size of the example is baked into {self._node(node)}: the exported model can't run {label}"
        else:
            what = f"a size of the example is baked in, the exported model can't run {label}: {error.what}"
        return GateError("baked-in-size", what, where=where, do=self._free(node))

    def _differs(self, case: _Case, sizes: Mapping[str, int] | None) -> GateError:
        if sizes is None:
            what = f"on the inputs of {case.label} {case.told}: the export lost a branch that they take"
            return GateError("branch-lost", what, where=self._where(self._valued()), do=BRANCH)
        own = self.plan.sizes()
        at = f"at {case.label} {case.told}"
        where = self._where(self._maker(case.output))
        if sizes != own:
            if node := self._holder(case.feeds, case.wanted, sizes):
                what = f"a size of the example is baked into {self._node(node)}: {at}"
                return GateError("baked-in-size", what, where=self._where(node), do=self._free(node))
            if place := self._squeezed(sizes):
                do = "name the axis in squeeze(): without one it also drops an axis that happens to be 1"
                return GateError("export-differs", at, where=place, do=do)
            if any(
                _kept(case.got.shape, case.want.shape, own[dim], sizes[dim]) for dim in own if own[dim] != sizes[dim]
            ):
                what = f"a size of the example is baked in: {at}"
                return GateError("baked-in-size", what, where=where, do=for_size(where))
        if node := self._valued():
            what = f"a value of the example is baked into {self._node(node)}: {at}"
            do = "compute it with tensors: leave .item(), .tolist() and numpy out of forward"
            return GateError("baked-in-value", what, where=self._where(node), do=do)
        do = self._cure(case.figure, case.got.shape == case.want.shape)
        if case.told.endswith(NOT_A_NUMBER):
            do = f"{do}; or give --example with values that make sense at every size: a mask that leaves something"
        return GateError("export-differs", at, where=where, do=do)

    def _free(self, node: str) -> str:
        """Return the cure for a size in a node: for one that the user didn't write, the other exporter."""
        layer = self.layers.get(node)
        return f"{self._other()}: this one bakes it in for {layer}" if layer else for_size(self._where(node))

    def _cure(self, figure: float, alike: bool) -> str:
        if not (alike and figure <= CLOSE):
            return self._other()
        enough = f"--export-tolerance {_above(figure):g}, if that is close enough"
        half = sorted(_kinds(self._nodes()) & {"float16", "bfloat16"})
        return (
            f"the module computes in {half[0]}, which each runtime rounds in its own way: {enough}" if half else enough
        )

    def _other(self) -> str:
        return f"try --exporter {'torchscript' if self.exporter == 'dynamo' else 'dynamo'}"

    def _node(self, name: str) -> str:
        node = self._find(name)
        return f"the node {name!r} ({node.op_type})" if node is not None else "the model"

    def _where(self, name: str) -> str:
        node = self._find(name)
        place = source_lines.line_of(node) if node is not None else ""
        return self.home.text(place) if place else line_of(self.module)

    def _nodes(self) -> list[ir.Node]:
        return list(graph.load(self.path).graph.all_nodes())

    def _find(self, name: str) -> ir.Node | None:
        return next((node for node in self._nodes() if node.name == name), None) if name else None

    def _maker(self, output: str) -> str:
        return next((n.name or "" for n in self._nodes() if output in [value.name for value in n.outputs]), "")

    def _holder(self, feeds: Feeds, wanted: list[np.ndarray], sizes: Mapping[str, int]) -> str:
        """Name the node that holds a size of the example: with the number changed there, the model is right."""
        own = self.plan.sizes()
        new = {own[dim]: size for dim, size in sizes.items() if size != own[dim]}
        count = len(list(_holders(graph.load(self.path), new)))
        for chosen in [*([i] for i in range(min(count, TRIALS))), range(count)]:
            model = graph.load(self.path)
            holders = list(_holders(model, new))
            for index in chosen:
                node, place, held = holders[index]
                _put(model, node, place, held, new, f"penstock_trial_{index}")
            if self._agrees(model, feeds, wanted):
                return holders[chosen[0]][0].name or ""
        return ""

    def _agrees(self, model: ir.Model, feeds: Feeds, wanted: list[np.ndarray]) -> bool:
        with store.scratch() as folder:
            try:
                graph.save(model, folder / "trial.onnx")
                session = self.load(folder / "trial.onnx")
                got = self._outputs(session, feeds)
                session.close()
            except PenstockError:
                return False
        return len(got) == len(wanted) and all(
            not self._compared(ours, theirs)[1] for ours, theirs in zip(got, wanted, strict=True)
        )

    def _squeezed(self, sizes: Mapping[str, int]) -> str:
        """Tell the line at which a squeeze without an axis drops other axes at these sizes than at the example's."""
        usual = squeezes(self.module, self.plan.example, self.home)
        now = squeezes(self.module, resized(self.plan, sizes, 0), self.home)
        changed = [place for (place, dropped), (_, before) in zip(now, usual, strict=False) if dropped != before]
        return self.home.text(changed[0]) if changed and changed[0] else ""

    def _valued(self) -> str:
        """Name the first node that takes another constant in an export from other values."""
        other = {
            name: (array * np.asarray(0.75, array.dtype) if array.dtype.kind == "f" else array)
            for name, array in resized(self.plan, self.plan.sizes(), 1).items()
        }
        try:
            ours, theirs = self._nodes(), list(self.again(replace(self.plan, example=other)).graph.all_nodes())
        except Exception:  # an example that the module or the exporter doesn't take tells nothing
            return ""
        if [node.op_type for node in ours] != [node.op_type for node in theirs]:
            return ""
        own = {name for name, _ in (*self.module.named_parameters(), *self.module.named_buffers())}
        for node, twin in zip(ours, theirs, strict=True):
            for one, two in zip(node.inputs, twin.inputs, strict=False):
                if one is not None and one.name in own:  # a buffer that the module itself writes into
                    continue
                held, there = _constant(one), _constant(two)
                if (
                    held is not None
                    and there is not None
                    and not np.array_equal(held, there, equal_nan=held.dtype.kind == "f")
                ):
                    return node.name or ""
        return ""


@dataclass(frozen=True, slots=True)
class _Case:
    """One output that differs, with all that was run."""

    output: str
    told: str
    figure: float
    got: np.ndarray
    want: np.ndarray
    feeds: Feeds
    wanted: list[np.ndarray]
    label: str


def _kinds(nodes: list[ir.Node]) -> set[str]:
    """Return the element types in a graph, which need not say those of what its nodes make."""
    values = [value for node in nodes for value in (*node.inputs, *node.outputs) if value is not None]
    casts = [ir.DataType(node.attributes["to"].as_int()) for node in nodes if node.op_type == "Cast"]
    return {graph.dtype_name(value) for value in values} | {str(kind.numpy()) for kind in casts}


def _kept(got: tuple[int, ...], want: tuple[int, ...], example: int, size: int) -> bool:
    """Tell whether an axis still has the example's size where it was to have another."""
    return len(got) == len(want) and any(have == example and wish == size for have, wish in zip(got, want, strict=True))


def _above(figure: float) -> float:
    """Round up to one digit: 0.00053 → 0.0006."""
    step = 10.0 ** math.floor(math.log10(figure)) if figure > 0 else 1.0
    return math.ceil(figure / step) * step


def _holders(model: ir.Model, new: Mapping[int, int]) -> Iterator[tuple[ir.Node, int, np.ndarray]]:
    """Yield the nodes that take a shape which holds one of these sizes, with the input and its value."""
    for node in model.graph.all_nodes():
        for place, value in enumerate(node.inputs if node.op_type in SHAPING else ()):
            held = _constant(value)
            if held is not None and held.dtype == np.int64 and set(new) & set(held.reshape(-1).tolist()):
                yield node, place, held


def _put(model: ir.Model, node: ir.Node, place: int, held: np.ndarray, new: Mapping[int, int], name: str) -> None:
    changed = np.array(held)
    for size, other in new.items():
        changed[held == size] = other
    constant = ir.Node("", "Constant", [], [ir.AttrTensor("value", ir.tensor(changed))], num_outputs=1, name=name)
    constant.outputs[0].name = name
    home = node.graph
    assert home is not None  # it was found in one
    home.insert_before(node, constant)
    node.replace_input_with(place, constant.outputs[0])


def _constant(value: ir.Value | None) -> np.ndarray | None:
    if value is None:
        return None
    if value.const_value is not None:
        return value.const_value.numpy()
    producer = value.producer()
    if producer is not None and producer.op_type == "Constant" and "value" in producer.attributes:
        return producer.attributes["value"].as_tensor().numpy()
    return None
