"""Emit: a float model, a placement and the grids become a model with QuantizeLinear and DequantizeLinear pairs.

Weights are integers in the file, followed by a DequantizeLinear; biases int32 on the grid of products, where the
consumer wants that. A runtime that knows the form computes on the integers; one that doesn't, computes in float.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.quantization import probe
from penstock.quantization.ends import bias_home
from penstock.quantization.grid import SPANS, Grid
from penstock.quantization.keep_float import LOWEST, keep_float, rounds_again
from penstock.quantization.placement import Placement
from penstock.quantization.writing import Writer

if TYPE_CHECKING:
    import onnx_ir as ir

    Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """Weights on their grid: the integers, and the row that is added to the result (float, ``None`` for none)."""

    whole: Array
    grid: Grid
    bias: Array | None


def emit(model: ir.Model, placement: Placement, grids: Mapping[str, Grid], weights: Mapping[str, Weights]) -> ir.Model:
    """Return a quantized copy. ``grids`` are by quantized tensor, ``weights`` by weighted node."""
    return _Emitting(model.clone(), placement, grids).run(weights)


class _Emitting:
    def __init__(self, model: ir.Model, placement: Placement, grids: Mapping[str, Grid]) -> None:
        self.model, self.placement, self.grids = model, placement, grids
        self.graph = model.graph
        self.nodes = {str(node.name): node for node in model.graph}
        self.values = {**model.graph.initializers, **probe.values(model)}
        self.writer = Writer(model)
        self.lowest: ir.Value | None = None
        self.narrowed = {key: tensor for keys in placement.borders.values() for tensor, key in keys.items()}
        self.parameters: dict[int, tuple[ir.Value, ir.Value]] = {}
        self.held: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}

    def run(self, weights: Mapping[str, Weights]) -> ir.Model:
        readers = {name: self.nodes[name] for name in self.placement.reads}
        for node, tensor in self.placement.absorbed.items():
            self._absorb(self.nodes[node], tensor)
        for tensor in self.placement.sources:
            self._pair(tensor, readers)
        for name, held in weights.items():
            self._weigh(self.nodes[name], held)
        if self.placement.consumer.name == "ort-cpu":
            keep_float(self.graph, self.placement, self._lowest)
        used = {value for node in self.graph.all_nodes() for value in node.inputs} | set(self.graph.outputs)
        for name in [name for name, value in self.graph.initializers.items() if value not in used]:
            del self.graph.initializers[name]
        self._forget_sizes()
        return self.model

    def _forget_sizes(self) -> None:
        """Let inner tensors have the named sizes of inputs alone.

        An exporter may give one name to sizes that differ, of three outputs, say, and those were outputs alone. What
        lies between Q and DQ now has the name as well, and ONNX Runtime lets tensors of equal names share memory.
        """
        import onnx_ir as ir

        known = {_name(dim) for value in self.graph.inputs for dim in value.shape or ()}
        for node in self.graph:
            for value in node.outputs:
                if value.shape is None or value.is_graph_output():
                    continue
                kept = [dim if isinstance(dim, int) or _name(dim) in known else None for dim in value.shape]
                if kept != [*value.shape]:
                    value.shape = ir.Shape(kept)

    def _lowest(self) -> ir.Value:
        if self.lowest is None:
            self.lowest = self._initializer("lowest_float", np.array(LOWEST, np.float32))
        return self.lowest

    def _absorb(self, node: ir.Node, tensor: str) -> None:
        """Leave a Relu or Clip out where the grid behind it clips as it does."""
        import onnx_ir as ir

        before, out = node.inputs[0], node.outputs[0]
        assert before is not None
        if tensor not in self.grids or not clips(node, self.grids[tensor]):
            return
        shape, name = out.shape, out.name
        ir.convenience.replace_all_uses_with(out, before, replace_graph_outputs=True)
        self.graph.remove([node], safe=True)
        out.name = None
        before.name, before.shape = name, before.shape or shape
        self.values[tensor] = before

    def _pair(self, tensor: str, readers: Mapping[str, ir.Node]) -> None:
        """Put a pair behind a tensor: for all who read it, or for those who want integers.

        ``tensor`` may be the key of a border's grid: it stands behind the pair of 16 bits, where there is one for all.
        """
        read = self.narrowed.get(tensor, tensor)
        value, grid = self.values[read], self.grids[tensor]
        reads = [
            (node, index)
            for name, node in readers.items() for index in self.placement.reads[name]
            if index < len(node.inputs) and node.inputs[index] is value and self.placement.key(name, read) == tensor
        ]  # fmt: skip
        whole = tensor in self.placement.whole
        if not reads and not whole:
            return
        scale, zero = self._parameters(tensor, grid)
        if value.const_value is not None and not value.is_graph_input():
            whole_numbers = grid.quantize(value.const_value.numpy())
            integers = self._initializer(f"{tensor}_quantized", whole_numbers.astype(grid.dtype))
            back = self._node("DequantizeLinear", [integers, scale, zero], f"{tensor}_dequantized")
            self.graph.insert_before(min((n for n, _ in reads), key=self._place), back)
            for node, index in reads:
                node.replace_input_with(index, back.outputs[0])
            return
        uses = [(use.node, use.idx) for use in value.uses()] if whole else reads
        there = self._node("QuantizeLinear", [value, scale, zero], f"{tensor}_quantized", like=value)
        back = self._node("DequantizeLinear", [there.outputs[0], scale, zero], f"{tensor}_dequantized", like=value)
        maker = value.producer()
        if maker is None:
            first = next(iter(self.graph))
            self.graph.insert_before(first, [there, back])
        else:
            self.graph.insert_after(maker, [there, back])
        for node, index in uses:
            node.replace_input_with(index, back.outputs[0])
        if whole:
            self.values[tensor] = back.outputs[0]
            for index, end in enumerate(self.graph.outputs):
                if end is value:
                    self.graph.outputs[index] = back.outputs[0]
                    back.outputs[0].name, value.name = value.name, self.writer.free(f"{tensor}_real")
                    back.outputs[0].type, back.outputs[0].shape = value.type, value.shape

    def _place(self, node: ir.Node) -> int:
        if not hasattr(self, "_order"):
            self._order = {one: number for number, one in enumerate(self.graph)}
        return self._order.get(node, 0)

    def _weigh(self, node: ir.Node, held: Weights) -> None:
        index = self.placement.weights[str(node.name)]
        old = node.inputs[index]
        assert old is not None
        stem = str(old.name)
        integers = self._shared(f"{stem}_quantized", held.whole.astype(held.grid.dtype))
        scale = self._shared(f"{stem}_scale", held.grid.scale.astype(np.float32))
        zero = self._shared(f"{stem}_zero_point", held.grid.zero.astype(held.grid.dtype))
        back = self._node("DequantizeLinear", [integers, scale, zero], f"{stem}_dequantized", held.grid.axis)
        self.graph.insert_before(node, back)
        node.replace_input_with(index, back.outputs[0])
        data = self._grid_of(node.inputs[1 - index])
        if self.placement.consumer.name == "ort-cpu" and data is not None and rounds_again(node, data):
            same = self._node("Max", [back.outputs[0], self._lowest()], f"{stem}_stays_apart")
            self.graph.insert_before(node, same)
            node.replace_input_with(index, same.outputs[0])
        if held.bias is not None:
            self._bias(node, held)

    def _bias(self, node: ir.Node, held: Weights) -> None:
        """Set what is added: int32 on the grid of products, or float."""
        assert held.bias is not None
        stem = f"{node.name}_bias"
        if node.op_type == "MatMul":
            home = bias_home(node)
            if home is None:  # the Add computes on integers itself, and its row is on a grid already
                return
            fresh = self._initializer(f"{stem}_corrected", held.bias.astype(np.float32))
            home[0].replace_input_with(home[1], fresh)
            return
        there = node.inputs[2] if len(node.inputs) > 2 else None
        if there is not None:
            stem = str(there.name)
        data = node.inputs[1 - self.placement.weights[str(node.name)]]
        grid = self._grid_of(data)
        if not self.placement.consumer.integer_bias or grid is None:
            bias = self._initializer(f"{stem}_corrected" if there is not None else stem, held.bias.astype(np.float32))
        else:
            products = product_grid(grid, held.grid, len(held.bias))
            integers = self._shared(f"{stem}_quantized", products.quantize(held.bias).astype(np.int32))
            scale = self._shared(f"{stem}_scale", products.scale.astype(np.float32))
            back = self._node("DequantizeLinear", [integers, scale], f"{stem}_dequantized", products.axis)
            self.graph.insert_before(node, back)
            bias = back.outputs[0]
        if there is not None:
            node.replace_input_with(2, bias)
        else:
            node.resize_inputs(3)
            node.replace_input_with(2, bias)

    def _grid_of(self, value: ir.Value | None) -> Grid | None:
        maker = value.producer() if value is not None else None
        if maker is None or maker.op_type != "DequantizeLinear" or maker.inputs[1] is None:
            return None
        return self.scales.get(str(maker.inputs[1].name))

    @property
    def scales(self) -> dict[str, Grid]:
        """Grids by the name of their scale."""
        made = (grid for grid in self.grids.values() if id(grid) in self.parameters)
        return {str(self.parameters[id(grid)][0].name): grid for grid in made}

    # -- making --------------------------------------------------------------------------------------------------------

    def _parameters(self, stem: str, grid: Grid) -> tuple[ir.Value, ir.Value]:
        if id(grid) not in self.parameters:
            scale = self._initializer(f"{stem}_scale", grid.scale.astype(np.float32))
            zero = self._initializer(f"{stem}_zero_point", grid.zero.astype(grid.dtype))
            self.parameters[id(grid)] = scale, zero
        return self.parameters[id(grid)]

    def _shared(self, name: str, array: Array) -> ir.Value:
        """Return the initializer of this name and content: layers that share a weight share its integers."""
        key = name, array.shape, hashlib.sha256(array.tobytes()).digest()
        if key not in self.held:
            self.held[key] = self._initializer(name, array)
        return self.held[key]

    def _initializer(self, name: str, array: Array) -> ir.Value:
        return self.writer.hold(self.graph, name, array)

    def _node(
        self, op: str, inputs: list[ir.Value], name: str, axis: int | None = None, *, like: ir.Value | None = None
    ) -> ir.Node:
        kind = inputs[2].dtype if op == "QuantizeLinear" else None
        more: dict[str, Any] = {} if axis is None else {"axis": axis}
        shape = (like if like is not None else inputs[0]).shape
        return self.writer.node(op, inputs, name, ["FLOAT" if kind is None else kind.name], shape=shape, **more)


def _name(dim: object) -> str | None:
    found = getattr(dim, "value", None)
    return None if found is None else str(found)


def product_grid(data: Grid, weights: Grid, channels: int) -> Grid:
    """Return the int32 grid on which products of two grids lie, for a bias of so many channels."""
    scale = (data.scale.reshape(()) * weights.scale).astype(np.float32).reshape(-1)
    low, high = SPANS["int32"]
    if scale.size == 1:
        return Grid("int32", scale.reshape(()), np.array(0), None, low, high)
    scale = np.tile(scale, channels // scale.size)
    return Grid("int32", scale, np.zeros(channels, np.int64), 0, low, high)


def clips(node: ir.Node, grid: Grid) -> bool:
    """Whether a grid holds nothing that a Relu or Clip would change, but for rounding."""
    low, high = bounds(node)
    slack = 1e-4 * (grid.top - grid.bottom) / max(grid.high - grid.low, 1)
    return grid.bottom >= low - slack and grid.top <= high + slack


def bounds(node: ir.Node) -> tuple[float, float]:
    """Return what a Relu or Clip bounds its result by."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    low, high = -float("inf"), float("inf")
    if len(node.inputs) > 1 and node.inputs[1] is not None and node.inputs[1].const_value is not None:
        low = float(node.inputs[1].const_value.numpy().reshape(-1)[0])
    if len(node.inputs) > 2 and node.inputs[2] is not None and node.inputs[2].const_value is not None:
        high = float(node.inputs[2].const_value.numpy().reshape(-1)[0])
    return low, high
