"""What a rule sees of the graph around a node, and with what it builds the replacement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from penstock.rewriting import Refusal, Rewrite
from penstock.rewriting.knowledge import Elements, Knowledge, Shape, constant
from penstock.rewriting.walk import refers
from penstock.rewriting.wiring import read_count

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    Array = np.ndarray[tuple[int, ...], np.dtype[Any]]


class Site:
    """The graph as a rule may look at it. Nothing here changes the graph; nodes that a rule makes are not in it yet."""

    def __init__(self, known: Knowledge) -> None:
        self.known = known
        self.opset = known.opset
        self.made: list[ir.Node] = []
        self.work = 0  # of rules that look far around a node; see Editor.work
        self.sweeping = False  # every node is shown, in the order of its graph
        self.memo: dict[str, dict[Any, Any]] = {}  # what rules keep for themselves during one sweep
        self._ranks: dict[ir.Graph, dict[ir.Node, tuple[int, float]]] = {}  # where a node stands, of graphs asked for
        self._puts = 0  # nodes that were put before others, so far
        self.functions: set[int] = set()  # the graphs of functions, by identity
        self.owners: dict[ir.Graph, ir.Node] = {}  # the node in which a body lies

    # -- values --------------------------------------------------------------------------------------------------------

    def shape(self, value: ir.Value | None) -> Shape | None:
        """Return the shape as sizes, ``None`` where the rank isn't known."""
        return self.known.shape(value)

    def rank(self, value: ir.Value | None) -> int | None:
        """Return the rank."""
        shape = self.known.shape(value)
        return None if shape is None else len(shape)

    def static(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """Return the shape where every size is a number."""
        shape = self.known.shape(value)
        if shape is None:
            return None
        found = tuple(size for size in shape if isinstance(size, int))
        return found if len(found) == len(shape) else None

    def sizes(self, value: ir.Value | None) -> Elements | None:
        """Return the elements of a small integer tensor, as far as they are known."""
        return self.known.sizes(value)

    def ints(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """Return the elements of a small integer tensor where all are known numbers."""
        sizes = self.known.sizes(value)
        if sizes is None:
            return None
        found = tuple(size for size in sizes if isinstance(size, int))
        return found if len(found) == len(sizes) else None

    def tensor(self, value: ir.Value | None) -> ir.TensorProtocol | None:
        """Return a constant's tensor without reading its data."""
        return None if value is None else constant(value)

    def array(self, value: ir.Value | None) -> Array | None:
        """Return a constant's numbers."""
        tensor = None if value is None else constant(value)
        return None if tensor is None else tensor.numpy()

    def scalar(self, value: ir.Value | None) -> float | None:
        """Return the number of a constant of one element, whatever its rank."""
        tensor = None if value is None else constant(value)
        if tensor is None or tensor.size != 1 or tensor.dtype.is_string():
            return None
        return float(tensor.numpy().reshape(-1)[0])

    def filled_with(self, value: ir.Value | None, number: float) -> bool:
        """Whether a constant of at most 65,536 elements holds this number and no other."""
        tensor = None if value is None else constant(value)
        if tensor is None or tensor.size == 0 or tensor.size > 1 << 16 or tensor.dtype.is_string():
            return False
        return bool((tensor.numpy() == number).all())

    # -- the graph around ----------------------------------------------------------------------------------------------

    def maker(self, value: ir.Value | None, *ops: str) -> ir.Node | None:
        """Return the node that makes a value, if it is a standard operator of one of these names (none: any).

        One of which a function's call gives the attributes is none.
        """
        node = None if value is None else value.producer()
        if node is None or node.domain != "" or (ops and node.op_type not in ops) or refers(node):
            return None
        return node

    def sole_reader(self, value: ir.Value) -> bool:
        """Whether one node reads the value, once, as often as it is made, and it is no output of its graph."""
        return read_count(value) == 1 and not value.is_graph_output() and not self._turning(value)

    def need_sole_reader(self, value: ir.Value, what: str) -> None:
        """Raise ``Refusal`` where others read the value as well."""
        if value.is_graph_output():
            raise Refusal(f"{what} is an output of its graph")
        if (count := read_count(value)) != 1:
            raise Refusal(f"{what} has {count} consumers")
        if loop := self._turning(value):
            raise Refusal(f"{what} is read in the body of a {loop.op_type}, at every turn")

    def _turning(self, value: ir.Value) -> ir.Node | None:
        """Return the Loop or Scan in whose body the value is read, where it is made outside: once for all turns."""
        maker, (use, *_) = value.producer(), value.uses()
        graph = use.node.graph
        while maker is not None and graph is not None and graph is not maker.graph:
            owner = self.owners.get(graph)
            if owner is None or owner.op_type in ("Loop", "Scan"):
                return owner
            graph = owner.graph
        return None

    def in_function(self, node: ir.Node) -> bool:
        """Whether a node lies in a function, where there are no initializers."""
        return id(node.graph) in self.functions

    def first_of(self, nodes: Sequence[ir.Node]) -> ir.Node:
        """Return the one that comes first in the graph of all of them."""
        graph = nodes[0].graph
        assert graph is not None
        if graph not in self._ranks or any(node not in self._ranks[graph] for node in nodes):
            self._ranks[graph] = {node: (number, math.inf) for number, node in enumerate(graph)}
        ranks = self._ranks[graph]
        first = min(ranks[node] for node in nodes)
        found = dict.fromkeys(node for node in nodes if ranks[node] == first)
        return next(iter(found)) if len(found) == 1 else next(node for node in graph if node in found)

    def forget(self) -> None:
        """Forget what a whole pass or a new sweep may have made untrue."""
        self.memo.clear()
        self._ranks.clear()

    def placed(self, nodes: Sequence[ir.Node], place: ir.Node) -> None:
        """Note that nodes were put right before another one, in this order."""
        ranks = self._ranks.get(place.graph) if place.graph is not None else None
        if ranks is None:
            return
        number, among = ranks[place]
        for node in nodes:  # before one that was put there itself: which comes first is looked up when it is asked
            self._puts += 1
            ranks[node] = (number, self._puts if among == math.inf else among)

    def same_graph(self, *nodes: ir.Node) -> bool:
        """Whether nodes lie in the same graph."""
        return all(node.graph is nodes[0].graph for node in nodes)

    # -- building ------------------------------------------------------------------------------------------------------

    def make(
        self, op: str, inputs: Sequence[ir.Value | None], *, outputs: int = 1, domain: str = "", **attributes: Any
    ) -> ir.Value:
        """Make a node; return its first output. An attribute that is ``None`` is left out."""
        import onnx_ir as ir

        while inputs and inputs[-1] is None:
            inputs = inputs[:-1]
        made = [_attribute(name, value) for name, value in attributes.items() if value is not None]
        node = ir.Node(domain, op, inputs, made, num_outputs=outputs)
        self.made.append(node)
        return node.outputs[0]

    def copy(self, node: ir.Node, inputs: Sequence[ir.Value | None], **changed: Any) -> ir.Value:
        """Make a node like another one, with other inputs and some attributes changed (``None``: left out)."""
        kept = {name: attribute for name, attribute in node.attributes.items() if name not in changed}
        if any(attribute.type.name in ("GRAPH", "GRAPHS") for attribute in kept.values()):
            raise ValueError("a body can't be in two nodes")
        made = self.make(node.op_type, inputs, outputs=len(node.outputs), domain=node.domain, **kept, **changed)
        self.made[-1].name = node.name  # which it keeps if the other one goes
        return made

    def constant(self, array: Array, dtype: ir.DataType | None = None) -> ir.Value:
        """Make a constant; it becomes an initializer when the rewrite is carried out."""
        import numpy as np
        import onnx_ir as ir

        held = np.asarray(array, order="C")  # ascontiguousarray adds an axis to a scalar
        plain = held.dtype.kind in "biuf" and dtype in (None, ir.DataType.from_numpy(held.dtype))
        # what tells other kinds of arrays apart takes eight times as long
        tensor = ir.Tensor(held) if plain else ir.tensor(held, dtype=dtype)
        return ir.Value(shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)

    def held(self, tensor: ir.TensorProtocol) -> ir.Value:
        """Make a constant of a tensor as it is, without reading it."""
        import onnx_ir as ir

        shape = ir.Shape([int(dim) for dim in tensor.shape.numpy()])
        return ir.Value(shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)

    def int64s(self, numbers: Sequence[int]) -> ir.Value:
        """Make a constant of integers ``(n,)``."""
        import numpy as np

        return self.constant(np.array(numbers, dtype=np.int64))

    def with_axes(self, op: str, value: ir.Value, axes: Sequence[int], **attributes: Any) -> ir.Value:
        """Make a node whose axes are an attribute in old opsets and an input in new ones."""
        since = {"Squeeze": 13, "Unsqueeze": 13, "ReduceSum": 13}.get(op, 18)
        if self.opset < since:
            return self.make(op, [value], axes=list(axes), **attributes)
        return self.make(op, [value, self.int64s(axes)], **attributes)

    def instead(self, node: ir.Node, value: ir.Value, what: str) -> Rewrite:
        """Return the rewrite that puts a value in the place of a node's first output."""
        return Rewrite({node.outputs[0]: value}, what)


def _attribute(name: str, value: Any) -> ir.Attr:
    import onnx_ir as ir

    if isinstance(value, ir.Attr):
        return value
    if isinstance(value, bool | int):
        return ir.AttrInt64(name, int(value))
    if isinstance(value, float):
        return ir.AttrFloat32(name, value)
    if isinstance(value, str):
        return ir.AttrString(name, value)
    if isinstance(value, ir.TensorProtocol):
        return ir.AttrTensor(name, value)
    if value and isinstance(value[0], float):
        return ir.AttrFloat32s(name, list(value))
    if value and isinstance(value[0], str):
        return ir.AttrStrings(name, list(value))
    return ir.AttrInt64s(name, [int(item) for item in value])


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """Return an attribute's value, or the default. Raises ``Refusal`` for one that a call of the function gives."""
    found = node.attributes.get(name)
    if found is None:
        return default
    if found.is_ref():
        raise Refusal(f"its {name} is given where the function is called")
    return found.value
