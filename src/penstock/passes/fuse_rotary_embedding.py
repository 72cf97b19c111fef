"""Make a RotaryEmbedding of the form that LLaMA's code exports.

y = x·cos + rotate(x)·sin, with rotate([a, b]) = [−b, a] on the halves of the last axis of x ``(B, H, S, D)``.

1. ``Concat(−x₂, x₁)`` of the halves of x, by Slices or a Split, times the sine, added to x times the cosine.
2. cos and sin ``(B, 1, S, D)`` hold every number twice: they are constants whose halves are equal, or Cos and Sin of a
   Concat of an angle with itself, unsqueezed, and multiplied with one number perhaps. The operator takes the half,
   ``(B, S, D/2)``; constants that are the same for all of the batch are written out for it.
3. RotaryEmbedding needs opset 23.

Source: Su et al., RoFormer (2021), and the function body of RotaryEmbedding-23.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.passes._expressions import beside_number, need_enclosed, need_opset, operands
from penstock.passes.merge_reshapes import axes_of
from penstock.rewriting import Refusal, Rewrite
from penstock.rewriting.shape_rules import slices
from penstock.rewriting.site import Site, attribute
from penstock.rewriting.sizes import same

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "fuse"
AFTER: tuple[str, ...] = ("merge-slices",)
OPERATORS: tuple[str, ...] = ("Add",)
SINCE = 23


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Recognise it from its addition."""
    for plain, crossed in operands(node):
        first, second = site.maker(plain, "Mul"), site.maker(crossed, "Mul")
        if first is None or second is None:
            continue
        for x, cosine in operands(first):
            for rotated, sine in operands(second):
                parts = _rotated(rotated, x, site)
                if parts is None:
                    continue
                shape = site.shape(x)
                if shape is None or len(shape) != 4:
                    return None
                need_opset("RotaryEmbedding", SINCE, site)
                need_enclosed([first, second, *parts], node)
                caches = [_half(value, op, x, site) for value, op in ((cosine, "Cos"), (sine, "Sin"))]
                made = site.make("RotaryEmbedding", [x, *caches])
                return site.instead(node, made, f"{len(parts) + 3} nodes are a RotaryEmbedding")
    return None


def _rotated(value: ir.Value, x: ir.Value, site: Site) -> list[ir.Node] | None:
    """Return the nodes that make [−x₂, x₁]."""
    concat = site.maker(value, "Concat")
    rank, shape = site.rank(x), site.shape(x)
    if concat is None or len(concat.inputs) != 2 or shape is None or rank is None:
        return None
    if int(attribute(concat, "axis", 0)) not in (-1, rank - 1):
        return None
    negative, first = site.maker(concat.inputs[0], "Neg"), concat.inputs[1]
    last = None if negative is None else negative.inputs[0]
    width = shape[-1]
    if negative is None or last is None or first is None or not isinstance(width, int) or width % 2:
        return None
    found = [_piece(part, x, width, site) for part in (first, last)]
    if [bounds for _, bounds in found] != [(0, width // 2), (width // 2, width)]:
        return None
    return [concat, negative, *dict.fromkeys(maker for maker, _ in found if maker is not None)]


def _piece(value: ir.Value, x: ir.Value, width: int, site: Site) -> tuple[ir.Node | None, tuple[int, int] | None]:
    """Return where a part of x begins and ends along the last axis, and what cuts it out."""
    maker, rank = site.maker(value, "Slice", "Split"), site.rank(x)
    if maker is None or maker.inputs[0] is not x or rank is None:
        return None, None
    if maker.op_type == "Split":
        sizes = [shape[-1] if shape is not None else None for shape in map(site.shape, maker.outputs)]
        if int(attribute(maker, "axis", 0)) % rank != rank - 1 or sizes != [width // 2] * 2:
            return None, None
        place = list(maker.outputs).index(value)
        return maker, (place * width // 2, (place + 1) * width // 2)
    try:
        cuts = slices(maker, site.known, rank)
    except Exception:  # axes or steps that aren't known
        return None, None
    if len(cuts) != 1 or cuts[0][0] != rank - 1 or cuts[0][3] != 1:
        return None, None
    _, start, end, _ = cuts[0]
    if not isinstance(start, int) or not isinstance(end, int):
        return None, None
    begin, stop, _ = slice(start, end, 1).indices(width)
    return maker, (begin, stop)


def _half(value: ir.Value, op: str, x: ir.Value, site: Site) -> ir.Value:
    """Return the cache ``(B, S, D/2)`` for a cosine or sine ``(B, 1, S, D)``. Raises ``Refusal``."""
    import numpy as np

    shape = site.shape(x) or ()
    batch, length, width = shape[0], shape[2], shape[3]
    assert isinstance(width, int)
    array, tensor = site.array(value), site.tensor(value)
    if array is not None and tensor is not None:
        if not isinstance(batch, int) or not isinstance(length, int):
            raise Refusal("the cosines are constants, and the batch or the length isn't known")
        whole = np.broadcast_to(array, np.broadcast_shapes(array.shape, (1, 1, length, width)))
        if whole.shape not in ((1, 1, length, width), (batch, 1, length, width)):
            raise Refusal("the cosines or sines differ from head to head")
        if not (whole[..., : width // 2] == whole[..., width // 2 :]).all():
            raise Refusal("the cosines or sines of the two halves differ")
        half = np.broadcast_to(whole[:, 0, :, : width // 2], (batch, length, width // 2))
        return site.constant(half.copy(), tensor.dtype)
    back = site.maker(value, "Unsqueeze")
    if back is None or axes_of(back, site) not in ([1], [-3]) or back.inputs[0] is None:
        raise Refusal("the cosines or sines aren't known to be the same for all heads")
    inner: ir.Value = back.inputs[0]
    number = 1.0
    scaled = site.maker(inner, "Mul")
    for start, factor in () if scaled is None else beside_number(scaled, site):
        inner, number = start, factor
    wave = site.maker(inner, op)
    angles = None if wave is None else site.maker(wave.inputs[0], "Concat")
    if angles is None or len(angles.inputs) != 2 or angles.inputs[0] is not angles.inputs[1]:
        raise Refusal(f"the {op} isn't that of angles which stand there twice")
    angle = angles.inputs[0]
    if int(attribute(angles, "axis", 0)) not in (-1, 2) or not same(site.shape(angle), (batch, length, width // 2)):
        raise Refusal("the angles aren't known to have the batch and the length of what is turned")
    made = site.make(op, [angle])
    if number != 1.0 and x.dtype is not None:
        made = site.make("Mul", [made, site.constant(np.array(number, dtype=x.dtype.numpy()), x.dtype)])
    return made
