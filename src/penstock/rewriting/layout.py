"""Plan how a model looks on a target that keeps images channels-last: ``(N, H, W, C)`` for ONNX's ``(N, C, H, W)``.

ONNX's Conv knows one layout alone, so this changes no model: a writer of another format follows the plan.

1. Convolutions, pools, resizing and normalizations by channel take and give channels-last images.
2. From there the order spreads over all operators that can be written for it (:mod:`penstock.rewriting.turned`).
3. A Flatten or Reshape to ``(N, C·H·W)`` that only products with constant weights read, or element-wise operators
   before them, gives its columns in the order ``(H, W, C)``; the weights are to be permuted alike.
4. What is left needs a Transpose: at the model's inputs and outputs, and inside where an operator wants its own order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from penstock.rewriting.knowledge import Knowledge
from penstock.rewriting.orders import Order, after, inverse, keeps, order_of, reordered
from penstock.rewriting.site import Site
from penstock.rewriting.turned import turned

if TYPE_CHECKING:
    import onnx_ir as ir

_IMAGES = """Conv ConvTranspose ConvInteger QLinearConv MaxPool AveragePool LpPool GlobalMaxPool GlobalAveragePool
GlobalLpPool BatchNormalization InstanceNormalization GroupNormalization LRN Resize Upsample DepthToSpace
SpaceToDepth"""
OF_IMAGES = frozenset(_IMAGES.split())
_ONE_BY_ONE = frozenset(("Relu", "Sigmoid", "Tanh", "Clip", "LeakyRelu", "HardSwish", "HardSigmoid", "Elu", "Dropout",
                         "Identity", "QuantizeLinear", "DequantizeLinear", "Gelu", "Neg", "Abs", "Exp"))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Turn:
    """A Transpose that remains: value ``v`` of the model is ``Transpose(v', order)`` of the planned ``v'``."""

    value: str
    order: Order
    place: Literal["input", "output", "inside"]
    why: str


@dataclass(frozen=True, slots=True)
class LayoutPlan:
    """How each value is laid out, by its name, and where a Transpose remains.

    ``orders``: of the values that aren't laid out as in the model; axis ``i`` there is axis ``orders[v][i]`` here.
    ``inputs``: by the first output of a node, the order in which it reads each input (``None``: as in the model);
    constants are laid out with :func:`penstock.rewriting.orders.turned_constant`, attributes with axes are mapped.
    ``columns``: values ``(N, K)`` whose column ``j`` is column ``columns[v][j]`` of the model.
    """

    orders: Mapping[str, Order]
    inputs: Mapping[str, tuple[Order | None, ...]]
    columns: Mapping[str, tuple[int, ...]]
    transposes: tuple[Turn, ...]


def last(rank: int) -> Order:
    """Return the order of an image with its channels last: ``(N, C, H, W) = Transpose((N, H, W, C), [0, 3, 1, 2])``."""
    return (0, rank - 1, *range(1, rank - 1))


def channels_last(model: ir.Model) -> LayoutPlan:
    """Plan the layout of a model's graph. Bodies of If, Loop and Scan stay as they are."""
    known = Knowledge(model)
    known.learn(model.graph)
    planner = _Planner(Site(known), model.graph)
    for node in model.graph:
        planner.begin(node)
    planner.spread()
    for node in model.graph:
        planner.flatten(node)
    return LayoutPlan(
        {str(value.name): order for value, order in planner.orders.items()},
        {str(node.outputs[0].name): orders for node, orders in planner.inputs.items()},
        {str(value.name): columns for value, columns in planner.columns.items()},
        tuple(planner.transposes()),
    )


@dataclass(slots=True)
class _Planner:
    site: Site
    graph: ir.Graph
    orders: dict[ir.Value, Order] = field(default_factory=dict)
    inputs: dict[ir.Node, tuple[Order | None, ...]] = field(default_factory=dict)
    columns: dict[ir.Value, tuple[int, ...]] = field(default_factory=dict)
    fresh: list[ir.Value] = field(default_factory=list)

    def begin(self, node: ir.Node) -> None:
        """Let an operator of images have its images channels-last."""
        ranks = {self.site.rank(value) for value in (*node.inputs[:1], *node.outputs[:1])}
        rank = ranks.pop() if len(ranks) == 1 else None
        if node.op_type not in OF_IMAGES or node.domain != "" or rank is None or rank < 3:
            return
        self.take(node.inputs[0], last(rank))
        self.take(node.outputs[0], last(rank))
        self.inputs[node] = (last(rank), *(None,) * (len(node.inputs) - 1))

    def fits(self, value: ir.Value | None, order: Order | None) -> bool:
        """Whether a value can have this order."""
        if value is None or order is None or self.site.tensor(value) is not None:
            return True
        return self.orders.get(value, order) == order or keeps(self.site.shape(value), order)

    def take(self, value: ir.Value | None, order: Order | None) -> None:
        """Give a value its order."""
        if value is None or order is None or value in self.orders or self.site.tensor(value) is not None:
            return
        if not keeps(self.site.shape(value), order):
            self.orders[value] = order
            self.fresh.append(value)

    def spread(self) -> None:
        """Write the operators around for the order of what they read or make."""
        for value in self.fresh:  # it grows meanwhile
            producer = value.producer()
            places = [(use.node, False, use.idx) for use in value.uses()]
            if producer is not None:
                places.append((producer, True, value.index() or 0))
            for node, of_output, place in places:
                if node in self.inputs or node.graph is not self.graph or node.op_type == "Transpose":
                    continue
                made = turned(node, self.site, self.orders[value], of_output=of_output)
                if made is None or len(made.inputs) != len(node.inputs):
                    continue
                pairs = [*zip(node.inputs, made.inputs, strict=True), *zip(node.outputs, made.outputs, strict=True)]
                here = (made.outputs if of_output else made.inputs)[place]
                if here == self.orders[value] and all(self.fits(*pair) for pair in pairs):
                    self.inputs[node] = made.inputs
                    for pair in pairs:
                        self.take(*pair)

    def flatten(self, node: ir.Node) -> None:
        """Let the columns of a flattened image be in its order, where what reads them has constant weights."""
        value = node.inputs[0] if node.inputs else None
        shape = self.site.shape(value)
        if node.op_type not in ("Flatten", "Reshape") or node in self.inputs or value not in self.orders:
            return
        sizes = [size for size in (shape or ())[1:] if isinstance(size, int)]
        count, order, end = 1, self.orders[value], self.site.shape(node.outputs[0])
        for size in sizes:
            count *= size
        if shape is None or len(sizes) != len(shape) - 1 or end is None or len(end) != 2 or end[1] != count:
            return
        reached: list[ir.Value] = [node.outputs[0]]
        for one in reached:
            if one.is_graph_output():
                return
            for use in one.uses():
                reader = use.node
                if use.idx == 0 and reader.op_type in _ONE_BY_ONE and len(reader.outputs) == 1:
                    reached.append(reader.outputs[0])
                elif not self._product(reader, use.idx):
                    return
        places = reordered(range(len(shape)), order)[1:]
        steps = [1] * len(shape)
        for axis in range(len(shape) - 2, 0, -1):
            steps[axis] = steps[axis + 1] * sizes[axis]
        columns = [0]
        for axis in places:
            columns = [start + step * steps[axis] for start in columns for step in range(sizes[axis - 1])]
        self.inputs[node] = (order, *(None,) * (len(node.inputs) - 1))
        self.columns |= dict.fromkeys(reached, tuple(columns))

    def _product(self, node: ir.Node, place: int) -> bool:
        if node.op_type not in ("Gemm", "MatMul") or node.domain != "" or place != 0 or node.graph is not self.graph:
            return False
        plain = "transA" not in node.attributes or not node.attributes["transA"].as_int()
        return plain and self._constant(node.inputs[1])

    def _constant(self, value: ir.Value | None) -> bool:
        maker = self.site.maker(value, "DequantizeLinear", "Transpose")
        return self.site.tensor(value if maker is None else maker.inputs[0]) is not None

    def transposes(self) -> list[Turn]:
        """List what is left to transpose, in the order of the graph."""
        found = [Turn(str(value.name), self.orders[value], "input", "an input of the model")
                 for value in self.graph.inputs if value in self.orders]  # fmt: skip
        for node in self.graph:
            if node.op_type == "Transpose" and node.domain == "" and (turn := self._own(node)) is not None:
                found.append(turn)
        for value, order in self.orders.items():
            for op in dict.fromkeys(use.node.op_type for use in value.uses() if not self._reads(use.node, use.idx)):
                found.append(Turn(str(value.name), order, "inside", f"{op} reads it in its own order"))
        found += [Turn(str(value.name), self.orders[value], "output", "an output of the model")
                  for value in self.graph.outputs if value in self.orders]  # fmt: skip
        return found

    def _reads(self, node: ir.Node, place: int) -> bool:
        """Whether a node reads an input in its planned order."""
        if node.op_type == "Transpose" and node.domain == "" and node.graph is self.graph:
            return True
        return node in self.inputs and self.inputs[node][place] is not None

    def _own(self, node: ir.Node) -> Turn | None:
        """Return what a Transpose of the model comes to between two planned values; ``None`` where nothing is left."""
        source, result = node.inputs[0], node.outputs[0]
        order = order_of(node, self.site.rank(source))
        if source is None or order is None or self.site.tensor(source) is not None:
            return None
        if source in self.orders:
            order = after(self.orders[source], order)
        if result in self.orders:
            order = after(order, inverse(self.orders[result]))
        if keeps(self.site.shape(result), order):
            return None
        return Turn(str(result.name), order, "inside", "a Transpose of the model")
