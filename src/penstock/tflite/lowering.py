"""Lowering: an ONNX graph of fixed sizes becomes a net of TFLite's operators, node by node.

TFLite's operators on pictures want channels last, so a tensor of four dimensions is held that way from the first
operator that wants it to the last that doesn't mind: what goes by elements goes on in the order that its inputs have.
What doesn't fit is transposed, and put back, at the border.

Integers: a node computes on them where all that it reads comes out of a DequantizeLinear and its one reader is a
QuantizeLinear, a Relu or Clip in between included. Otherwise it computes in float.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.rewriting.knowledge import Knowledge
from penstock.tflite.flatfile import TYPES, Array, Grid, Tensor
from penstock.tflite.net import FLOAT, INT8, Net, same

if TYPE_CHECKING:
    import onnx_ir as ir

LAST, BACK = (0, 2, 3, 1), (0, 3, 1, 2)  # the order of axes that brings channels last, and back
WHOLE = "it computes on whole numbers themselves, not on what they stand for"
ACTIVATIONS = {"": 0, "relu": 1, "relu6": 3}  # as the schema numbers them


class RefusedError(Exception):
    """A node can't be said in TFLite's operators; the text says why."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a value of the ONNX graph is in the net.

    ``last``: the tensor has the value's axes in the order of :data:`LAST`. ``flat``: it is a value (N, C·H·W) whose
    columns go by H, W and C; those are the sizes (C, H, W).
    """

    tensor: Tensor
    last: bool = False
    flat: tuple[int, int, int] | None = None


@dataclass(frozen=True, slots=True)
class Integers:
    """A constant on a grid, as it stands before a DequantizeLinear: int8 or int32 whole numbers."""

    whole: Array
    scale: Array
    zero_point: Array
    axis: int

    @property
    def real(self) -> Array:
        """The numbers that they stand for, float32."""
        shape = [1] * self.whole.ndim
        if self.scale.size > 1:
            shape[self.axis] = -1
        scale, zero = self.scale.reshape(shape or [1]), self.zero_point.reshape(shape or [1])
        found: Array = ((self.whole.astype(np.float32) - zero.astype(np.float32)) * scale).astype(np.float32)
        return found.reshape(self.whole.shape)


@dataclass(slots=True)
class Lowering:
    """A graph on its way into a net."""

    model: ir.Model
    channels_last: bool  # inputs and outputs of four dimensions are given that way
    whole_ends: bool  # integers go in and come out
    net: Net = field(default_factory=Net)
    held: dict[ir.Value, Held] = field(default_factory=dict)
    integers: dict[ir.Value, Integers] = field(default_factory=dict)
    raw: set[ir.Value] = field(default_factory=set)  # data that is integers in ONNX too, between Q and DQ
    done: set[ir.Node] = field(default_factory=set)
    refused: list[tuple[str, str, str]] = field(default_factory=list)  # node, operator, why
    known: Knowledge = field(init=False)
    inputs: list[tuple[str, Tensor]] = field(default_factory=list)
    outputs: list[tuple[str, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.known = Knowledge(self.model)
        self.known.learn(self.model.graph)
        for node in self.model.graph:
            self.known.visit(node)

    def run(self, rules: dict[str, Callable[[Place], None]]) -> None:
        """Lower all nodes; those that can't be are listed in ``refused``."""
        for value in self.model.graph.inputs:
            self._given(value)
        for node in self.model.graph:
            if node in self.done:
                continue
            rule = rules.get(node.op_type) if node.domain in ("", "ai.onnx") else None
            try:
                if rule is None:
                    raise RefusedError("there is no rule for this operator")
                rule(Place(self, node))
            except RefusedError as error:
                self.refused.append((str(node.name), node.op_type, str(error)))
                self._go_on(node)
        if not self.refused:
            for value in self.model.graph.outputs:
                self.outputs.append((str(value.name), self._wanted(value)))

    def sizes(self, value: ir.Value | None) -> tuple[int, ...]:
        """Return the shape of a value. Raises ``RefusedError`` where it isn't known."""
        found = self.known.shape(value)
        if value is not None and (array := self.array(value)) is not None:
            return tuple(array.shape)
        if found is None or not all(isinstance(size, int) for size in found):
            name = "an input that isn't there" if value is None else repr(value.name)
            raise RefusedError(f"the shape of {name} isn't known")
        return tuple(int(size) for size in found)  # type: ignore[arg-type]  # whole numbers, as was seen

    def array(self, value: ir.Value | None) -> Array | None:
        """Return what a constant holds."""
        if value is None:
            return None
        if value.const_value is not None:
            found: Array = value.const_value.numpy()
            return found
        node = value.producer()
        if node is not None and node.op_type == "Constant":
            tensor = node.attributes.get_tensor("value", None)
            return None if tensor is None else tensor.numpy()
        return None

    def only_reader(self, value: ir.Value, *operators: str) -> ir.Node | None:
        """Return the one node that reads a value, if it is of these operators and the value is no output."""
        uses = value.uses()
        if len(uses) != 1 or value.is_graph_output():
            return None
        node, index = next(iter(uses))
        return node if node.op_type in operators and index == 0 else None

    def grid(self, node: ir.Node) -> Grid:
        """Return the grid of a QuantizeLinear or DequantizeLinear of data, on int8: uint8 is shifted by 128."""
        scale = self.array(node.inputs[1])
        zero = self.array(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
        if scale is None or scale.size != 1:
            raise RefusedError("data has one scale that is a constant, or isn't understood")
        if zero is not None and zero.dtype not in (np.int8, np.uint8):
            raise RefusedError(f"its integers are {zero.dtype}, and data is int8 or uint8 there")
        if zero is None:
            kind = node.attributes.get_int("output_dtype", 2) if node.op_type == "QuantizeLinear" else 2
            zero = np.zeros(1, np.uint8 if kind == 2 else np.int8)
        shift = 128 if zero.dtype == np.uint8 else 0
        return Grid(scale.reshape(1).astype(np.float32), zero.reshape(1).astype(np.int64) - shift)

    def put(self, value: ir.Value, tensor: Tensor, *, last: bool = False, flat: Any = None) -> None:
        """Say what a value is in the net."""
        self.held[value] = Held(tensor, last, flat)

    def plain(self, held: Held) -> Tensor:
        """Return a tensor in the order that the value has in ONNX."""
        if held.last:
            return self.net.transposed(held.tensor, BACK)
        if held.flat is not None:
            c, h, w = held.flat
            rows = held.tensor.shape[0]
            back = self.net.transposed(self.net.reshaped(held.tensor, (rows, h, w, c)), BACK)
            return self.net.reshaped(back, (rows, c * h * w))
        return held.tensor

    def with_last(self, held: Held) -> Tensor:
        """Return a tensor of four dimensions with its channels last."""
        return held.tensor if held.last else self.net.transposed(self.plain(held), LAST)

    def _given(self, value: ir.Value) -> None:
        if value.is_initializer():
            return
        name, sizes = str(value.name), self.sizes(value)
        last = self.channels_last and len(sizes) == 4
        if last:
            sizes = tuple(sizes[axis] for axis in LAST)
        reader = self.only_reader(value, "QuantizeLinear") if self.whole_ends else None
        if reader is not None:
            tensor = self.net.tensor(name, sizes, INT8, self.grid(reader))
            self.put(reader.outputs[0], tensor, last=last)
            self.raw.add(reader.outputs[0])
            self.done.add(reader)
        else:
            if value.dtype is None or np.dtype(value.dtype.numpy()) not in TYPES:
                raise RefusedError(f"the input {name!r} is of a type that there is none of: {value.dtype}")
            if self.whole_ends:
                raise RefusedError(f"the input {name!r} isn't quantized by one QuantizeLinear, so it can't be integers")
            tensor = self.net.tensor(name, sizes, np.dtype(value.dtype.numpy()))
            self.put(value, tensor, last=last)
        self.inputs.append((name, tensor))

    def _wanted(self, value: ir.Value) -> Tensor:
        node = value.producer()
        if self.whole_ends and node is not None and node.op_type == "DequantizeLinear" and value in self.held:
            held = self.held[value]  # the integers themselves
        else:
            if self.whole_ends:
                raise RefusedError(
                    f"the output {value.name!r} isn't made by a DequantizeLinear, so it can't be integers"
                )
            if value in self.raw:
                raise RefusedError(f"the output {value.name!r} is integers that no DequantizeLinear reads")
            held = self.held[value]
        tensor = held.tensor if held.last and self.channels_last else self.plain(held)
        return tensor if self.whole_ends else self.net.floats(tensor)

    def _go_on(self, node: ir.Node) -> None:
        """Let nodes behind a refused one be looked at too."""
        for value in node.outputs:
            try:
                self.put(value, self.net.tensor(str(value.name), self.sizes(value), FLOAT))
            except RefusedError:
                self.put(value, self.net.tensor(str(value.name), (), FLOAT))


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
