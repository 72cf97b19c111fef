"""A float ONNX graph as a module of torch, rounded where a placement says so. Imports torch.

Its parameters are the graph's weights, BatchNormalization folded into them, and the scales of the grids. What is
rounded is what gets QuantizeLinear and DequantizeLinear in the file, by the same names: there is nothing to map back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from penstock.errors import InputError, UsageError
from penstock.qat import operators
from penstock.qat.grids import Activations, Weights
from penstock.qat.operators._node import Run, Untrainable
from penstock.qat.trained import trained
from penstock.quantization import emit
from penstock.quantization.grid import Grid
from penstock.quantization.placement import Placement

if TYPE_CHECKING:
    import onnx_ir as ir

    Array = np.ndarray[Any, np.dtype[Any]]

# what these make of a tensor on a grid lies on it: rounding once more would change nothing
_STAYING = frozenset({
    "DepthToSpace", "Expand", "Flatten", "Gather", "GlobalMaxPool", "Identity", "MaxPool", "Relu", "Reshape", "Slice",
    "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
_ROUNDED = "rounded "  # before the name of a tensor: its rounded values, where others read those that aren't


@dataclass(frozen=True, slots=True)
class Rounding:
    """What is rounded: the placement, and where the grids begin."""

    placement: Placement
    grids: Mapping[str, Grid]  # by quantized tensor; those that share one have the same object
    weights: Mapping[str, emit.Weights]  # by weighted node
    learned: bool = True  # the scales are trained too


@dataclass(slots=True)
class _Step:
    """One node: what runs it, what it reads and makes, what is rounded around it, and what nobody needs after it."""

    node: str
    op: str
    run: Run
    inputs: list[str]  # "" where one is left out
    outputs: list[str]
    before: list[tuple[str, str]] = field(default_factory=list)  # tensor → key of its grid, rounded for some readers
    after: list[tuple[str, str]] = field(default_factory=list)  # output → key of its grid, rounded for all
    weighted: tuple[int, str] | None = None  # the input that holds weights, and the key of the grid of the other one
    gone: list[str] = field(default_factory=list)


class _Held(nn.Module):
    """Tensors of the graph by names that torch allows."""


class Network(nn.Module):
    """Runs a graph. Call it with the inputs in order, or by name; it returns the output, or a tuple of several."""

    def __init__(self, model: ir.Model, rounding: Rounding | None = None, named: Collection[str] = ()) -> None:
        """Build it; ``named`` are initializers known to be parameters. Raises ``InputError`` for what it can't run."""
        super().__init__()
        graph = model.graph
        self.inputs = tuple(str(v.name) for v in graph.inputs if v.name not in graph.initializers)
        self.outputs = tuple(str(v.name) for v in graph.outputs)
        self.weights, self.grids, self.scales = _Held(), nn.ModuleDict(), nn.ModuleDict()
        self._keys: dict[str, str] = {}  # initializer → its name in ``weights``
        self._sizes: dict[str, Tensor] = {}  # initializers of whole numbers stay in the processor's memory
        self._groups: dict[str, str] = {}  # quantized tensor → key of its grid
        self._nodes: dict[str, str] = {}  # weighted node → key of its scales
        self._hold(model, named)
        self._steps = _steps(model)
        if rounding is not None:
            self._round(rounding)
        _let_go(self._steps, self.outputs)

    # -- building ------------------------------------------------------------------------------------------------------

    def _hold(self, model: ir.Model, named: Collection[str]) -> None:
        learned = trained(model, named)
        for name, value in model.graph.initializers.items():
            if value.const_value is None:
                raise InputError("cannot-train", f"the initializer {name!r} has no values", do="export the model again")
            array = value.const_value.numpy()
            if array.dtype.kind not in "fiub":
                raise InputError("cannot-train", f"the initializer {name!r} is of a type that torch doesn't have",
                                 do="leave the model as it is: penstock quantize trains nothing")  # fmt: skip
            tensor = torch.from_numpy(np.array(array))
            if not tensor.is_floating_point():
                self._sizes[name] = tensor
                continue
            key = self._keys[name] = _key(name, self._keys.values())
            if name in learned:
                self.weights.register_parameter(key, nn.Parameter(tensor))
            else:
                self.weights.register_buffer(key, tensor)

    def _round(self, rounding: Rounding) -> None:
        placement, grids = rounding.placement, rounding.grids
        for tensor, first in placement.grids.items():
            if first not in self._groups:
                key = self._groups[first] = _key(first, self.grids)
                learned = rounding.learned and not _prescribed(placement, self._steps, first)
                self.grids[key] = Activations(grids[first], learned=learned)
            self._groups[tensor] = self._groups[first]
        for node, held in rounding.weights.items():
            key = self._nodes[node] = _key(node, self.scales)
            whole = placement.consumer.integer_bias
            self.scales[key] = Weights(held.grid, learned=rounding.learned, whole_bias=whole)
        on: dict[str, str] = {}  # tensor → key of the grid that it lies on
        done: set[str] = set()  # rounded for some of its readers already
        for step in self._steps:
            reads = placement.reads.get(step.node, ())
            for index in reads:
                name = step.inputs[index]
                if name in placement.whole:
                    continue
                if name not in done:
                    step.before.append((name, self._groups[name]))
                    done.add(name)
                step.inputs[index] = _ROUNDED + name
                on[_ROUNDED + name] = self._groups[name]
            if (weights := placement.weights.get(step.node)) is not None:
                data = step.inputs[1 - weights].removeprefix(_ROUNDED)
                step.weighted = weights, self._groups[data]
            for out in step.outputs:
                if out in placement.whole:
                    later = self._later(out)
                    if not later and not self._stays(step, on, self._groups[out]):
                        step.after.append((out, self._groups[out]))
                    if not later:
                        on[out] = self._groups[out]
        self._steps = [self._unclipped(step, placement) for step in self._steps]

    def _later(self, tensor: str) -> bool:
        """Whether a tensor is as well rounded after the MaxPool that alone reads it, which is less to round."""
        readers = [step for step in self._steps if tensor in step.inputs]
        if len(readers) != 1 or readers[0].op != "MaxPool" or tensor in self.outputs:
            return False
        return self._groups.get(readers[0].outputs[0]) == self._groups[tensor]

    def _unclipped(self, step: _Step, placement: Placement) -> _Step:
        """Leave a Relu out where the grid behind it ends at 0 for good: it clips as the Relu does."""
        if step.op != "Relu" or step.node not in placement.absorbed:
            return step
        grid = cast(Activations, self.grids[self._groups[step.outputs[0]]])
        return replace(step, run=_same) if grid.ends_at_zero else step

    def _stays(self, step: _Step, on: Mapping[str, str], key: str) -> bool:
        read = step.inputs if step.op == "Concat" else step.inputs[:1]
        return (step.op in _STAYING or step.op == "Concat") and all(on.get(name) == key for name in read)

    # -- running -------------------------------------------------------------------------------------------------------

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        """Run the graph on ``(N, …)`` tensors. Raises ``UsageError`` where inputs are missing or too many."""
        held: dict[str, Any] = {"": None, **self._sizes, **self._given(inputs, named)}
        for name, key in self._keys.items():
            held[name] = getattr(self.weights, key)
        for step in self._steps:
            for name, key in step.before:
                held[_ROUNDED + name] = self.grids[key](held[name])
            values = [held[name] for name in step.inputs]
            if step.weighted is not None:
                self._weigh(step, values)
            made = step.run(*values)
            results = made if isinstance(made, tuple) else (made,)
            held.update((name, value) for name, value in zip(step.outputs, results, strict=False) if name)
            for name, key in step.after:
                held[name] = self.grids[key](held[name])
            for name in step.gone:
                held.pop(name, None)
        results = tuple(held[name] for name in self.outputs)
        return results[0] if len(results) == 1 else results

    def _given(self, inputs: tuple[Tensor, ...], named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given = dict(zip(self.inputs, inputs, strict=False)) | dict(named)
        if len(inputs) > len(self.inputs) or set(given) != set(self.inputs):
            wanted, got = ", ".join(self.inputs), f"{len(inputs)} in order" + "".join(f", {name}" for name in named)
            raise UsageError("wrong-inputs", f"the module wants {wanted}; it was called with {got}",
                             do="give each input once")  # fmt: skip
        return given

    def _weigh(self, step: _Step, values: list[Any]) -> None:
        """Round the weights and the bias of a layer."""
        assert step.weighted is not None
        index, data = step.weighted
        scale, _ = cast(Activations, self.grids[data]).effective()
        bias = values[2] if len(values) > 2 else None
        values[index], rounded = self.scales[self._nodes[step.node]](values[index], bias, scale)
        if len(values) > 2:
            values[2] = rounded

    # -- what was learned ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def arrays(self) -> dict[str, Array]:
        """Return the trained initializers as they are now, by name."""
        parameters = dict(self.weights.named_parameters())
        return {
            name: parameters[key].detach().cpu().numpy().copy()
            for name, key in self._keys.items() if key in parameters
        }  # fmt: skip

    def tensor_grids(self) -> dict[str, Grid]:
        """Return the grid of every quantized tensor; those that share one get the same object."""
        made = {key: cast(Activations, grid).grid() for key, grid in self.grids.items()}
        return {tensor: made[key] for tensor, key in self._groups.items()}

    @torch.no_grad()
    def weight_grids(self) -> dict[str, Grid]:
        """Return the grid of the weights of every weighted node."""
        found = {}
        for step in self._steps:
            if step.weighted is None:
                continue
            third = step.inputs[2] if len(step.inputs) > 2 else ""
            bias: Tensor | None = getattr(self.weights, self._keys[third]) if third else None
            scale, _ = cast(Activations, self.grids[step.weighted[1]]).effective()
            found[step.node] = cast(Weights, self.scales[self._nodes[step.node]]).grid(bias, scale)
        return found


def _same(x: Tensor) -> Tensor:
    return x


def _steps(model: ir.Model) -> list[_Step]:
    """Bind every node. Raises ``InputError`` that names what can't be run, before anything is trained."""
    known, opset = operators.table(), model.opset_imports.get("", 1) or 1
    steps: list[_Step] = []
    refused: dict[str, str] = {}
    for node in model.graph:
        try:
            run = operators.bind(node, opset, known)
        except Untrainable as error:
            refused.setdefault(str(error), str(node.name))
            continue
        inputs = [str(value.name) if value is not None else "" for value in node.inputs]
        steps.append(_Step(str(node.name), node.op_type, run, inputs, [str(v.name or "") for v in node.outputs]))
    if refused:
        (reason, node_name), more = next(iter(refused.items())), len(refused) - 1
        what = f"the model can't be trained here: {reason} (node {node_name!r}{f', and {more} more' if more else ''})"
        do = "take the operator out of the module, or quantize without training: penstock quantize"
        raise InputError("cannot-train", what, do=do)
    return steps


def _let_go(steps: list[_Step], outputs: tuple[str, ...]) -> None:
    """Note after which step each tensor isn't needed any more."""
    seen = set(outputs)
    for step in reversed(steps):
        used = {*step.inputs, *(name for name, _ in step.before), *(name for name, _ in step.after), *step.outputs}
        step.gone = sorted(name for name in used - seen - {""})
        seen |= used


def _prescribed(placement: Placement, steps: list[_Step], first: str) -> bool:
    """Whether a consumer prescribes the range of a grid, so that it can't be learned."""
    sources = placement.sources[first]
    return any(out in sources for step in steps if step.op in placement.consumer.fixed for out in step.outputs)


def _key(name: str, taken: Iterable[str]) -> str:
    """Return a name that torch allows for an attribute, and that isn't taken."""
    known = set(taken)
    stem = name.replace(".", "_") or "_"
    found, number = stem, 0
    while found in known or hasattr(nn.Module, found) or hasattr(nn.ModuleDict, found):
        number += 1
        found = f"{stem}_{number}"
    return found
