"""A place in the graph: a node, and what a rule needs of the lowering around it.

A rule reads its inputs here, as integers or in float, in the order of axes that it wants, and says what it made.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from penstock.tflite.flatfile import TYPES, Array, Grid, Tensor
from penstock.tflite.held import LAST, WHOLE, Held, RefusedError
from penstock.tflite.net import FLOAT, INT8, Net, same

if TYPE_CHECKING:
    import onnx_ir as ir

    from penstock.tflite.lowering import Lowering


@dataclass(frozen=True, slots=True)
class Sink:
    """Where a node's result goes: the value behind an activation that is fused, and what quantizes it."""

    value: ir.Value
    activation: str
    absorbed: tuple[ir.Node, ...]
    quantize: ir.Node | None


@dataclass(frozen=True, slots=True)
class Place:
    """A node, and what a rule needs of the lowering around it."""

    lowering: Lowering
    node: ir.Node

    @property
    def net(self) -> Net:
        """The net that is built."""
        return self.lowering.net

    def need(self, fine: bool, why: str) -> None:
        """Refuse the node unless something holds."""
        if not fine:
            raise RefusedError(why)

    def value(self, index: int) -> ir.Value:
        """Return what the node reads. Raises ``RefusedError`` where there is nothing."""
        if index >= len(self.node.inputs) or self.node.inputs[index] is None:
            raise RefusedError(f"its input {index} is missing")
        found = self.node.inputs[index]
        assert found is not None
        return found

    def has(self, index: int) -> bool:
        """Whether the node has that input."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def array(self, index: int, what: str = "") -> Array:
        """Return a constant that the node reads; one on a grid as the numbers it stands for."""
        value = self.value(index)
        if value in self.lowering.integers:
            return self.lowering.integers[value].real
        found = self.lowering.array(value)
        if found is None:
            raise RefusedError(f"{what or f'its input {index}'} isn't a constant")
        return found

    def constant(self, index: int) -> bool:
        """Whether an input is a constant, on a grid or not."""
        value = self.value(index)
        return value in self.lowering.integers or self.lowering.array(value) is not None

    def sizes(self, index: int) -> tuple[int, ...]:
        """Return the shape of an input, as ONNX has it."""
        return self.lowering.sizes(self.value(index))

    @property
    def made(self) -> tuple[int, ...]:
        """The shape of the first result, as ONNX has it."""
        return self.lowering.sizes(self.node.outputs[0])

    def held(self, index: int) -> Held:
        """Return what an input is in the net; a constant is put into it, in float."""
        value = self.value(index)
        if value not in self.lowering.held:
            array = self.array(index)
            if array.dtype == np.float64:
                raise RefusedError("it computes in double precision")
            if array.dtype not in TYPES:
                raise RefusedError(f"there is no type {array.dtype}")
            self.lowering.put(value, self.net.constant(str(value.name), array))
        return self.lowering.held[value]

    def sink(self, *, fuse: bool = False) -> Sink:
        """Return where the result goes."""
        value, activation, absorbed = self.node.outputs[0], "", []
        if fuse and (reader := self.lowering.only_reader(value, "Relu", "Clip")) is not None:
            bounds = (0.0, np.inf) if reader.op_type == "Relu" else Place(self.lowering, reader).bounds()
            activation = {(0.0, np.inf): "relu", (0.0, 6.0): "relu6"}.get(bounds, "")
            if activation:
                value = reader.outputs[0]
                absorbed.append(reader)
        return Sink(value, activation, tuple(absorbed), self.lowering.only_reader(value, "QuantizeLinear"))

    def bounds(self) -> tuple[float, float]:
        """Return what a Clip clips at."""
        if not self.has(1) and not self.has(2):
            attributes = self.node.attributes
            return attributes.get_float("min", -np.inf), attributes.get_float("max", np.inf)
        low = float(self.array(1).reshape(())) if self.has(1) else -np.inf
        high = float(self.array(2).reshape(())) if self.has(2) else np.inf
        return _near(low), _near(high)

    def on_integers(
        self, sink: Sink, indices: Collection[int], *, constants: bool = False, moves: bool = False
    ) -> bool:
        """Whether the node can compute on integers: all of these inputs are on grids, and the result goes onto one.

        ``moves``: it takes integers as they are, as ONNX has them between QuantizeLinear and DequantizeLinear. Any
        other operator that reads these means the whole numbers, not what they stand for, and is refused.
        """
        if any(self.value(index) in self.lowering.raw for index in indices):
            grids = [self.held(index).tensor.grid for index in indices]
            alike = all(one is not None and grids[0] is not None and same(one, grids[0]) for one in grids)
            self.need(moves and alike, WHOLE)
            return True
        if sink.quantize is None:
            return False
        for index in indices:
            value = self.value(index)
            if value in self.lowering.integers:
                if not constants or self.lowering.integers[value].scale.size > 1:
                    return False
            elif value not in self.lowering.held or self.lowering.held[value].tensor.grid is None:
                return False
        self.lowering.grid(sink.quantize)
        return True

    def result(
        self, sink: Sink, shape: tuple[int, ...], *, whole: bool, last: bool = False, grid: Grid | None = None
    ) -> Tensor:
        """Add the tensor that the node makes, ``shape`` being its own; with ``grid`` it is on that one first."""
        self.lowering.done.update(sink.absorbed)
        if not whole:
            dtype = FLOAT if sink.value.dtype is None else np.dtype(sink.value.dtype.numpy())
            if dtype not in TYPES:
                raise RefusedError(f"there is no type {dtype}")
            tensor = self.net.tensor(str(sink.value.name), shape, dtype)
            self.lowering.put(sink.value, tensor, last=last)
            return tensor
        target = sink.value
        if sink.quantize is not None:
            target, grid = sink.quantize.outputs[0], grid or self.lowering.grid(sink.quantize)
            self.lowering.done.add(sink.quantize)
        tensor = self.net.tensor(str(target.name), shape, INT8, grid)
        self.lowering.put(target, tensor, last=last)
        self.lowering.raw.add(target)
        return tensor

    def pass_on(
        self, sink: Sink, tensor: Tensor, *, last: bool = False, flat: tuple[int, int, int] | None = None
    ) -> None:
        """Say what the result is, with no operator of its own; a QuantizeLinear behind it may change the grid."""
        value = sink.value
        whole = tensor.grid is not None and (sink.quantize is not None or self.value(0) in self.lowering.raw)
        if sink.quantize is not None and tensor.grid is not None:
            self.lowering.done.add(sink.quantize)
            tensor = self.net.on(tensor, self.lowering.grid(sink.quantize))
            value = sink.quantize.outputs[0]
        self.lowering.put(value, tensor, last=last, flat=flat)
        if whole:
            self.lowering.raw.add(value)

    def finish(self, sink: Sink, *, whole: bool) -> None:
        """Bring what was made onto the grid that was asked for, where an operator has one of its own."""
        if not whole or sink.quantize is None:
            return
        target, wanted = sink.quantize.outputs[0], self.lowering.grid(sink.quantize)
        held = self.lowering.held[target]
        assert held.tensor.grid is not None
        if not same(held.tensor.grid, wanted):
            self.lowering.put(target, self.net.on(held.tensor, wanted), last=held.last, flat=held.flat)

    def tensor(self, index: int, *, whole: bool, last: bool) -> Tensor:
        """Return an input's tensor: integers or float, channels last or in ONNX's order."""
        value = self.value(index)
        if whole and value in self.lowering.integers:
            return self._on_grid(value, last)
        self.need(whole or value not in self.lowering.raw, WHOLE)
        held = self.held(index)
        tensor = held.tensor if whole else self.net.floats(held.tensor)
        moved = Held(tensor, held.last, held.flat)
        return self.lowering.with_last(moved) if last else self.lowering.plain(moved)

    def _on_grid(self, value: ir.Value, last: bool) -> Tensor:
        one = self.lowering.integers[value]
        shift = 128 if one.whole.dtype == np.uint8 else 0
        grid = Grid(one.scale.reshape(1).astype(np.float32), one.zero_point.reshape(1).astype(np.int64) - shift)
        whole = (one.whole.astype(np.int16) - shift).astype(np.int8)
        whole = whole.reshape((1,) * (4 - whole.ndim) + whole.shape).transpose(LAST) if last else whole
        return self.net.constant(str(value.name), whole, grid)


def _near(number: float) -> float:
    """Return a bound as it was meant: one that came off a grid is a hair beside it."""
    for meant in (0.0, 6.0):
        if abs(number - meant) < 1e-4:
            return meant
    return np.inf if number >= float(np.finfo(np.float32).max) else number
