"""Rounding: what a node makes of its inputs when these are rounded to 16 bits, and nothing else is.

Each node is computed twice in one run, on what the float model gives it and on the same rounded, and both results are
compared: SQNR = 10 log₁₀(Σy² / Σ(y − y')²) for floats, the share of other values for integers and booleans. Rounding
leaves about 75 dB in fp16 and 57 in bf16, and most operators hand that on as it is. What loses far more is delicate:
a difference of two large numbers, the sine of a large angle, the logarithm or the inverse of what has become 0, a
position that is turned into an index.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock import graph
from penstock.calibration import Batch, Batches, of_list, size
from penstock.quantization import probe
from penstock.quantization.half.binding import is_float32
from penstock.quantization.half.seen import copied, decibels
from penstock.quantization.half.types import Half
from penstock.quantization.placement import constant

if TYPE_CHECKING:
    import onnx_ir as ir

    Array = np.ndarray[Any, np.dtype[Any]]

SAMPLES = 16  # that are looked at: a ratio of energies needs no more
PART = 4  # of them at once
EXACT = frozenset({"Cast", "Ceil", "Equal", "Floor", "Mod", "Round", "Sign"})  # whose whole numbers must stay the same
MOST_OTHERS = 0.02  # share of integers and booleans that may come out otherwise elsewhere, as of close candidates


@dataclass(frozen=True, slots=True)
class Loss:
    """What rounding its inputs does to a node: the SQNR of its floats, the share of other integers."""

    sqnr_db: float
    others: float

    def excessive(self, operator: str, half: Half) -> str:
        """Say why it is too much; "" where it isn't."""
        if self.sqnr_db < half.least_db:
            return f"its result keeps only {self.sqnr_db:.1f} dB when what it reads is rounded to {half.name}"
        if self.others > (0 if operator in EXACT else MOST_OTHERS):
            return f"{self.others:.2%} of its whole numbers are others when what it reads is rounded to {half.name}"
        return ""


def losses(
    model: ir.Model, rounded: Mapping[str, Collection[int]], batches: Batches, half: Half,
    done: Callable[[int, int], None] | None = None,
) -> dict[str, Loss]:  # fmt: skip
    """Measure nodes of the main graph, and the graph's outputs, which are given by the name of the tensor with a colon.

    ``rounded`` says of each node which of its inputs are to be rounded.
    """
    copy = copied(model)
    trial = Trial(copy, half)
    for node in [node for node in copy.graph if node.name in rounded]:
        trial.node(node, rounded[str(node.name)])
    for value in copy.graph.outputs:
        if is_float32(value) and not constant(value) and value.producer() is not None:
            twin = trial.rounded(value)
            trial.compare(f":{value.name}", value, twin, twin.producer())
    return measured(trial, batches, done)


def measured(trial: Trial, batches: Batches, done: Callable[[int, int], None] | None = None) -> dict[str, Loss]:
    """Run the comparisons of a trial on a few samples."""
    if not trial.entries:
        return {}
    told = trial.finish()
    sums = np.zeros((len(trial.entries), 2))

    def visit(name: str, array: Array, first: int, count: int) -> None:
        sums[:] += array.astype(np.float64).reshape(-1, 2)

    probe.observe(trial.model, [told], _few(trial.model, batches), visit, done=done)
    found: dict[str, Loss] = {}
    for (name, is_float), (signal, noise) in zip(trial.entries, sums.tolist(), strict=True):
        before = found.get(name, Loss(np.inf, 0.0))
        if is_float:
            found[name] = Loss(min(before.sqnr_db, _decibels(signal, noise)), before.others)
        else:
            found[name] = Loss(before.sqnr_db, max(before.others, noise / max(signal, 1.0)))
    return found


def _decibels(signal: float, noise: float) -> float:
    # squares beyond float32: such a tensor's range is looked at elsewhere
    return decibels(signal, noise) if np.isfinite(signal) else np.inf


def _comparable(value: ir.Value) -> bool:
    import onnx_ir as ir

    kind = value.dtype
    return (
        isinstance(value.type, ir.TensorType)
        and kind is not None
        and (kind == ir.DataType.FLOAT or kind == ir.DataType.BOOL or kind.is_integer())
    )


def _few(model: ir.Model, batches: Batches) -> Batches:
    """Take the first samples, in small batches where the model takes those: a trial holds more at once than a run."""
    specs = graph.signature(model).inputs
    free = all(spec.shape and not isinstance(spec.shape[0], int) for spec in specs)
    held: list[Batch] = []
    count = 0
    for batch in batches:
        if count >= SAMPLES:
            break
        whole = size(batch)
        if free and all(array.ndim and len(array) == whole for array in batch.values()):
            starts = range(0, min(whole, SAMPLES - count), PART)
            held += [{name: array[start : start + PART] for name, array in batch.items()} for start in starts]
        else:
            held.append(batch)
        count += whole
    return of_list(held)


class Trial:
    """Builds the second computation into a copy of the model."""

    def __init__(self, model: ir.Model, half: Half) -> None:
        self.model, self.half, self.graph = model, half, model.graph
        self.entries: list[tuple[str, bool]] = []  # of the result, two numbers each: signal and noise
        self._rounded: dict[ir.Value, ir.Value] = {}
        self._ends: list[ir.Value] = []
        self._number = 0
        self._last: dict[ir.Node, ir.Node] = {}  # the last twin of a node: the next comes behind it
        self._made: list[ir.Node] = []
        self._one = self._held("penstock_one", np.array([1], np.int64))
        self._zero = self._held("penstock_zero", np.zeros((), np.float32))

    def node(self, node: ir.Node, rounded: Collection[int]) -> None:
        """Compute a node once more, with some of its inputs rounded, and compare."""
        inputs = [self.rounded(value) if index in rounded else value for index, value in enumerate(node.inputs)]
        self.compare_all(str(node.name), node, self.again(node, inputs))

    def again(self, node: ir.Node, inputs: list[ir.Value | None]) -> ir.Node:
        """Compute a node once more, on other inputs, which are made before it or by a twin of what stands before it."""
        import onnx_ir as ir

        self._number += 1
        again = ir.Node(
            node.domain, node.op_type, inputs, list(node.attributes.values()), num_outputs=len(node.outputs),
            name=f"penstock_again_{self._number}",
        )  # fmt: skip
        for value, twin in zip(node.outputs, again.outputs, strict=True):
            if not value.name:
                twin.name = ""
            twin.type = value.type
        self._insert([again], self._last.get(node, node))
        self._last[node] = again
        return again

    def compare_all(self, name: str, node: ir.Node, again: ir.Node) -> None:
        """Compare all that a node makes with what its twin makes."""
        for value, twin in zip(node.outputs, again.outputs, strict=True):
            if value.name and _comparable(value) and (value.uses() or value.is_graph_output()):
                self.compare(name, value, twin, again)

    def compare(self, name: str, value: ir.Value, twin: ir.Value, after: ir.Node | None) -> None:
        """Note the energies of ``value`` and of its difference to ``twin``; put the nodes in behind ``after``."""
        import onnx_ir as ir

        self._made = []
        is_float = is_float32(value)
        same = self._add("Equal", [value, twin], ir.DataType.BOOL)
        if is_float:
            gap = self._add("Where", [same, self._zero, self._add("Sub", [value, twin])])
            pair = [self._total("ReduceSumSquare", value), self._total("ReduceSumSquare", gap)]
        else:
            wrong = self._add("Cast", [self._add("Not", [same], ir.DataType.BOOL)], to=int(ir.DataType.FLOAT))
            size = self._add("Cast", [self._add("Size", [value], ir.DataType.INT64)], to=int(ir.DataType.FLOAT))
            pair = [size, self._total("ReduceSum", wrong)]
        self._ends += [self._add("Reshape", [one, self._one]) for one in pair]
        self.entries.append((name, is_float))
        self._insert(self._made, after)

    def rounded(self, value: ir.Value | None) -> ir.Value:
        """Return the value after rounding to 16 bits, in float32."""
        import onnx_ir as ir

        assert value is not None
        if value not in self._rounded:
            if constant(value) and value.const_value is not None:
                array = self.half.rounded(value.const_value.numpy())
                self._rounded[value] = self._held(f"penstock_rounded_{value.name}", array)
            else:
                self._made = []
                there = self._add("Cast", [value], self.half.dtype, to=int(self.half.dtype))
                self._rounded[value] = self._add("Cast", [there], to=int(ir.DataType.FLOAT))
                self._insert(self._made, value.producer())
        return self._rounded[value]

    def finish(self) -> str:
        """Join all energies in one tensor, and return its name."""
        import onnx_ir as ir

        node = ir.Node("", "Concat", self._ends, [ir.AttrInt64("axis", 0)], name="penstock_energies")
        node.outputs[0].name = "penstock_energies"
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        node.outputs[0].shape = ir.Shape([len(self._ends)])
        self.graph.append(node)
        return "penstock_energies"

    def _insert(self, nodes: list[ir.Node], after: ir.Node | None) -> None:
        first = next(iter(self.graph), None)
        if after is not None:
            self.graph.insert_after(after, nodes)
        elif first is not None:
            self.graph.insert_before(first, nodes)

    def _add(self, op: str, inputs: list[ir.Value], kind: ir.DataType | None = None, **attributes: int) -> ir.Value:
        import onnx_ir as ir

        node = ir.Node("", op, inputs, [ir.AttrInt64(key, value) for key, value in attributes.items()])
        node.outputs[0].type = ir.TensorType(kind or ir.DataType.FLOAT)
        self._made.append(node)
        return node.outputs[0]

    def _total(self, op: str, value: ir.Value) -> ir.Value:
        return self._add(op, [value], keepdims=0)

    def _held(self, name: str, array: Array) -> ir.Value:
        import onnx_ir as ir

        held = ir.tensor(np.asarray(array), name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(held.dtype), const_value=held)
        self.graph.register_initializer(value)
        return value
