"""The elements of small integer tensors, one function an operator: how shapes are computed inside a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from penstock.rewriting.knowledge import MOST_ELEMENTS, Elements, Knowledge, Rule, unsure
from penstock.rewriting.shape_rules import dims_of_shape, ints, number, slices
from penstock.rewriting.sizes import Product, Size, divided, equal, plus, product, times

if TYPE_CHECKING:
    import onnx_ir as ir

RULES: dict[str, Rule] = {}


ElementRule = Callable[["ir.Node", Knowledge], Elements]


def _rule(*names: str) -> Callable[[ElementRule], ElementRule]:
    def register(function: ElementRule) -> ElementRule:
        def put(node: ir.Node, known: Knowledge) -> None:
            shape = known.shapes.get(node.outputs[0])
            if shape is None or len(shape) > 1:
                return
            found = function(node, known)
            if len(found) <= MOST_ELEMENTS and (not shape or shape[0] in (None, len(found))):
                known.elements[node.outputs[0]] = tuple(map(_held_by(node.outputs[0].dtype), found))

        RULES.update(dict.fromkeys(names, put))
        return function

    return register


def _held_by(dtype: ir.DataType | None) -> Callable[[Size], Size]:
    """Return what lets a number through that a type holds; what overflows isn't known."""
    limit = 1 << (31 if dtype is not None and dtype.name == "INT32" else 63)
    return lambda size: None if isinstance(size, int) and not -limit <= size < limit else size


def _need(node: ir.Node, known: Knowledge, index: int = 0) -> Elements:
    found = known.sizes(node.inputs[index])
    if found is None:
        raise unsure
    return found


def _pairs(node: ir.Node, known: Knowledge) -> list[tuple[Size, Size]]:
    a, b = _need(node, known, 0), _need(node, known, 1)
    length = max(len(a), len(b)) if a and b else 0
    if len(a) not in (1, length) or len(b) not in (1, length):
        raise unsure
    return [(a[i % len(a)], b[i % len(b)]) for i in range(length)]


@_rule("Shape")
def _shape(node: ir.Node, known: Knowledge) -> Elements:
    shape = known.shape(node.inputs[0])
    if shape is None:
        raise unsure
    return dims_of_shape(node, shape)


@_rule("Size")
def _size(node: ir.Node, known: Knowledge) -> Elements:
    shape = known.shape(node.inputs[0])
    if shape is None:
        raise unsure
    return (product(shape),)


@_rule("Identity", "Squeeze", "Unsqueeze", "Reshape", "Flatten")
def _same(node: ir.Node, known: Knowledge) -> Elements:
    return _need(node, known)


@_rule("Cast")
def _cast(node: ir.Node, known: Knowledge) -> Elements:
    import onnx_ir as ir

    kind = ir.DataType(number(node, "to", 1))
    if kind == ir.DataType.BOOL:
        return tuple(None if not isinstance(size, int) else int(size != 0) for size in _need(node, known))
    if kind not in (ir.DataType.INT64, ir.DataType.INT32):
        raise unsure
    return _need(node, known)


@_rule("Concat")
def _concat(node: ir.Node, known: Knowledge) -> Elements:
    result: list[Size] = []
    for value in node.inputs:
        part = known.sizes(value)
        if part is None:
            shape = known.shape(value)
            if shape is None or len(shape) != 1 or not isinstance(shape[0], int) or shape[0] > MOST_ELEMENTS:
                raise unsure
            part = (None,) * shape[0]
        result.extend(part)
    return tuple(result)


@_rule("Gather")
def _gather(node: ir.Node, known: Knowledge) -> Elements:
    items, picked = _need(node, known, 0), _need(node, known, 1)
    return tuple(items[place] if isinstance(place, int) else None for place in picked)


@_rule("Slice")
def _slice(node: ir.Node, known: Knowledge) -> Elements:
    items = _need(node, known)
    ((_, start, end, step),) = slices(node, known, 1)
    if not isinstance(start, int) or not isinstance(end, int):
        raise unsure
    return items[slice(start, end, step)]


@_rule("Add")
def _add(node: ir.Node, known: Knowledge) -> Elements:
    return tuple(plus(a, b) for a, b in _pairs(node, known))


@_rule("Sub")
def _sub(node: ir.Node, known: Knowledge) -> Elements:
    return tuple(plus(a, b, -1) for a, b in _pairs(node, known))


@_rule("Mul")
def _mul(node: ir.Node, known: Knowledge) -> Elements:
    return tuple(times(a, b) for a, b in _pairs(node, known))


@_rule("Div")
def _div(node: ir.Node, known: Knowledge) -> Elements:
    def quotient(a: Size, b: Size) -> Size:
        if isinstance(a, int) and isinstance(b, int):
            return int(a / b) if b and abs(a) < 2**52 else None  # towards zero
        return divided(a, b)

    return tuple(quotient(a, b) for a, b in _pairs(node, known))


@_rule("Mod")
def _mod(node: ir.Node, known: Knowledge) -> Elements:
    return tuple(
        a % b if isinstance(a, int) and isinstance(b, int) and a >= 0 < b else None for a, b in _pairs(node, known)
    )


@_rule("Max", "Min")
def _extreme(node: ir.Node, known: Knowledge) -> Elements:
    choose = max if node.op_type == "Max" else min
    if len(node.inputs) != 2:
        raise unsure
    return tuple(
        choose(a, b) if isinstance(a, int) and isinstance(b, int) else a if equal(a, b) else None
        for a, b in _pairs(node, known)
    )


@_rule("Neg")
def _neg(node: ir.Node, known: Knowledge) -> Elements:
    return tuple(-size if isinstance(size, int) else None for size in _need(node, known))


@_rule("ReduceProd")
def _reduce_prod(node: ir.Node, known: Knowledge) -> Elements:
    ints(known, node, 1, "axes")
    return (product(_need(node, known)),)


@_rule("Equal")
def _equal(node: ir.Node, known: Knowledge) -> Elements:
    def compared(a: Size, b: Size) -> Size:
        if isinstance(a, int) and isinstance(b, int):
            return int(a == b)
        if equal(a, b):
            return 1
        for x, y in ((a, b), (b, a)):  # a size is never negative; a negative multiple of one may be
            if isinstance(x, int) and x < 0 and isinstance(y, Product) and y.factor > 0:
                return 0
        return None

    return tuple(compared(a, b) for a, b in _pairs(node, known))


@_rule("Where")
def _where(node: ir.Node, known: Knowledge) -> Elements:
    test, a, b = (_need(node, known, i) for i in range(3))
    length = max(len(test), len(a), len(b))
    if {len(test), len(a), len(b)} - {1, length}:
        raise unsure
    rows = ((test[i % len(test)], a[i % len(a)], b[i % len(b)]) for i in range(length))
    return tuple((x if t else y) if isinstance(t, int) else x if equal(x, y) else None for t, x, y in rows)


@_rule("ConstantOfShape")
def _constant_of_shape(node: ir.Node, known: Knowledge) -> Elements:
    (length,) = _need(node, known) or (1,)
    value = node.attributes.get("value")
    if not isinstance(length, int) or length > MOST_ELEMENTS or value is None:
        raise unsure
    tensor = value.as_tensor()
    if tensor.dtype.name not in ("INT64", "INT32", "BOOL"):
        raise unsure
    return (int(tensor.numpy().reshape(-1)[0]),) * length


@_rule("Expand")
def _expand(node: ir.Node, known: Knowledge) -> Elements:
    items, shape = _need(node, known), known.shapes[node.outputs[0]]
    if not shape or len(items) == shape[0]:
        return items
    if len(items) != 1 or not isinstance(shape[0], int):
        raise unsure
    return items * shape[0]


@_rule("Range")
def _range(node: ir.Node, known: Knowledge) -> Elements:
    start, limit, step = (_need(node, known, i)[0] for i in range(3))
    if not (isinstance(start, int) and isinstance(limit, int) and isinstance(step, int)) or step == 0:
        raise unsure
    if abs(limit - start) > MOST_ELEMENTS * abs(step):
        raise unsure
    return tuple(range(start, limit, step))
