"""Move Transposes through other operators to where they cancel, or to where there is less to transpose.

1. From a Transpose the *region* grows, over readers and producers, by nodes that can be written for another order of
   axes (:mod:`penstock.rewriting.turned`): element-wise operators, Concat, Split, reductions, Pad, Slice, Softmax,
   ArgMax, Gather, Squeeze, Unsqueeze, Quantize and Dequantize, and pools and normalizations where the channels stay
   second. Every value in it has one order (:mod:`penstock.rewriting.orders`). Constants are transposed for nothing.
2. Which of these nodes are turned is a minimum cut: a Transpose costs one, and then what it moves. At the border of the
   turned part one may be needed for what isn't turned, and of those that are there some cancel. So a node is turned
   only where that, together with the others, pays: all inputs are equally transposed, or a Transpose below cancels.
3. All of it is one rewrite. It is made only where fewer Transposes remain that move no more bytes, or as many that move
   fewer bytes. Every other node is replaced by one like it, so there are never more nodes.

That ends: each rewrite makes the pair (Transposes, bytes that they move) smaller in the order of dictionaries, both are
whole numbers from 0 on, and no pass makes a Transpose of something else. What isn't known before a run counts as 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.rewriting import Refusal, Rewrite
from penstock.rewriting.orders import Order, inverse, keeps, order_of, turned_constant
from penstock.rewriting.region import ONE, Region
from penstock.rewriting.site import Site

if TYPE_CHECKING:
    import onnx_ir as ir

    from penstock.rewriting.site import Array

PHASE: Phase = "fuse"
AFTER: tuple[str, ...] = ("fuse-gemm", "merge-reshapes", "merge-transposes")
OPERATORS: tuple[str, ...] = ("Transpose",)


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Look below a Transpose, then above it."""
    source, result, order = node.inputs[0], node.outputs[0], order_of(node, site.rank(node.inputs[0]))
    if source is None or order is None or site.shape(source) is None:
        return None
    if sorted(order) != list(range(len(order))):
        return None
    dearer = False
    for value, turn in ((result, order), (source, inverse(order))):
        region = Region(site, node)
        if not region.take(value, turn):
            continue
        region.grow()
        if not region.nodes:
            continue
        chosen, gain = region.choose()
        moved = (gain + ONE // 2) % ONE - ONE // 2
        if gain > 0 and moved >= 0:
            count = (gain - moved) // ONE
            what = f"{count} Transposes less" if count > 1 else "a Transpose less" if count else "less to transpose"
            return _Writing(site, region).rewrite(chosen, f"with {len(chosen)} nodes in another order of axes, {what}")
        dearer |= gain > 0
    if dearer:
        raise Refusal("fewer Transposes would have to move more bytes")
    return None


@dataclass(slots=True)
class _Writing:
    """The nodes that take the place of those that are turned."""

    site: Site
    region: Region
    new: dict[tuple[ir.Value, Order], ir.Value] = field(default_factory=dict)
    places: dict[ir.Value, ir.Node] = field(default_factory=dict)

    def rewrite(self, chosen: list[ir.Node], what: str) -> Rewrite:
        """Make them, each where the node that it stands for is."""
        region = self.region
        values: dict[ir.Value, ir.Value] = {}
        built: dict[ir.Value, ir.Value] = {}
        for node in chosen:
            turned = region.nodes[node]
            pairs = zip(node.inputs, turned.inputs, strict=True)
            inputs = [self.input(value, order, chosen, built) for value, order in pairs]
            producer = self.put(turned.build(self.site, inputs), node).producer()
            assert producer is not None
            built |= zip(node.outputs, producer.outputs, strict=True)
        for value, new in built.items():
            order = region.orders.get(value)
            if order is None:
                values[value] = new
                continue
            if region.fixed(value) or any(reader not in chosen for reader in region.readers(value)):
                maker = value.producer()
                assert maker is not None
                values[value] = self.transpose(new, order, maker)
            for turn in region.turns(value):
                then = region.then(value, turn)
                values[turn.outputs[0]] = new if then is None else self.transpose(new, then, turn)
        for (value, order), new in self.new.items():
            if region.orders.get(value) == order and self.site.maker(value, "Transpose") is None:
                values |= {turn.outputs[0]: new for turn in region.cancelled(value)}
        ordered = sorted(values, key=lambda value: value.is_graph_output())  # the last one gives the name
        return Rewrite({value: values[value] for value in ordered}, what, places=self.places)

    def input(
        self, value: ir.Value | None, order: Order | None, chosen: list[ir.Node], built: dict[ir.Value, ir.Value]
    ) -> ir.Value | None:
        """Return what a turned node reads in the place of a value."""
        if value in built and (order is not None or value not in self.region.orders):
            return built[value]
        if value is None or order is None:
            return value
        array = self.site.array(value)
        if array is None and keeps(self.site.shape(value), order):
            return value
        if (value, order) not in self.new:
            self.new[value, order] = self._turned(value, order, array, chosen)
        return self.new[value, order]

    def _turned(self, value: ir.Value, order: Order, array: Array | None, chosen: list[ir.Node]) -> ir.Value:
        if array is not None:
            return self.site.constant(turned_constant(array, order), value.dtype)
        region = self.region
        readers = [*(node for node in region.readers(value) if node in chosen), *region.cancelled(value)]
        if (source := region.of_transpose(value)) is not None:
            above = value.producer()
            assert above is not None
            if source[1] is None:
                return source[0]
            place = above if above.graph is region.seed.graph else self.site.first_of(readers)
            return self.transpose(source[0], source[1], place)
        return self.transpose(value, inverse(order), self.site.first_of(readers))

    def transpose(self, value: ir.Value, order: Order, place: ir.Node) -> ir.Value:
        """Make a Transpose."""
        return self.put(self.site.make("Transpose", [value], perm=order), place)

    def put(self, value: ir.Value, place: ir.Node) -> ir.Value:
        """Note where the maker of a value goes."""
        self.places[value] = place
        return value
