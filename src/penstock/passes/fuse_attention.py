"""Make an Attention of its decomposed form.

Y = softmax(s·Q·Kᵀ + M)·V with Q ``(B, H, S, D)``, K ``(B, H, T, D)``, V ``(B, H, T, E)`` and a mask M that is added.

1. Two MatMuls with a Softmax over the last axis between them are an Attention. The number s may be multiplied to Q, to
   K or to the product; it becomes ``scale``. The Transpose that makes Kᵀ goes, or makes K in its place.
2. Where Q, K and V come from ``(B, S, H·D)`` by Reshape and Transpose, and Y goes back there, all of these go:
   Attention takes that form with the number of heads. Where they are picked out of one ``(B, S, 3·H·D)``, a Split is
   left.
3. M has to be of the type of Q, with a row for each query and a column for each key: ONNX Runtime's Attention doesn't
   stretch them, and in opset 24 a shorter row means something else. It has to be constant, with an open key in every
   row: where all are closed, by -inf or the lowest float, Softmax spreads over them or gives NaN, and ONNX Runtime's
   Attention gives zeros.
4. Attention needs opset 23.

Source: Vaswani et al., Attention Is All You Need (2017), and the function body of Attention-23.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.passes._expressions import factors_of, need_enclosed, need_opset, operands
from penstock.passes.merge_transposes import order_of
from penstock.rewriting import Refusal, Rewrite
from penstock.rewriting.site import Site, attribute
from penstock.rewriting.sizes import equal, times

if TYPE_CHECKING:
    import onnx_ir as ir

    from penstock.rewriting.knowledge import Shape

PHASE: Phase = "fuse"
AFTER: tuple[str, ...] = ("merge-transposes",)
OPERATORS: tuple[str, ...] = ("MatMul", "Reshape")
SINCE = 23
FLOATS = ("FLOAT", "FLOAT16", "BFLOAT16")
CLOSED = {"FLOAT": -1e30, "FLOAT16": -6e4}  # what is added closes a key
_PACKED = [2, 0, 3, 1, 4]  # (B, S, 3, H, D) to (3, B, H, S, D)
_HEADS_FIRST = [0, 2, 1, 3]  # (B, S, H, D) to (B, H, S, D), and back


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Recognise it from its second product, or from the Reshape that puts the heads together again."""
    return _joined_heads(node, site) if node.op_type == "Reshape" else _of_products(node, site)


def _of_products(node: ir.Node, site: Site) -> Rewrite | None:
    softmax = site.maker(node.inputs[0], "Softmax")
    v = node.inputs[1]
    if softmax is None or v is None or softmax.inputs[0] is None:
        return None
    shapes = [site.shape(v), site.shape(softmax.inputs[0])]
    if any(shape is None or len(shape) != 4 for shape in shapes):
        return None
    if int(attribute(softmax, "axis", -1 if site.opset >= 13 else 1)) not in (-1, 3):
        return None
    nodes = [softmax]
    scores, mask = softmax.inputs[0], None
    added = site.maker(scores, "Add")
    for scored, other in () if added is None else operands(added):
        if added is not None and site.maker(factors_of(scored, site).values[0], "MatMul") is not None:
            scores, mask = scored, other
            nodes.append(added)
            break
    scaled = factors_of(scores, site)
    product = site.maker(scaled.values[0], "MatMul") if len(scaled.values) == 1 else None
    if product is None:
        return None
    left, right = factors_of(product.inputs[0], site), factors_of(product.inputs[1], site)
    if len(left.values) != 1 or len(right.values) != 1:
        return None
    q, turned = left.values[0], right.values[0]
    nodes += [*scaled.nodes, product, *left.nodes, *right.nodes]
    q_shape, k_shape = site.shape(q), site.shape(turned)
    if q_shape is None or k_shape is None or len(q_shape) != 4 or len(k_shape) != 4:
        return None
    need_opset("Attention", SINCE, site)
    if q.dtype is None or q.dtype.name not in FLOATS:
        raise Refusal("ONNX Runtime's Attention takes no numbers of this type")
    _check(q_shape, k_shape, shapes[0] or (), mask, q, site)
    need_enclosed(nodes, node)
    k = _turned_back(turned, site)
    scale = scaled.number * left.number * right.number
    if scale <= 0:
        raise Refusal("the product is multiplied with a number that isn't positive")
    value = site.make("Attention", [q, k, v, mask], scale=scale)
    return site.instead(node, value, f"{len(nodes) + 1} nodes are an Attention")


def _check(q: Shape, k: Shape, v: Shape, mask: ir.Value | None, like: ir.Value, site: Site) -> None:
    """Raise ``Refusal`` where the shapes aren't known to be those of an Attention; k is transposed."""
    if not all(equal(q[axis], k[axis]) and equal(q[axis], v[axis]) for axis in (0, 1)):
        raise Refusal("queries, keys and values aren't known to have the same batch and heads")
    if not isinstance(q[1], int):
        raise Refusal("the number of heads isn't known")
    if mask is None:
        return
    shape = site.shape(mask)
    if shape is None or not 2 <= len(shape) <= 4 or mask.dtype != like.dtype:
        raise Refusal("the shape or the type of the mask isn't known to fit")
    if not equal(shape[-1], k[3]) or not equal(shape[-2], q[2]):
        raise Refusal("the mask hasn't a row for each query and a column for each key, which ONNX Runtime asks for")
    padded = (*[1] * (4 - len(shape)), *shape)
    if any(padded[axis] != 1 and not equal(padded[axis], q[axis]) for axis in (0, 1)):
        raise Refusal("the mask isn't known to fit the batch and the heads")
    numbers = site.array(mask)
    lowest = CLOSED.get(like.dtype.name, CLOSED["FLOAT"]) if like.dtype is not None else 0.0
    if numbers is None or not (numbers > lowest).any(axis=-1).all():  # not a number is no larger
        raise Refusal("a row of the mask may close every key: Softmax spreads over them, Attention gives zeros")


def _turned_back(value: ir.Value, site: Site) -> ir.Value:
    """Return K for Kᵀ ``(B, H, D, T)``."""
    before = site.maker(value, "Transpose")
    order = None if before is None else order_of(before, site)
    if before is None or order is None or before.inputs[0] is None or not site.sole_reader(value):
        raise Refusal("the keys aren't transposed for it alone")
    order = [order[axis] for axis in (0, 1, 3, 2)]
    if order == sorted(order):
        return before.inputs[0]
    return site.make("Transpose", [before.inputs[0]], perm=order)


def _joined_heads(node: ir.Node, site: Site) -> Rewrite | None:
    turned = site.maker(node.inputs[0], "Transpose")
    before = None if turned is None else site.maker(turned.inputs[0], "Attention")
    if turned is None or before is None or len(before.outputs) > 1 or len(before.inputs) > 4:
        return None
    whole, end = site.shape(before.outputs[0]), site.shape(node.outputs[0])
    if whole is None or end is None or len(whole) != 4 or order_of(turned, site) != _HEADS_FIRST:
        return None
    if len(end) != 3 or not isinstance(whole[1], int) or not equal(end[2], times(whole[1], whole[3])):
        return None
    if not equal(end[0], whole[0]):
        return None
    inputs = _packed(before, site)
    if inputs is None:
        inputs = [source for source in (_apart(value, site) for value in before.inputs[:3]) if source is not None]
    if len(inputs) != 3:
        raise Refusal("queries, keys or values don't come from one axis of all heads")
    need_enclosed([turned, before], node)
    heads = [shape[1] if shape is not None else None for shape in map(site.shape, before.inputs[:2])]
    if not all(isinstance(count, int) for count in heads):
        return None
    made = site.copy(before, [*inputs, *before.inputs[3:]], q_num_heads=heads[0], kv_num_heads=heads[1])
    return site.instead(node, made, "Attention takes the heads apart, and puts them together, by itself")


def _apart(value: ir.Value | None, site: Site) -> ir.Value | None:
    """Return what Reshape and Transpose took the heads of apart."""
    turned = site.maker(value, "Transpose")
    apart = None if turned is None else site.maker(turned.inputs[0], "Reshape")
    source = None if apart is None else apart.inputs[0]
    if turned is None or apart is None or source is None or order_of(turned, site) != _HEADS_FIRST:
        return None
    shape, split = site.shape(source), site.shape(apart.outputs[0])
    if shape is None or split is None or len(shape) != 3 or len(split) != 4:
        return None
    if not equal(shape[0], split[0]) or not equal(shape[2], times(split[2], split[3])):
        return None
    return source


def _packed(node: ir.Node, site: Site) -> list[ir.Value] | None:
    """Return Q, K and V as parts of a Split, where they are picked out of one tensor ``(B, S, 3·H·D)``."""
    picks = [site.maker(value, "Gather") for value in node.inputs[:3]]
    sources = {pick.inputs[0] for pick in picks if pick is not None}
    places = [site.ints(pick.inputs[1]) for pick in picks if pick is not None]
    turned = site.maker(next(iter(sources)), "Transpose") if len(sources) == 1 and len(places) == 3 else None
    apart = None if turned is None else site.maker(turned.inputs[0], "Reshape")
    x = None if apart is None else apart.inputs[0]
    if turned is None or apart is None or x is None or order_of(turned, site) != _PACKED:
        return None
    shape, split = site.shape(x), site.shape(apart.outputs[0])
    if shape is None or split is None or len(shape) != 3 or len(split) != 5 or not isinstance(shape[2], int):
        return None
    whole = equal(shape[2], times(split[2], times(split[3], split[4])))
    if split[2] != 3 or not whole or not equal(shape[0], split[0]) or not equal(shape[1], split[1]):
        return None
    if any(site.rank(pick.inputs[1]) or attribute(pick, "axis", 0) for pick in picks if pick is not None):
        return None
    made = site.make("Split", [x, site.int64s([shape[2] // 3] * 3)], outputs=3, axis=2).producer()
    assert made is not None
    return [made.outputs[place[0]] for place in places if place is not None]
