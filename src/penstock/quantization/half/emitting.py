"""Emitting: the model in which the chosen nodes compute in 16 bits.

1. What such a node makes is 16 bits wide; the model's own inputs and outputs stay float32, with a Cast at the border.
2. A value that is needed in both types gets one Cast, behind where it is made.
3. Weights are stored in 16 bits, and so are those of nodes in fp32 whose values aren't the reason: these are read
   through a Cast, which runtimes carry out once, at loading.
4. A constant that nodes of both kinds read is stored twice where it is small; a large one once, with a Cast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.quantization.half.binding import Binding, is_float32
from penstock.quantization.half.types import Half
from penstock.quantization.placement import constant
from penstock.quantization.writing import Writer
from penstock.rewriting.walk import graphs_of

if TYPE_CHECKING:
    import onnx_ir as ir

    Array = np.ndarray[Any, np.dtype[Any]]

SMALL = 256  # elements of a constant that is kept twice rather than cast, or in fp32


@dataclass(frozen=True, slots=True)
class Plan:
    """What to emit: the nodes in 16 bits, how they are bound, and which constants may be stored in 16 bits."""

    half: Half
    nodes: frozenset[str]
    bindings: Mapping[str, Binding]
    storable: frozenset[ir.Value]  # of constants, as nobody who reads them minds


@dataclass(frozen=True, slots=True)
class Emitted:
    """The model, how many Casts it has at run time, and the bytes of constants in 16 bits and in float32."""

    model: ir.Model
    casts: int
    half_bytes: int
    float_bytes: int


def emit(model: ir.Model, plan: Plan) -> Emitted:
    """Rewrite ``model``, whose nodes have names and whose weights are initializers; the plan's values are its own."""
    return _Emitting(model, plan).run()


class _Emitting:
    def __init__(self, model: ir.Model, plan: Plan) -> None:
        self.model, self.graph, self.plan, self.half = model, model.graph, plan, plan.half
        self.writer = Writer(model)
        self.narrowed: dict[ir.Value, ir.Value] = {}
        self.widened: dict[ir.Value, ir.Value] = {}
        self.casts = 0

    def run(self) -> Emitted:
        chosen = [node for node in self.graph if node.name in self.plan.nodes]
        made = {node.outputs[i] for node in chosen for i in self.plan.bindings[str(node.name)].outputs}
        for node in chosen:
            self._retype(node)
        for value in made:
            self._widen_for_others(value)
        for node in chosen:
            for index in self.plan.bindings[str(node.name)].inputs:
                read = node.inputs[index]
                assert read is not None
                if read not in made:
                    node.replace_input_with(index, self._narrow(read))
        for graph in graphs_of(self.model):
            self._store(graph)
        return self._told()

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def _retype(self, node: ir.Node) -> None:
        """Let what a node makes be 16 bits wide, and its attributes say so where it reads nothing that would."""
        import onnx_ir as ir

        kind = self.half.dtype
        outputs = self.plan.bindings[str(node.name)].outputs
        for index in outputs:
            node.outputs[index].type = ir.TensorType(kind)
        if not outputs:
            return
        if node.op_type == "Cast" and node.domain == "":
            node.attributes["to"] = ir.AttrInt64("to", int(kind))
        elif node.op_type == "EyeLike":
            node.attributes["dtype"] = ir.AttrInt64("dtype", int(kind))
        elif node.op_type == "ConstantOfShape":
            held = node.attributes.get("value")
            array = np.zeros(1, np.float32) if held is None else held.as_tensor().numpy()
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(self.half.narrow(array), dtype=kind))

    def _widen_for_others(self, value: ir.Value) -> None:
        """Give those who read a value of 16 bits in fp32 a Cast, one for all of them."""
        others = [(use.node, use.idx) for use in value.uses() if not self._reads_narrow(use.node, use.idx)]
        ends = [index for index, end in enumerate(self.graph.outputs) if end is value]
        if not others and not ends:
            return
        wide = self._cast(value, self._float, f"{value.name}_float")
        for node, index in others:
            node.replace_input_with(index, wide)
        for index in ends:
            self.graph.outputs[index] = wide
        if ends:  # the caller knows the result by its name; what is declared of it may not be true inside
            wide.name, value.name = value.name, wide.name
            value.shape = None

    def _narrow(self, value: ir.Value) -> ir.Value:
        """Return a value of float32 in 16 bits: a constant of its own, or behind a Cast."""
        if value not in self.narrowed:
            if constant(value) and (self._is_ours(value) or not self._is_large(value)):
                assert value.const_value is not None
                array = self.half.narrow(value.const_value.numpy())
                self.narrowed[value] = self._held(self.graph, f"{value.name}_{self.half.name}", array)
            elif constant(value) and value in self.plan.storable:
                stored = self._stored(self.graph, value)
                self.narrowed[value] = stored
            else:
                self.narrowed[value] = self._cast(value, self.half.dtype, f"{value.name}_{self.half.name}")
        return self.narrowed[value]

    # -- constants -----------------------------------------------------------------------------------------------------

    def _is_ours(self, value: ir.Value) -> bool:
        """Whether nodes in 16 bits alone read a constant."""
        return not value.is_graph_output() and all(self._reads_narrow(use.node, use.idx) for use in value.uses())

    def _reads_narrow(self, node: ir.Node, index: int) -> bool:
        """Whether a node reads one of its inputs in 16 bits."""
        chosen = node.name in self.plan.nodes and node.graph is self.graph  # a body may hold a node of the same name
        return chosen and index in self.plan.bindings[str(node.name)].inputs

    def _is_large(self, value: ir.Value) -> bool:
        return value.const_value is not None and value.const_value.size > SMALL

    def _store(self, graph: ir.Graph) -> None:
        """Store the constants of a graph that nodes in fp32 read in 16 bits where that is allowed; drop unread ones."""
        for name, value in list(graph.initializers.items()):
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                del graph.initializers[name]
            elif value in self.plan.storable and self._is_large(value) and value not in self.widened:
                self._stored(graph, value)

    def _stored(self, graph: ir.Graph, value: ir.Value) -> ir.Value:
        """Replace a constant by one in 16 bits, which is returned, and a Cast for those who read it in float32."""
        assert value.const_value is not None
        uses = [(use.node, use.idx) for use in value.uses() if not self._reads_narrow(use.node, use.idx)]
        held = self._held(graph, f"{value.name}_{self.half.name}", self.half.narrow(value.const_value.numpy()))
        wide = self._cast(held, self._float, f"{value.name}_float", graph)
        self.widened[held] = wide
        for node, index in uses:
            node.replace_input_with(index, wide)
        del graph.initializers[str(value.name)]
        self.casts -= 1  # it is carried out at loading
        return held

    # -- making --------------------------------------------------------------------------------------------------------

    @property
    def _float(self) -> ir.DataType:
        import onnx_ir as ir

        return ir.DataType.FLOAT

    def _cast(self, value: ir.Value, to: ir.DataType, name: str, graph: ir.Graph | None = None) -> ir.Value:
        import onnx_ir as ir

        name = self.writer.free(name)
        node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(to))], name=name)
        out = node.outputs[0]
        out.name, out.type, out.shape = name, ir.TensorType(to), value.shape
        maker, graph = value.producer(), graph or self.graph
        if maker is not None:
            graph.insert_after(maker, [node])
        elif (first := next(iter(graph), None)) is not None:
            graph.insert_before(first, [node])
        self.casts += 1
        return out

    def _held(self, graph: ir.Graph, name: str, array: Array) -> ir.Value:
        return self.writer.hold(graph, name, array, self.half.dtype)

    def _told(self) -> Emitted:
        held = [v for graph in graphs_of(self.model) for v in graph.initializers.values() if v.const_value is not None]
        narrow = sum(v.const_value.nbytes for v in held if v.const_value is not None and v.dtype == self.half.dtype)
        wide = sum(v.const_value.nbytes for v in held if v.const_value is not None and is_float32(v))
        return Emitted(self.model, self.casts, narrow, wide)
