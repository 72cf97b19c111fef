"""Let a Conv or a pool pad by itself.

1. Pad of constant zeros before a Conv, or before an AveragePool that counts what is padded (``count_include_pad``), and
   Pad of −∞ before a MaxPool (or of 0, where what is padded is never negative): the Pad's numbers are added to
   ``pads``. Spatial axes only, and nothing cut off.
2. ``auto_pad`` has to be NOTSET or VALID; the others look at the size of the image.
3. A pool's pads must stay below its window, which is what runtimes ask for; and its size must be rounded down, since
   rounding up looks at the pads.
4. A Reshape, Squeeze or Unsqueeze between the two that only brings or takes axes of size 1 stays, without the padding.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.passes._expressions import FLOATS
from penstock.passes.fold_shapes import as_numbers
from penstock.rewriting import Refusal, Rewrite
from penstock.rewriting.site import Site, attribute

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "fuse"
AFTER: tuple[str, ...] = ()
OPERATORS: tuple[str, ...] = ("Conv", "AveragePool", "MaxPool")
_RESHAPING = ("Reshape", "Squeeze", "Unsqueeze")


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Take the Pad before a Conv or pool in."""
    source = node.inputs[0]
    between = site.maker(source, *_RESHAPING)
    pad = site.maker(source if between is None else between.inputs[0], "Pad")
    if source is None or pad is None or pad.inputs[0] is None:
        return None
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        raise Refusal("the indices of the MaxPool count what is padded")
    numbers = _padding(pad, node, site)
    site.need_sole_reader(source, "the padded image")
    shape = site.shape(source)
    if between is not None:
        site.need_sole_reader(pad.outputs[0], "the Pad")
        moved = _moved(numbers, pad, between, site)
        if moved is None:
            return None
        numbers = moved
    rank = len(numbers) // 2
    if any(numbers[place] for place in (0, 1, rank, rank + 1)):
        raise Refusal("it pads the batch or the channels")
    if rank < 3 or any(number < 0 for number in numbers):
        raise Refusal("it cuts something off")
    if attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise Refusal(f"the {node.op_type} finds its pads by itself")
    own = attribute(node, "pads") if attribute(node, "auto_pad", "NOTSET") == "NOTSET" else None
    added = [*numbers[2:rank], *numbers[rank + 2 :]]
    pads = [a + b for a, b in zip(own or [0] * len(added), added, strict=True)]
    if node.op_type != "Conv":
        kernel = attribute(node, "kernel_shape")
        if attribute(node, "ceil_mode", 0):
            raise Refusal("the pool's size is rounded up")
        if any(size >= window for size, window in zip(pads, [*kernel, *kernel], strict=True)):
            raise Refusal("the pads would be as large as the window")
        if any(step != 1 for step in attribute(node, "dilations") or ()):
            raise Refusal("a dilated window may see nothing but what is padded")
    value = pad.inputs[0]
    if between is not None and shape is not None:
        target = tuple(
            size - numbers[axis] - numbers[axis + rank] if isinstance(size, int) else size
            for axis, size in enumerate(shape)
        )
        if 0 in target:
            raise Refusal("an axis is empty")
        value = site.make("Reshape", [value, site.int64s(as_numbers(target, site.shape(value)))])
    made = site.copy(node, [value, *node.inputs[1:]], pads=pads, auto_pad=None)
    producer = made.producer()
    assert producer is not None
    values = dict(zip(node.outputs, producer.outputs, strict=True))
    return Rewrite(values, f"{node.op_type} pads by itself")


def _padding(pad: ir.Node, node: ir.Node, site: Site) -> list[int]:
    """Return the numbers of a Pad, begins and then ends, for all its axes. Raises ``Refusal``."""
    mode = attribute(pad, "mode", "constant")
    if mode != "constant":
        raise Refusal(f"the Pad before it is of the mode {mode}")
    rank = site.rank(pad.inputs[0])
    held = attribute(pad, "pads") or attribute(pad, "paddings")
    if held is None and len(pad.inputs) > 1:
        held = site.ints(pad.inputs[1])
    if held is None or rank is None:
        raise Refusal("how much the Pad before it adds isn't constant")
    numbers = [int(number) for number in held]
    if len(pad.inputs) > 3 and pad.inputs[3] is not None:
        axes = site.ints(pad.inputs[3])
        if axes is None:
            raise Refusal("the axes of the Pad before it aren't constant")
        whole = [0] * (2 * rank)
        for place, axis in enumerate(axes):
            whole[axis % rank], whole[axis % rank + rank] = numbers[place], numbers[place + len(axes)]
        numbers = whole
    filler: float | None = attribute(pad, "value", 0.0)
    if len(pad.inputs) > 2 and pad.inputs[2] is not None:
        filler = site.scalar(pad.inputs[2])
    wanted = -math.inf if node.op_type == "MaxPool" else 0.0
    if filler != wanted and not (filler == 0.0 and _never_negative(pad.inputs[0], site)):
        shown = "what isn't constant" if filler is None else f"{filler:g}"
        raise Refusal(f"the Pad before it adds {shown}, not {wanted:g}")
    if node.op_type == "AveragePool" and not attribute(node, "count_include_pad", 0):
        raise Refusal("the pool doesn't count what it pads")
    dtype = pad.inputs[0].dtype if pad.inputs[0] is not None else None
    if len(numbers) != 2 * rank or dtype is None or dtype.name not in FLOATS:
        raise Refusal("the Pad before it isn't one of floating-point numbers with two for each axis")
    return numbers


def _never_negative(value: ir.Value | None, site: Site) -> bool:
    """Whether what is padded is at least 0, so that a maximum doesn't see added zeros."""
    maker = site.maker(value, "Relu", "Sigmoid", "Clip", "HardSigmoid", "Softplus", "Exp", "Abs")
    if maker is None or maker.op_type != "Clip":
        return maker is not None
    low = attribute(maker, "min", site.scalar(maker.inputs[1]) if len(maker.inputs) > 1 else None)
    return low is not None and low >= 0.0


def _moved(numbers: list[int], pad: ir.Node, between: ir.Node, site: Site) -> list[int] | None:
    """Return the numbers of a Pad as it were after a node that only brings or takes axes of size 1."""
    before, after = site.shape(pad.outputs[0]), site.shape(between.outputs[0])
    plain = site.shape(pad.inputs[0])
    if before is None or after is None or plain is None or site.opset < 5:
        return None
    old = [axis for axis, size in enumerate(before) if size != 1]
    new = [axis for axis, size in enumerate(after) if size != 1]
    if len(old) != len(new) or any(before[a] is None or before[a] != after[b] for a, b in zip(old, new, strict=True)):
        return None
    count, result = len(before), [0] * (2 * len(after))
    for a, b in zip(old, new, strict=True):
        if numbers[a] + numbers[a + count] and not isinstance(after[b], int):
            return None
        result[b], result[b + len(after)] = numbers[a], numbers[a + count]
    moved = sum(numbers[a] + numbers[a + count] for a in old)
    return result if moved == sum(numbers) and all(number >= 0 for number in numbers) else None
