"""Why an exported model differs from its module: found by experiment, told as node, line and cure. Imports torch.

1. A size of the example is baked into a node if the model agrees with the module once that number is changed.
2. A squeeze without an axis is the cause if it drops other axes at this size than at the example's.
3. A branch or a loop is the cause if the module's Python goes another way there than on the example.
4. A value is baked in if the constant is another one in an export from other values.
5. Something that the exporter raised, and the module caught, is the cause if its Python goes another way under export.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from penstock import graph, source_lines, store
from penstock.backends import Session
from penstock.errors import GateError, InputError, PenstockError
from penstock.frontends._torch_cures import CONTROL, for_branch, for_size, is_loop
from penstock.frontends._torch_eager import squeezes
from penstock.frontends._torch_holders import constant_of, holders, put
from penstock.frontends._torch_lines import Home
from penstock.frontends._torch_module import Feeds, array_of, line_of
from penstock.frontends._torch_plan import Plan, resized
from penstock.frontends._torch_steps import parting, parting_from
from penstock.metrics import compare
from penstock.signature import Signature

NODE = re.compile(r"Name:'(?P<name>[^']*)'")
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
            where = self._parted(feeds) or self._where(named)
            return GateError("branch-lost", what, where=where, do=for_branch(where))
        if sizes == self.plan.sizes():
            what = f"the exported model can't run the example's own sizes: {error.what}"
            return GateError("export-differs", what, where=self._where(named), do=self._other())
        node = self._holder(feeds, wanted, sizes)
        if not node and (told := self._another_way(sizes, f"the exported model can't run {label}")):
            return told
        node = node or named
        where = self._where(node)
        if node:
            what = f"a size of the example is baked into {self._node(node)}: the exported model can't run {label}"
        else:
            what = f"a size of the example is baked in, the exported model can't run {label}: {error.what}"
        return GateError("baked-in-size", what, where=where, do=self._free(node))

    def _differs(self, case: _Case, sizes: Mapping[str, int] | None) -> GateError:
        if sizes is None:
            what = f"on the inputs of {case.label} {case.told}: the export lost a branch that they take"
            where = self._parted(case.feeds) or self._where(self._valued())
            return GateError("branch-lost", what, where=where, do=for_branch(where))
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
            if not self._may_be_rounding(case) and (told := self._another_way(sizes, at)):
                return told
            if any(
                _kept(case.got.shape, case.want.shape, own[dim], sizes[dim]) for dim in own if own[dim] != sizes[dim]
            ):
                what = f"a size of the example is baked in: {at}"
                return GateError("baked-in-size", what, where=where, do=for_size(where))
        if node := self._valued():
            what = f"a value of the example is baked into {self._node(node)}: {at}"
            do = "compute it with tensors: leave .item(), .tolist() and numpy out of forward"
            return GateError("baked-in-value", what, where=self._where(node), do=do)
        if self._may_be_rounding(case):
            return GateError("export-differs", at, where=where, do=self._close_enough(case.figure))
        if place := self._parted(case.feeds):
            what = f"the module goes another way on other values, and the export lost it{self._before(place)}: {at}"
            return GateError("branch-lost", what, where=place, do=for_branch(place))
        if case.told.endswith(NOT_A_NUMBER):
            do = "give --example with values that make sense at every size: a mask that leaves something"
            return GateError("export-differs", at, where=where, do=f"{self._other()}; or {do}")
        near = case.got.shape == case.want.shape and case.figure <= CLOSE
        place = "" if near else parting_from(lambda: self.again(self.plan), self.module, self.home, self.plan.example)
        if place:
            place = self.home.text(place)
            what = f"under the exporter your code goes another way than in PyTorch{self._before(place)}: {at}"
            do = f"{for_branch(place, CONTROL)}; a try around it hides what the exporter says"
            return GateError("branch-lost", what, where=place, do=do)
        do = self._close_enough(case.figure) if near else self._other()
        return GateError("export-differs", at, where=where, do=do)

    def _may_be_rounding(self, case: _Case) -> bool:
        """Whether the difference is small, and the module computes in a type that runtimes round differently."""
        return case.got.shape == case.want.shape and case.figure <= CLOSE and bool(self._half())

    def _parted(self, feeds: Feeds) -> str:
        """Tell the line after which the module goes another way on these inputs than on the example."""
        place = parting(self.module, self.home, self.plan.example, feeds)
        return self.home.text(place) if place else ""

    def _another_way(self, sizes: Mapping[str, int], at: str) -> GateError | None:
        """Blame the line after which the module goes another way at these sizes, with the example's values."""
        if not (place := self._parted(resized(self.plan, sizes, 0))):
            return None
        kind = "loop" if is_loop(place) else "branch"
        what = f"a {kind} that depends on a size is baked in{self._before(place)}: {at}"
        return GateError("baked-in-size", what, where=place, do=f"{for_branch(place)}; or --static")

    def _before(self, place: str) -> str:
        """Name the first node whose line stands below a line, of the same file."""
        file, line = _file_and_line(place)
        for node in self._nodes():
            there, number = _file_and_line(source_lines.line_of(node))
            if there == file and number > line and node.op_type != "Constant":
                return f" before the node {node.name!r} ({node.op_type})"
        return ""

    def _free(self, node: str) -> str:
        """Return the cure for a size in a node: for one that the user didn't write, the other exporter."""
        layer = self.layers.get(node)
        return f"{self._other()}: this one bakes it in for {layer}" if layer else for_size(self._where(node))

    def _half(self) -> list[str]:
        return sorted(_kinds(self._nodes()) & {"float16", "bfloat16"})

    def _close_enough(self, figure: float) -> str:
        enough, half = f"--export-tolerance {_above(figure):g}, if that is close enough", self._half()
        if not half:
            return enough
        return f"the module computes in {half[0]}, which each runtime rounds in its own way: {enough}"

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
        count = len(list(holders(graph.load(self.path), new)))
        for chosen in [*([i] for i in range(min(count, TRIALS))), range(count)]:
            model = graph.load(self.path)
            there = list(holders(model, new))
            for index in chosen:
                node, place, held = there[index]
                put(node, place, held, new, f"penstock_trial_{index}")
            if self._agrees(model, feeds, wanted):
                return there[chosen[0]][0].name or ""
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
                held, there = constant_of(one), constant_of(two)
                if (
                    held is not None
                    and there is not None
                    and not np.array_equal(held, there, equal_nan=held.dtype.kind == "f")
                ):
                    return node.name or ""
        return ""


def _file_and_line(place: str) -> tuple[str, int]:
    """Split ``file:line``, with or without the text of the line behind it."""
    file, _, rest = place.partition(":")
    number = rest.partition(":")[0]
    return (file, int(number)) if number.isdigit() else ("", 0)


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
