"""The nodes around a Transpose that can be written for another order of axes, and those of them where it pays.

Costs are whole numbers: ``ONE`` for a Transpose, and one for each byte that it moves; sizes that aren't known before a
run count as 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from penstock.rewriting.minimum_cut import FOREVER, SINK, SOURCE, Network
from penstock.rewriting.orders import Order, after, inverse, keeps, order_of
from penstock.rewriting.site import Site
from penstock.rewriting.sizes import Product
from penstock.rewriting.turned import Turned, turned
from penstock.rewriting.wiring import read_count

if TYPE_CHECKING:
    import onnx_ir as ir

MOST_NODES = 256  # of a region
MOST_READERS = 64  # of a value in it
SMALL = 4096  # bytes of a constant that may be there in both orders
WORK = 100  # of a node of a region, in the units of Editor.work: it costs as much time
ONE = 1 << 64  # a Transpose, in the costs of the cut


@dataclass(slots=True)
class Region:
    """Nodes around a Transpose that can be turned, and the order that each value would then have."""

    site: Site
    seed: ir.Node
    orders: dict[ir.Value, Order] = field(default_factory=dict)  # only of those that it changes
    nodes: dict[ir.Node, Turned] = field(default_factory=dict)
    fresh: list[ir.Value] = field(default_factory=list)
    kept: dict[ir.Value, None] = field(default_factory=dict)  # that nodes of the region read or make as they are

    # -- growing -------------------------------------------------------------------------------------------------------

    def fits(self, value: ir.Value, order: Order) -> bool:
        """Whether a value that has none yet can have this order, which changes it."""
        shape = self.site.shape(value)
        if shape is None or len(shape) != len(order) or value.dtype is None or read_count(value) > MOST_READERS:
            return False
        if value in self.kept:
            return False
        above = self.site.maker(value, "Transpose")
        if above is not None and above.inputs[0] in self.orders:
            return False
        return not any(turn.outputs[0] in self.orders for turn in self.turns(value))

    def take(self, value: ir.Value | None, order: Order | None) -> bool:
        """Let a value have an order, if it can."""
        if value is None:
            return True
        known = self.orders.get(value)
        if known is not None:
            return known == order
        if order is None or keeps(self.site.shape(value), order):
            self.kept[value] = None
            return True
        if (tensor := self.site.tensor(value)) is not None:
            return tensor.nbytes <= SMALL or read_count(value) == 1
        if not self.fits(value, order):
            return False
        self.orders[value] = order
        self.fresh.append(value)
        return True

    def take_all(self, pairs: list[tuple[ir.Value | None, Order | None]]) -> bool:
        """Let values have their orders, all of them or none."""
        count, kept = len(self.fresh), len(self.kept)
        if all(self.take(*pair) for pair in pairs):  # one may stand in the way of the next
            return True
        for value in self.fresh[count:]:
            del self.orders[value]
        del self.fresh[count:]
        while len(self.kept) > kept:
            self.kept.popitem()
        return False

    def grow(self) -> None:
        """Add nodes around values that have an order, nearest first."""
        for value in self.fresh:  # it grows meanwhile
            if len(self.nodes) >= MOST_NODES:
                break
            producer = value.producer()
            places = [(use.node, False, use.idx) for use in value.uses()]
            if producer is not None:
                places.append((producer, True, value.index() or 0))
            for node, of_output, place in places:
                if node in self.nodes or node.graph is not self.seed.graph or node.op_type == "Transpose":
                    continue
                made = turned(node, self.site, self.orders[value], of_output=of_output)
                if made is None or len(made.inputs) != len(node.inputs):
                    continue
                if (made.outputs if of_output else made.inputs)[place] != self.orders[value]:
                    continue
                pairs = [*zip(node.inputs, made.inputs, strict=True), *zip(node.outputs, made.outputs, strict=True)]
                if self.take_all(pairs):
                    self.nodes[node] = made
        self.site.work += WORK * len(self.nodes)

    # -- what is around a value ----------------------------------------------------------------------------------------

    def turns(self, value: ir.Value) -> list[ir.Node]:
        """Return the Transposes that read a value in its graph."""
        readers = [use.node for use in value.uses()]
        return [n for n in readers if n.op_type == "Transpose" and n.domain == "" and n.graph is self.seed.graph]

    def readers(self, value: ir.Value) -> list[ir.Node]:
        """Return the nodes of the region that read a value in its order."""
        uses = [(use.node, use.idx) for use in value.uses() if use.node in self.nodes]
        return list(dict.fromkeys(node for node, place in uses if self.nodes[node].inputs[place] is not None))

    def fixed(self, value: ir.Value) -> bool:
        """Whether a value is needed as it is, whatever is turned."""
        free = len([use for use in value.uses() if use.node in self.nodes and self.nodes[use.node].inputs[use.idx]])
        return value.is_graph_output() or free + len(self.turns(value)) < read_count(value)

    def then(self, value: ir.Value, turn: ir.Node) -> Order | None:
        """Return the order of a Transpose that reads the turned value instead; ``None`` where it isn't needed."""
        order = order_of(turn, self.site.rank(value))
        assert order is not None
        joined = after(self.orders[value], order)
        return None if keeps(self.site.shape(turn.outputs[0]), joined) else joined

    def cancelled(self, value: ir.Value) -> list[ir.Node]:
        """Return the Transposes that aren't needed once a value is turned."""
        return [turn for turn in self.turns(value) if self.then(value, turn) is None]

    def of_transpose(self, value: ir.Value) -> tuple[ir.Value, Order | None] | None:
        """Return what the Transpose that makes a value reads, and how the turned value comes from that."""
        above = self.site.maker(value, "Transpose")
        order = None if above is None else order_of(above, self.site.rank(value))
        if above is None or above.inputs[0] is None or order is None:
            return None
        joined = after(order, inverse(self.orders[value]))
        return above.inputs[0], None if keeps(self.site.shape(above.inputs[0]), inverse(joined)) else joined

    # -- choosing ------------------------------------------------------------------------------------------------------

    def cost(self, value: ir.Value) -> int:
        """Return what a Transpose of a value costs."""
        sizes = [
            size.factor if isinstance(size, Product) else 1 if size is None else size
            for size in self.site.shape(value) or ()
        ]
        return ONE + math.ceil(math.prod(sizes) * (value.dtype.itemsize if value.dtype is not None else 0))

    def choose(self) -> tuple[list[ir.Node], int]:
        """Return the nodes to turn, in the order in which they depend on each other, and what is won by that."""
        network = Network()
        for value in self.orders:
            producer, cost, readers = value.producer(), self.cost(value), self.readers(value)
            cancelled, source = self.cancelled(value), self.of_transpose(value)
            old, new = ("as it is", value), ("turned", value)
            wants_new, gives_old = True, False
            if producer in self.nodes:
                for _ in cancelled:
                    network.edge(SOURCE, producer, cost)
                wants_new = not cancelled
                if self.fixed(value):
                    network.edge(producer, SINK, cost)
                else:
                    network.edge(producer, old, cost)
                    gives_old = True
                if wants_new:
                    network.edge(new, producer, cost)
            elif source is not None:
                if readers and not self.fixed(value) and not self.turns(value):
                    network.edge(SOURCE, old, cost)
                    gives_old = True
                wants_new = source[1] is not None
                if wants_new:
                    network.edge(new, SINK, cost)
            elif wants_new := not cancelled:
                network.edge(new, SINK, cost)
            self._tie(value, network)
            for reader in readers:
                if gives_old:
                    network.edge(old, reader, FOREVER)
                if wants_new:
                    network.edge(reader, new, FOREVER)
        side, cost = network.cut()
        return self.sorted(node for node in self.nodes if node in side), network.wins - cost

    def _tie(self, value: ir.Value, network: Network) -> None:
        """Let a QuantizeLinear and the DequantizeLinear after it be turned together: runtimes know them as a pair."""
        quantize = value.producer()
        if quantize is None or quantize.op_type != "QuantizeLinear":
            return
        for reader in dict.fromkeys(use.node for use in value.uses()):
            if reader.op_type != "DequantizeLinear":
                continue
            for one, other in ((quantize, reader), (reader, quantize)):
                if one in self.nodes:
                    network.edge(one, other if other in self.nodes else SINK, FOREVER)

    def sorted(self, chosen: Iterable[ir.Node]) -> list[ir.Node]:
        """Put nodes in the order in which they depend on each other."""
        left, found = dict.fromkeys(chosen), []
        while left:
            stack = [next(iter(left))]
            while stack:
                makers = [value.producer() for value in stack[-1].inputs if value is not None]
                waiting = [maker for maker in makers if maker in left and maker not in stack]
                if waiting:
                    stack.extend(maker for maker in waiting[:1] if maker is not None)
                    continue
                node = stack.pop()
                if node in left:
                    del left[node]
                    found.append(node)
        return found
