"""The shapes of what moves and computes elements, one function an operator (ONNX operator specification)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from penstock.rewriting.knowledge import Knowledge, Rule, Shape, constant, count, unsure
from penstock.rewriting.sizes import Size, broadcast, divided, plus, product, times

if TYPE_CHECKING:
    import onnx_ir as ir

_SAME = """Abs Acos Acosh Asin Asinh Atan Atanh BatchNormalization BitwiseNot Ceil Celu Clip Cos Cosh CumSum Dropout Elu
Erf Exp Floor Gelu GroupNormalization HardSigmoid HardSwish Hardmax Identity InstanceNormalization LRN
LayerNormalization LeakyRelu Log LogSoftmax LpNormalization MeanVarianceNormalization Mish Neg Not PRelu
RMSNormalization Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softmax Softplus Softsign Sqrt Swish Tan Tanh
ThresholdedRelu Trilu""".split()  # noqa: SIM905  # a list this long reads better as a text
_BROADCAST = ["Add", "Sub", "Mul", "Div", "Pow", "Mod", "And", "Or", "Xor", "Max", "Min", "Sum", "Mean"]
_BROADCAST += ["BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor"]
_COMPARE = ["Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"]
_KINDS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
_REDUCE = [f"Reduce{kind}" for kind in _KINDS]
RULES: dict[str, Rule] = {}


def shape_rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of operators."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def number(node: ir.Node, name: str, default: int) -> int:
    """Return an integer attribute."""
    attribute = node.attributes.get(name)
    return default if attribute is None else int(attribute.value)


def numbers(node: ir.Node, name: str) -> list[int] | None:
    """Return an attribute of integers."""
    attribute = node.attributes.get(name)
    return None if attribute is None else [int(item) for item in attribute.value]


def need(known: Knowledge, node: ir.Node, index: int = 0) -> Shape:
    """Return the shape of an input. Raises ``unsure`` where its rank isn't known."""
    shape = known.shape(node.inputs[index])
    if shape is None:
        raise unsure
    return shape


def ints(known: Knowledge, node: ir.Node, index: int, attribute: str) -> list[int] | None:
    """Return integers that are an attribute or an input, depending on the opset; ``None`` where there are none.

    Raises ``unsure`` where they are an input that isn't known.
    """
    if attribute in node.attributes:
        return numbers(node, attribute)
    if index >= len(node.inputs) or node.inputs[index] is None:
        return None
    sizes = known.sizes(node.inputs[index])
    if sizes is None:
        raise unsure
    found = [size for size in sizes if isinstance(size, int)]
    if len(found) != len(sizes):
        raise unsure
    return found


@shape_rule(*_SAME)
def _same(node: ir.Node, known: Knowledge) -> None:
    known.put(node.outputs[0], known.shape(node.inputs[0]), node.inputs[0])


@shape_rule(*_BROADCAST)
def _broadcast(node: ir.Node, known: Knowledge) -> None:
    known.put(node.outputs[0], None, node.inputs[0])
    known.put(node.outputs[0], broadcast([need(known, node, i) for i in range(len(node.inputs))]))


@shape_rule(*_COMPARE)
def _compare(node: ir.Node, known: Knowledge) -> None:
    import onnx_ir as ir

    known.put(node.outputs[0], None, ir.DataType.BOOL)
    known.put(node.outputs[0], broadcast([need(known, node, 0), need(known, node, 1)]))


@shape_rule("IsNaN", "IsInf")
def _test(node: ir.Node, known: Knowledge) -> None:
    import onnx_ir as ir

    known.put(node.outputs[0], known.shape(node.inputs[0]), ir.DataType.BOOL)


@shape_rule("Where")
def _where(node: ir.Node, known: Knowledge) -> None:
    known.put(node.outputs[0], None, node.inputs[1])
    known.put(node.outputs[0], broadcast([need(known, node, i) for i in range(3)]))


@shape_rule("Cast")
def _cast(node: ir.Node, known: Knowledge) -> None:
    import onnx_ir as ir

    known.put(node.outputs[0], known.shape(node.inputs[0]), ir.DataType(number(node, "to", 1)))


@shape_rule("CastLike")
def _cast_like(node: ir.Node, known: Knowledge) -> None:
    known.put(node.outputs[0], known.shape(node.inputs[0]), node.inputs[1])


@shape_rule("Constant")
def _constant(node: ir.Node, known: Knowledge) -> None:
    tensor = constant(node.outputs[0])
    if tensor is None:
        raise unsure
    known.put(node.outputs[0], tuple(int(dim) for dim in tensor.shape.numpy()), tensor.dtype)


@shape_rule("Shape")
def _shape(node: ir.Node, known: Knowledge) -> None:
    import onnx_ir as ir

    known.put(node.outputs[0], None, ir.DataType.INT64)
    known.put(node.outputs[0], (len(dims_of_shape(node, need(known, node))),))


def dims_of_shape(node: ir.Node, shape: Shape) -> Shape:
    """Return the part of a shape that a Shape node gives."""
    end = node.attributes.get("end")
    return shape[number(node, "start", 0) : None if end is None else int(end.value)]


@shape_rule("Size")
def _size(node: ir.Node, known: Knowledge) -> None:
    import onnx_ir as ir

    known.put(node.outputs[0], (), ir.DataType.INT64)


@shape_rule("Reshape")
def _reshape(node: ir.Node, known: Knowledge) -> None:
    known.put(node.outputs[0], None, node.inputs[0])
    before = known.shape(node.inputs[0])
    wanted = known.sizes(node.inputs[1])
    if wanted is None:
        length = known.shape(node.inputs[1])
        if length is not None and len(length) == 1 and isinstance(length[0], int):
            known.put(node.outputs[0], (None,) * length[0])
        return
    known.put(node.outputs[0], reshaped(before, wanted, copies=not number(node, "allowzero", 0)))


def reshaped(before: Shape | None, wanted: Shape, *, copies: bool) -> Shape:
    """Return the shape that Reshape gives; 0 stands for the input's size at that place where it ``copies``."""
    after: list[Size] = [
        (before[i] if before is not None and i < len(before) else None) if size == 0 and copies else size
        for i, size in enumerate(wanted)
    ]
    if -1 in after:
        place = after.index(-1)
        rest = [*after[:place], *after[place + 1 :]]
        after[place] = None
        if before is not None:
            left = list(before)
            for size in [*rest]:  # what stands on both sides cancels, even where others aren't known
                if size is not None and size in left and size != 0:
                    left.remove(size)
                    rest.remove(size)
            after[place] = divided(product(left), product(rest))
    elif before is not None and after.count(None) == 1:
        place = after.index(None)
        after[place] = divided(count(before), product([*after[:place], *after[place + 1 :]]))
    return tuple(after)


@shape_rule("Flatten")
def _flatten(node: ir.Node, known: Knowledge) -> None:
    shape, axis = need(known, node), number(node, "axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    known.put(node.outputs[0], (product(shape[:axis]), product(shape[axis:])), node.inputs[0])


@shape_rule("Transpose")
def _transpose(node: ir.Node, known: Knowledge) -> None:
    shape = need(known, node)
    order = numbers(node, "perm") or list(reversed(range(len(shape))))
    known.put(node.outputs[0], [shape[axis] for axis in order], node.inputs[0])


@shape_rule("Squeeze")
def _squeeze(node: ir.Node, known: Knowledge) -> None:
    shape, axes = need(known, node), ints(known, node, 1, "axes")
    known.put(node.outputs[0], None, node.inputs[0])
    if axes is None:
        if not all(isinstance(size, int) for size in shape):
            raise unsure
        axes = [i for i, size in enumerate(shape) if size == 1]
    gone = {axis % len(shape) for axis in axes}
    known.put(node.outputs[0], [size for i, size in enumerate(shape) if i not in gone])


@shape_rule("Unsqueeze")
def _unsqueeze(node: ir.Node, known: Knowledge) -> None:
    shape, axes = need(known, node), ints(known, node, 1, "axes")
    known.put(node.outputs[0], None, node.inputs[0])
    if axes is None:
        raise unsure
    rank = len(shape) + len(axes)
    new, rest = {axis % rank for axis in axes}, iter(shape)
    known.put(node.outputs[0], [1 if i in new else next(rest) for i in range(rank)])


@shape_rule("Concat")
def _concat(node: ir.Node, known: Knowledge) -> None:
    known.put(node.outputs[0], None, node.inputs[0])
    shapes = [need(known, node, i) for i in range(len(node.inputs))]
    axis = number(node, "axis", 0) % len(shapes[0])
    result: list[Size] = [next((s[i] for s in shapes if isinstance(s[i], int)), shapes[0][i])
                          for i in range(len(shapes[0]))]  # fmt: skip
    total: Size = 0
    for shape in shapes:
        total = plus(total, shape[axis])
    result[axis] = total
    known.put(node.outputs[0], result)


@shape_rule("Split")
def _split(node: ir.Node, known: Knowledge) -> None:
    shape = need(known, node)
    axis = number(node, "axis", 0) % len(shape)
    sizes = ints(known, node, 1, "split")
    if sizes is None:
        whole, parts = shape[axis], len(node.outputs)
        if not isinstance(whole, int):
            sizes_: list[Size] = [divided(whole, parts)] * parts
        else:
            each = -(-whole // parts)
            sizes_ = [max(0, min(each, whole - i * each)) for i in range(parts)]
    else:
        sizes_ = [*sizes]
    for value, size in zip(node.outputs, sizes_, strict=True):
        known.put(value, [*shape[:axis], size, *shape[axis + 1 :]], node.inputs[0])


@shape_rule("Slice")
def _slice(node: ir.Node, known: Knowledge) -> None:
    shape = list(need(known, node))
    known.put(node.outputs[0], None, node.inputs[0])
    for axis, start, end, step in slices(node, known, len(shape)):
        shape[axis] = sliced(shape[axis], start, end, step)
    known.put(node.outputs[0], shape)


def slices(node: ir.Node, known: Knowledge, rank: int) -> list[tuple[int, Size, Size, int]]:
    """Return (axis, start, end, step) of a Slice. Raises ``unsure`` where axes or steps aren't known."""
    if "starts" in node.attributes:
        starts: list[Size] = [*(numbers(node, "starts") or [])]
        ends: list[Size] = [*(numbers(node, "ends") or [])]
        axes = numbers(node, "axes")
        steps = None
    else:
        known_starts, known_ends = known.sizes(node.inputs[1]), known.sizes(node.inputs[2])
        axes, steps = ints(known, node, 3, "axes"), ints(known, node, 4, "steps")
        length = len(axes) if axes is not None else None
        length = length or len(known_starts or known_ends or ())
        if not length:
            raise unsure
        starts = [None] * length if known_starts is None else [*known_starts]
        ends = [None] * length if known_ends is None else [*known_ends]
    axes = list(range(len(starts))) if axes is None else [axis % rank for axis in axes]
    return list(zip(axes, starts, ends, steps or [1] * len(starts), strict=True))


def sliced(size: Size, start: Size, end: Size, step: int) -> Size:
    """Return how much a Slice leaves of an axis."""
    if step == 1 and start == 0 and end is not None and (end == size or (isinstance(end, int) and end >= 2**31 - 1)):
        return size
    if isinstance(size, int) and isinstance(start, int) and isinstance(end, int):
        return len(range(*slice(start, end, step).indices(size)))
    if step == 1 and isinstance(start, int) and isinstance(end, int):
        if start < 0 <= -start and end >= 2**31 - 1:
            return None
        if start >= 0 and end < 0:
            return None
    return None


@shape_rule("Gather")
def _gather(node: ir.Node, known: Knowledge) -> None:
    shape, picked = need(known, node), need(known, node, 1)
    axis = number(node, "axis", 0) % len(shape)
    known.put(node.outputs[0], [*shape[:axis], *picked, *shape[axis + 1 :]], node.inputs[0])


@shape_rule("Expand")
def _expand(node: ir.Node, known: Knowledge) -> None:
    known.put(node.outputs[0], None, node.inputs[0])
    wanted = known.sizes(node.inputs[1])
    if wanted is None:
        raise unsure
    known.put(node.outputs[0], broadcast([need(known, node), wanted]))


@shape_rule("Tile")
def _tile(node: ir.Node, known: Knowledge) -> None:
    known.put(node.outputs[0], None, node.inputs[0])
    repeats = known.sizes(node.inputs[1])
    if repeats is None:
        raise unsure
    known.put(node.outputs[0], [times(size, n) for size, n in zip(need(known, node), repeats, strict=True)])


@shape_rule("ConstantOfShape")
def _constant_of_shape(node: ir.Node, known: Knowledge) -> None:
    import onnx_ir as ir

    value = node.attributes.get("value")
    known.put(node.outputs[0], None, ir.DataType.FLOAT if value is None else value.as_tensor().dtype)
    wanted = known.sizes(node.inputs[0])
    if wanted is None:
        raise unsure
    known.put(node.outputs[0], wanted)


@shape_rule(*_REDUCE)
def _reduce(node: ir.Node, known: Knowledge) -> None:
    known.put(node.outputs[0], None, node.inputs[0])
    shape, axes = need(known, node), ints(known, node, 1, "axes")
    keep = bool(number(node, "keepdims", 1))
    if not axes:
        if number(node, "noop_with_empty_axes", 0):
            known.put(node.outputs[0], shape)
            return
        axes = list(range(len(shape)))
    gone = {axis % len(shape) for axis in axes}
    known.put(node.outputs[0], [1 if i in gone else s for i, s in enumerate(shape) if keep or i not in gone])


@shape_rule("Pad")
def _pad(node: ir.Node, known: Knowledge) -> None:
    known.put(node.outputs[0], None, node.inputs[0])
    shape, pads = need(known, node), ints(known, node, 1, "pads")
    axes = ints(known, node, 3, "axes") if len(node.inputs) > 3 else None
    if pads is None:
        raise unsure
    chosen = list(range(len(shape))) if axes is None else [axis % len(shape) for axis in axes]
    result = list(shape)
    for place, axis in enumerate(chosen):
        result[axis] = plus(shape[axis], pads[place] + pads[len(chosen) + place])
    known.put(node.outputs[0], result)
