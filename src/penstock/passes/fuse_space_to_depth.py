"""Make a SpaceToDepth of the Slices and the Concat that write it out (the "focus" layer of the YOLO family).

1. A Concat along the channels of ``b·b`` Slices of one ``(N, C, H, W)`` tensor, each with steps of ``b`` in both
   directions (by one Slice or by two), which start at every place of a b×b square once, and H and W divisible by b.
2. SpaceToDepth takes the places row by row; block ``(r·b + c)`` holds the channels from place ``(r, c)``. Where the
   Concat has another order, the weights of the one Conv that reads it are put in that order; others get a Gather.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.rewriting import Refusal, Rewrite
from penstock.rewriting.shape_rules import slices
from penstock.rewriting.site import Site, attribute

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "fuse"
AFTER: tuple[str, ...] = ()
OPERATORS: tuple[str, ...] = ("Concat",)


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Recognise the pattern from its Concat."""
    block = round(len(node.inputs) ** 0.5)
    if block < 2 or block * block != len(node.inputs) or attribute(node, "axis") not in (1, -3):
        return None
    if any(site.maker(value, "Slice") is None for value in node.inputs):
        return None
    places: list[int] = []
    source: ir.Value | None = None
    for value in node.inputs:
        found = _start(value, site, block)
        if found is None or (source is not None and found[0] is not source):
            return None
        source = found[0]
        places.append(found[1] * block + found[2])
    shape = site.shape(source)
    if source is None or shape is None or len(shape) != 4 or sorted(places) != list(range(block * block)):
        return None
    if source.dtype is None or source.dtype.name not in ("FLOAT", "FLOAT16", "UINT8", "INT8"):
        raise Refusal("runtimes have no SpaceToDepth of this type")
    channels, height, width = shape[1:]
    if not (isinstance(channels, int) and isinstance(height, int) and isinstance(width, int)):
        raise Refusal("the size of the image isn't known")
    if height % block or width % block:
        raise Refusal(f"the image isn't divisible by {block}")
    moved = site.make("SpaceToDepth", [source], blocksize=block)
    what = f"{len(places)} Slices and a Concat are a SpaceToDepth"
    order = [
        place * channels + c for place in places for c in range(channels)
    ]  # of the Concat, in SpaceToDepth's terms
    if places == sorted(places):
        return site.instead(node, moved, what)
    conv = _only_conv(node.outputs[0], site)
    if conv is None:
        return site.instead(node, site.make("Gather", [moved, site.int64s(order)], axis=1), what)
    weight, tensor = site.array(conv.inputs[1]), site.tensor(conv.inputs[1])
    assert weight is not None and tensor is not None
    turned = weight.copy()
    turned[:, order] = weight
    inputs = [moved, site.constant(turned, tensor.dtype), *conv.inputs[2:]]
    return Rewrite({conv.outputs[0]: site.copy(conv, inputs)}, f"{what}, and the Conv's weights follow")


def _only_conv(value: ir.Value, site: Site) -> ir.Node | None:
    if not site.sole_reader(value):
        return None
    (use,) = value.uses()
    conv = use.node
    fits = conv.op_type == "Conv" and conv.domain == "" and use.idx == 0 and attribute(conv, "group", 1) == 1
    return conv if fits and site.tensor(conv.inputs[1]) is not None and conv.graph is not None else None


def _start(value: ir.Value | None, site: Site, block: int) -> tuple[ir.Value, int, int] | None:
    """Return the tensor that is sliced, and at which row and column it starts."""
    starts: dict[int, int] = {}
    for _ in range(2):
        node = site.maker(value, "Slice")
        if node is None:
            break
        shape = site.shape(node.inputs[0])
        if shape is None or len(shape) != 4:
            return None
        for axis, start, end, step in slices(node, site.known, 4):
            size = shape[axis]
            if not isinstance(size, int) or not isinstance(start, int) or not isinstance(end, int):
                return None
            begin, stop, _ = slice(start, end, step).indices(size)
            if step == 1 and (begin, stop) == (0, size):
                continue
            if axis in starts or axis < 2 or step != block or begin >= block or stop + block <= size:
                return None
            starts[axis] = begin
        value = node.inputs[0]
    return None if value is None or sorted(starts) != [2, 3] else (value, starts[2], starts[3])
