"""Lowering: an ONNX graph of fixed sizes becomes a net of TFLite's operators, node by node.

TFLite's operators on pictures want channels last, so a tensor of four dimensions is held that way from the first
operator that wants it to the last that doesn't mind: what goes by elements goes on in the order that its inputs have.
What doesn't fit is transposed, and put back, at the border.

Integers: a node computes on them where all that it reads comes out of a DequantizeLinear and its one reader is a
QuantizeLinear, a Relu or Clip in between included. Otherwise it computes in float.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.rewriting.knowledge import Knowledge
from penstock.tflite.flatfile import TYPES, Array, Grid, Tensor
from penstock.tflite.held import BACK, LAST, Held, Integers, RefusedError
from penstock.tflite.net import FLOAT, INT8, Net
from penstock.tflite.place import Place

if TYPE_CHECKING:
    import onnx_ir as ir


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
                self._need_all(node)
            except RefusedError as error:
                self.refused.append((str(node.name), node.op_type, str(error)))
                self._go_on(node)
        if not self.refused:
            for value in self.model.graph.outputs:
                self.outputs.append((str(value.name), self._wanted(value)))

    def _need_all(self, node: ir.Node) -> None:
        """Refuse a node of which something is asked that its rule doesn't make: the indices of a maximum, a mask."""
        for place, value in enumerate(node.outputs[1:], 1):
            made = value in self.held or value in self.integers or any(use.node in self.done for use in value.uses())
            if not made and (value.uses() or value.is_graph_output()):
                raise RefusedError(f"its output {place} is asked for, and TFLite's operator has none")

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
            held = self._made(value)
        tensor = held.tensor if held.last and self.channels_last else self.plain(held)
        return tensor if self.whole_ends else self.net.floats(tensor)

    def _made(self, value: ir.Value) -> Held:
        """Return what an output is in the net; one that is a constant, on a grid or not, is put into it."""
        if value not in self.held:
            array = self.integers[value].real if value in self.integers else self.array(value)
            if array is None or array.dtype not in TYPES:
                raise RefusedError(f"the output {value.name!r} is made by no operator that is written")
            self.put(value, self.net.constant(str(value.name), array))
        return self.held[value]

    def _go_on(self, node: ir.Node) -> None:
        """Let nodes behind a refused one be looked at too."""
        for value in node.outputs:
            try:
                self.put(value, self.net.tensor(str(value.name), self.sizes(value), FLOAT))
            except RefusedError:
                self.put(value, self.net.tensor(str(value.name), (), FLOAT))
