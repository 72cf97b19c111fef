"""The proof of an export: module and model on the same inputs, at several sizes and values. Imports torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from penstock import custom_domains, graph, registry, source_lines, user_code
from penstock.backends import Backend, Loadable, Session
from penstock.deployment import Deployment
from penstock.errors import GateError, InputError, PenstockError
from penstock.frontends._torch_errors import BRANCH, SIZE
from penstock.frontends._torch_lines import Home
from penstock.frontends.torch import flat
from penstock.metrics import compare
from penstock.signature import Signature

if TYPE_CHECKING:
    import onnx_ir as ir

Feeds = Mapping[str, np.ndarray]
# other sizes to try for a dynamic axis that is not the batch, from the most telling on: added to the example's size
STEPS = (1, 2, 4, 8, 16, 32, 64, -1, -2, -4, -8, -16, -32)
NODE = re.compile(r"Name:'(?P<name>[^']*)'")
SHAPING = ("Reshape", "Expand", "Slice", "ConstantOfShape", "Range", "Tile", "Concat", "Split", "Pad", "Gather")


@dataclass(frozen=True, slots=True)
class Plan:
    """What an export is told of the inputs: their names, an example, and which axes are dynamic under which name."""

    names: tuple[str, ...]
    example: dict[str, np.ndarray]  # by input name, in the order of forward's parameters
    dynamic: dict[str, dict[int, str]]  # input → axis → name of the dimension

    def sizes(self) -> dict[str, int]:
        """Return the example's size of every dynamic dimension."""
        return {
            dim: self.example[name].shape[axis] for name, axes in self.dynamic.items() for axis, dim in axes.items()
        }

    def batch_dims(self) -> set[str]:
        """Return the names of the dimensions that are the axis 0 of an input."""
        return {axes[0] for axes in self.dynamic.values() if 0 in axes}


@dataclass(frozen=True, slots=True)
class Proof:
    """Where module and model were compared, by how much they differ there, and which axes could not be varied."""

    sizes: tuple[Mapping[str, int], ...]
    differences: Mapping[str, float]  # "batch 3, height 65" → largest relative difference
    fixed: tuple[str, ...]  # dimensions of which the module takes no other size than the example's
    probes: int


def tensors(feeds: Feeds) -> tuple[torch.Tensor, ...]:
    """Make the module's arguments of arrays."""
    return tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in feeds.values())


def run_module(module: torch.nn.Module, feeds: Feeds) -> Any:
    """Run the module; what it raises is an ``InputError`` that names the user's line."""

    def forward() -> Any:
        with torch.no_grad():
            return module(*tensors(feeds))

    shapes = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in feeds.items())
    return user_code.call(forward, f"the module fails on {shapes}", type(module).__name__)


def resized(plan: Plan, sizes: Mapping[str, int], turn: int) -> dict[str, np.ndarray]:
    """Make inputs of other sizes out of the example's own values, so that whatever holds for them still holds.

    Along each dynamic axis the slices are repeated in order, from another one at each ``turn``; at odd turns the other
    axes are reversed, which puts other values into every place.
    """
    made = {}
    for name, array in plan.example.items():
        axes = plan.dynamic.get(name, {})
        for axis in range(array.ndim):
            if axis in axes:
                size = sizes.get(axes[axis], array.shape[axis])
                array = np.take(array, (np.arange(size) + turn) % array.shape[axis], axis=axis)
            elif turn % 2:
                array = np.flip(array, axis=axis)
        made[name] = np.ascontiguousarray(array)
    return made


def prove(
    module: torch.nn.Module, plan: Plan, path: Path, signature: Signature, batches: tuple[int, ...], tolerance: float,
    probes: list[Feeds], home: Home, exporter: str,
) -> Proof:  # fmt: skip
    """Compare module and exported model. Raises ``GateError`` naming node, line and cure where they differ."""
    _same_twice(module, plan)
    backend: Backend = registry.load("backends", "onnxruntime")  # type: ignore[assignment]  # the registry is untyped
    # the graph as written, without the runtime's own rewrites
    deployment = Deployment("export", "fp32", "", "fp32", "onnxruntime", options={"optimization": "disabled"})
    session = backend.load(Loadable(path, libraries=custom_domains.libraries(path)), deployment)
    judge = _Judge(module, session, path, signature, tolerance, home, plan, exporter)
    differences: dict[str, float] = {}
    proved: list[Mapping[str, int]] = []
    wanted, fixed = _wanted(module, plan, batches)
    for turn, sizes in enumerate(wanted, 1):
        feeds, want = _run(module, plan, sizes, turn)
        label = ", ".join(f"{name} {size}" for name, size in sizes.items()) or "the example's sizes"
        differences[label] = max(judge.difference(feeds, want, label, sizes), differences.get(label, 0.0))
        if sizes not in proved:
            proved.append(sizes)
    for number, feeds in enumerate(probes, 1):
        want = flat(run_module(module, feeds))
        differences[f"probe {number}"] = judge.difference(feeds, want, f"probe {number}", None)
    session.close()
    return Proof(tuple(proved), differences, tuple(fixed), len(probes))


def _run(module: torch.nn.Module, plan: Plan, sizes: Mapping[str, int], turn: int) -> tuple[Feeds, list[torch.Tensor]]:
    """Run the module on resized inputs; in the example's own order of values where it minds another one."""
    for order in (turn, 0):
        feeds = resized(plan, sizes, order)
        try:
            return feeds, flat(run_module(module, feeds))
        except InputError as error:
            failed = error
    if sizes == plan.sizes():
        raise failed
    do = "give --export-batches with the sizes that it takes, or --static; -v shows the whole traceback"
    raise InputError("module-refuses-size", failed.what, where=failed.where, do=do) from failed


def _same_twice(module: torch.nn.Module, plan: Plan) -> None:
    for first, second in zip(
        flat(run_module(module, plan.example)), flat(run_module(module, plan.example)), strict=True
    ):
        if not torch.equal(torch.nan_to_num(first.float()), torch.nan_to_num(second.float())):
            what = "the module gives another output for the same input: it draws random numbers or keeps a state"
            do = "take the randomness out of forward; dropout and the like are off in eval mode"
            raise GateError("not-deterministic", what, where=type(module).__name__, do=do)


def _wanted(module: torch.nn.Module, plan: Plan, batches: tuple[int, ...]) -> tuple[list[dict[str, int]], list[str]]:
    """List the sizes to compare at: every batch, then another size of each other dimension, one at a time."""
    example = plan.sizes()
    first = plan.batch_dims()
    wanted = [{**example, **dict.fromkeys(first, batch)} for batch in (batches if first else ())]
    fixed = []
    for dim in [dim for dim in example if dim not in first]:
        found = next(_accepted(module, plan, example, dim), None)
        if found is None:
            fixed.append(dim)
        else:
            wanted.append(found)
    return [*wanted, example], fixed


def _accepted(module: torch.nn.Module, plan: Plan, example: Mapping[str, int], dim: str) -> Iterator[dict[str, int]]:
    for step in STEPS:
        sizes = {**example, dim: example[dim] + step}
        if sizes[dim] >= 1:
            try:
                run_module(module, resized(plan, sizes, 0))
            except PenstockError:
                continue
            yield sizes


@dataclass(frozen=True, slots=True)
class _Judge:
    module: torch.nn.Module
    session: Session
    path: Path
    signature: Signature
    tolerance: float
    home: Home
    plan: Plan
    exporter: str

    def difference(self, feeds: Feeds, want: list[torch.Tensor], label: str, sizes: Mapping[str, int] | None) -> float:
        """Return the largest relative difference of all outputs. Raises ``GateError`` beyond the tolerance."""
        names = [spec.name for spec in self.signature.inputs]
        given = (array for name, array in feeds.items() if name in names or len(names) == len(feeds))
        try:
            got = self.session.run(dict(zip(names, given, strict=False)))
        except InputError as error:
            raise self._failed(error, label, sizes) from error
        worst = 0.0
        for spec, ours, theirs in zip(self.signature.outputs, got, want, strict=True):
            difference = compare(ours, theirs.detach().numpy(), logits=False)
            figure = difference.relative
            if figure is None:  # integers and booleans have no tolerance
                figure = 0.0 if difference.equal else float("inf")
            if difference.reason or not figure <= self.tolerance:
                told = difference.reason or f"{figure:.2g} relative, the limit is {self.tolerance:g}"
                raise self._differs(
                    spec.name, f"the output {spec.name!r} differs from the module's: {told}", label, sizes
                )
            worst = max(worst, figure)
        return worst

    def _failed(self, error: InputError, label: str, sizes: Mapping[str, int] | None) -> GateError:
        match = NODE.search(error.what)
        if sizes is None:
            what = f"the exported model can't run the inputs of {label}: {error.what}"
            return GateError("branch-lost", what, where=self._where(match and match["name"]), do=BRANCH)
        moved = [f"{name} {size}" for name, size in sizes.items() if size != self.plan.sizes()[name]]
        node = (match and match["name"]) or self._holder(sizes)
        if not moved:
            what = f"the exported model can't run the example's own sizes: {error.what}"
            return GateError("export-differs", what, where=self._where(node), do=self._other())
        what = f"a size of the example is baked into {self._node(node)}: the exported model can't run {label}"
        do = f"{SIZE}; a reshape takes -1 for the axis that moves"
        return GateError("baked-in-size", what, where=self._where(node), do=do)

    def _differs(self, output: str, told: str, label: str, sizes: Mapping[str, int] | None) -> GateError:
        if sizes is None:
            what = f"on the inputs of {label} {told}: the export lost a branch that they take"
            return GateError("branch-lost", what, where=self._where(self._foreign()), do=BRANCH)
        moved = any(size != self.plan.sizes()[name] for name, size in sizes.items())
        if moved and (node := self._holder(sizes)):
            what = f"a size of the example is baked into {self._node(node)}: at {label} {told}"
            do = f"{SIZE}; a reshape takes -1 for the axis that moves"
            return GateError("baked-in-size", what, where=self._where(node), do=do)
        if node := self._foreign():
            what = f"a value of the example is baked into {self._node(node)}: at {label} {told}"
            do = "compute it with tensors: leave .item(), .tolist() and numpy out of forward"
            return GateError("baked-in-value", what, where=self._where(node), do=do)
        do = self._other()
        if 1 in sizes.values() and "shape" in told:
            do = "name the axis in squeeze(): without one it also drops an axis that happens to be 1"
        maker = next((node.name for node in self._nodes() if output in [value.name for value in node.outputs]), None)
        return GateError("export-differs", f"at {label} {told}", where=self._where(maker), do=do)

    def _other(self) -> str:
        return f"try --exporter {'torchscript' if self.exporter == 'dynamo' else 'dynamo'}"

    def _node(self, name: str | None) -> str:
        node = self._find(name)
        return f"the node {name!r} ({node.op_type})" if node is not None else "the model"

    def _where(self, name: str | None) -> str:
        node = self._find(name)
        place = source_lines.line_of(node) if node is not None else ""
        return self.home.text(place) if place else type(self.module).__name__

    def _nodes(self) -> list[ir.Node]:
        return list(graph.load(self.path).graph.all_nodes())

    def _find(self, name: str | None) -> ir.Node | None:
        return next((node for node in self._nodes() if node.name == name), None) if name else None

    def _holder(self, sizes: Mapping[str, int]) -> str:
        """Name the first node that takes a shape which holds the example's size of a dimension that moved."""
        example = self.plan.sizes()
        baked = {example[name] for name, size in sizes.items() if size != example[name]}
        for node in self._nodes():
            if node.op_type not in SHAPING:
                continue
            for value in node.inputs:
                held = _constant(value)
                if held is not None and held.dtype == np.int64 and baked & set(held.reshape(-1).tolist()):
                    return node.name or ""
        return ""

    def _foreign(self) -> str:
        """Name the first node that takes a constant which is neither the module's own nor a number in its code."""
        own = [t.detach().numpy() for t in (*self.module.parameters(), *self.module.buffers())]
        for node in self._nodes():
            for value in node.inputs:
                held = _constant(value)
                if held is None or held.dtype.kind != "f" or held.size == 0:
                    continue
                if not _is_known(held, own) and any(_holds(array, held) for array in self.plan.example.values()):
                    return node.name or ""
        return ""


def _constant(value: ir.Value | None) -> np.ndarray | None:
    if value is None:
        return None
    if value.const_value is not None:
        return value.const_value.numpy()
    producer = value.producer()
    if producer is not None and producer.op_type == "Constant" and "value" in producer.attributes:
        return producer.attributes["value"].as_tensor().numpy()
    return None


def _is_known(held: np.ndarray, own: list[np.ndarray]) -> bool:
    return any(array.size == held.size and np.array_equal(np.sort(array, None), np.sort(held, None)) for array in own)


def _holds(example: np.ndarray, held: np.ndarray) -> bool:
    """Tell whether all values of a constant occur in the example."""
    return example.dtype.kind == "f" and bool(np.isin(held.astype(np.float32), example.astype(np.float32)).all())


def read_probes(specs: tuple[str, ...], plan: Plan) -> list[Feeds]:
    """Call the probe functions; each returns one set of inputs, or a list of sets. Raises ``InputError``."""
    found: list[Feeds] = []
    for spec in specs:
        function = user_code.without_arguments(spec, "the probe function")
        made = user_code.call(function, "the probe function failed", spec)
        sets = made if isinstance(made, list) else [made]
        if not sets:
            raise InputError(
                "bad-probe", "the probe function returned no inputs", where=spec, do="return at least one set"
            )
        found += [_probe(one, spec, plan) for one in sets]
    return found


def _probe(made: Any, spec: str, plan: Plan) -> Feeds:
    if isinstance(made, Mapping):
        values = {str(name): value for name, value in made.items()}
    else:
        several = made if isinstance(made, tuple) else (made,)
        values = dict(zip(plan.names, several, strict=False)) if len(several) == len(plan.names) else {}
    if set(values) != set(plan.names):
        do = f"return a dict or a tuple with one array or tensor for each of: {', '.join(plan.names)}"
        raise InputError("bad-probe", "the probe's inputs aren't the module's", where=spec, do=do)
    arrays = {
        name: value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        for name, value in ((name, values[name]) for name in plan.names)
    }
    for name, array in arrays.items():
        example = plan.example[name]
        if array.dtype != example.dtype or array.ndim != example.ndim:
            what = (
                f"the probe's {name!r} is {array.dtype}{list(array.shape)}, "
                f"the example's {example.dtype}{list(example.shape)}"
            )
            raise InputError("bad-probe", what, where=spec, do="give it the same type and the same number of axes")
    return arrays


def need_free(signature: Signature, plan: Plan, home: Home) -> None:
    """Raise ``GateError`` where the exporter fixed, without a word, a size that was to be dynamic."""
    for spec in signature.inputs:
        for axis, dim in plan.dynamic.get(spec.name, {}).items():
            if spec.shape is not None and isinstance(spec.shape[axis], int):
                there = f"axis {axis} of the input {spec.name!r}"
                what = f"the exporter fixed {there} at {spec.shape[axis]}; {dim!r} was to be dynamic"
                do = "give an example of 2 or more; a .pt2 program: export it with dynamic_shapes; or give --static"
                raise GateError("baked-in-size", what, where=str(home.root.name), do=do)
