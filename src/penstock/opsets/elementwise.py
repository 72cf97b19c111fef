"""Element by element: Clip (11), Dropout (10, 12), Pow (12), comparisons (11), Max, Sum, … (8), and newcomers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from penstock.opsets import down, up
from penstock.rewriting import Refusal, Rewrite

if TYPE_CHECKING:
    import onnx_ir as ir

    from penstock.opsets.place import Place

MOST_ONES = 1 << 20  # elements of a constant that only widens another value
LARGEST = {"FLOAT16": 65504.0, "FLOAT": 3.4028234663852886e38, "DOUBLE": 1.7976931348623157e308}


@up(11, "Clip")
def bounds_as_inputs(node: ir.Node, place: Place) -> Rewrite:
    """Bounds became inputs; the largest float, which was the default, is written out where it cuts infinity."""
    dtype = place.dtype(node.inputs[0])
    inputs = [node.inputs[0]]
    for name, usual in (("min", -LARGEST["FLOAT"]), ("max", LARGEST["FLOAT"])):
        number = float(place.attribute(node, name, usual))
        idle = math.isinf(number) or (abs(number) >= LARGEST["FLOAT"] and dtype.name == "FLOAT16")
        inputs.append(None if idle else place.scalar_constant(number, dtype))
    return place.renew(node, "min and max became inputs", inputs, min=None, max=None)


@down(11, "Clip")
def bounds_as_attributes(node: ir.Node, place: Place) -> Rewrite:
    """Constant bounds become attributes, computed ones a Max and a Min."""
    x, low, high = (place.input(node, index) for index in range(3))
    assert x is not None
    numbers = [None if bound is None else place.scalar(bound) for bound in (low, high)]
    fixed = all(bound is None or number is not None for bound, number in zip((low, high), numbers, strict=True))
    if fixed:
        least, most = (usual if number is None else number
                       for number, usual in zip(numbers, (-math.inf, math.inf), strict=True))  # fmt: skip
        return place.renew(node, "min and max became attributes", [x], min=float(least), max=float(most))
    made = x if low is None else place.make("Max", [x, low])
    made = made if high is None else place.make("Min", [made, high])
    return Rewrite({node.outputs[0]: made}, "computed bounds: a Max and a Min")


@up(10, "Dropout")
@down(10, "Dropout")
def mask_of_other_type(node: ir.Node, place: Place) -> Rewrite | None:
    """The mask changes between truth values and numbers."""
    import onnx_ir as ir

    if not place.reads(node, 1):
        return None
    mine = place.dtype(node.outputs[1])
    output, mask = place.anew(node)
    new = place.dtype(node.inputs[0]) if mine == ir.DataType.BOOL else ir.DataType.BOOL
    place.typed(mask, new, node.inputs[0])
    values = {node.outputs[0]: output, node.outputs[1]: place.cast(mask, mine)}
    return Rewrite(values, "its mask is cast")


@up(12, "Dropout")
def ratio_as_input(node: ir.Node, place: Place) -> Rewrite:
    """The ratio became an input; it counts in training alone."""
    import onnx_ir as ir

    ratio = place.scalar_constant(float(place.attribute(node, "ratio", 0.5)), ir.DataType.FLOAT)
    return place.renew(node, "ratio became an input", [node.inputs[0], ratio], ratio=None)


@down(12, "Dropout")
def ratio_as_attribute(node: ir.Node, place: Place) -> Rewrite:
    """A constant ratio becomes an attribute. Refused: training, and a mask that is read."""
    training = place.input(node, 2)
    if training is not None and place.need_number(training, "training_mode"):
        raise Refusal("it is set up for training, and older opsets have inference only")
    if place.reads(node, 1):
        raise Refusal("its mask is read, which older opsets don't fix in inference")
    ratio = place.input(node, 1)
    number = 0.5 if ratio is None else place.scalar(ratio)
    return place.renew(node, "ratio became an attribute", [node.inputs[0]], outputs=1, seed=None,
                       ratio=0.5 if number is None else float(number))  # fmt: skip


@down(11, "Gemm")
def zero_added(node: ir.Node, place: Place) -> Rewrite | None:
    """What isn't added is a zero."""
    if place.input(node, 2) is not None:
        return None
    zero = place.scalar_constant(0, place.dtype(node.inputs[0]))
    return place.renew(node, "C is a zero", [*node.inputs[:2], zero])


@down(12, "Pow")
def one_type(node: ir.Node, place: Place) -> Rewrite | None:
    """An exponent of another type is cast to the base's."""
    base, exponent = node.inputs[0], node.inputs[1]
    assert exponent is not None
    dtype = place.dtype(base)
    if place.dtype(exponent) == dtype:
        return None
    if not dtype.is_floating_point():
        raise Refusal("whole numbers to a power of another type have no form in older opsets")
    return place.renew(node, "the exponent is cast", [base, place.cast(exponent, dtype)])


@down(11, "Equal")
def equal_floats(node: ir.Node, place: Place) -> Rewrite | None:
    """Floats are equal where neither is less, and both are numbers."""
    a, b = node.inputs[0], node.inputs[1]
    assert a is not None and b is not None
    if not place.dtype(a).is_floating_point():
        return None
    close = place.make("Or", [place.make("Less", [a, b]), place.make("Greater", [a, b])])
    for value in (a, b):
        number = place.scalar(value)
        if number is None or math.isnan(number):
            close = place.make("Or", [close, place.make("IsNaN", [value])])
    return Rewrite({node.outputs[0]: place.make("Not", [close])}, "floats: neither less nor greater, and no NaN")


@down(8, "Max", "Min", "Sum", "Mean")
def no_broadcasting(node: ir.Node, place: Place) -> Rewrite | None:
    """Operands of one shape stay; others are added one by one. Max and Min of others are refused."""
    shapes = {place.shape(value) for value in node.inputs}
    alike = len(shapes) == 1 and all(shape is not None and None not in shape for shape in shapes)
    if len(node.inputs) == 1 or alike:
        return None
    if node.op_type in ("Max", "Min"):
        raise Refusal("its inputs may have different shapes, and opset 7 doesn't broadcast here")
    total = node.inputs[0]
    assert total is not None
    for value in node.inputs[1:]:
        total = place.make("Add", [total, value])
    if node.op_type == "Mean":
        total = place.make("Div", [total, place.scalar_constant(len(node.inputs), place.dtype(node.inputs[0]))])
    return Rewrite({node.outputs[0]: total}, "added one by one, which broadcasts")


@down(8, "Expand")
def times_one(node: ir.Node, place: Place) -> Rewrite:
    """An Expand to a fixed shape is a product with ones."""
    import numpy as np

    x, shape = node.inputs[0], place.ints(node.inputs[1])
    dtype = place.dtype(x)
    if shape is None or math.prod(shape) > MOST_ONES or dtype.name not in (*LARGEST, "INT32", "INT64"):
        raise Refusal("opset 7 has no Expand, and a product with ones needs a fixed shape, not large, of numbers")
    ones = place.constant(np.ones(shape, dtype.numpy()), dtype)
    return Rewrite({node.outputs[0]: place.make("Mul", [x, ones])}, "a product with ones")


@down(9, "IsNaN")
def not_a_number(node: ir.Node, place: Place) -> Rewrite:
    """NaN alone has no absolute value greater than -1."""
    x = node.inputs[0]
    assert x is not None
    more = place.make("Greater", [place.make("Abs", [x]), place.scalar_constant(-1.0, place.dtype(x))])
    return Rewrite({node.outputs[0]: place.make("Not", [more])}, "its absolute value is not greater than -1")


@down(10, "IsInf")
def beyond_the_largest(node: ir.Node, place: Place) -> Rewrite:
    """Infinite is what is greater than the largest number."""
    x = node.inputs[0]
    assert x is not None
    dtype = place.dtype(x)
    both = (place.attribute(node, "detect_negative", 1), place.attribute(node, "detect_positive", 1))
    largest = LARGEST.get(dtype.name)
    if largest is None or both == (0, 0):
        raise Refusal("there is no IsInf before opset 10")
    if both == (1, 1):
        x = place.typed(place.make("Abs", [x]), dtype, x)
    op, bound = ("Greater", largest) if both[1] else ("Less", -largest)
    made = place.make(op, [x, place.scalar_constant(bound, dtype)])
    return Rewrite({node.outputs[0]: made}, "beyond the largest number")


@down(9, "Sign")
def greater_minus_less(node: ir.Node, place: Place) -> Rewrite:
    """The sign is whether it is greater than zero, minus whether it is less."""
    x = node.inputs[0]
    assert x is not None
    dtype = place.dtype(x)
    zero = place.scalar_constant(0, dtype)
    more, less = (place.cast(place.make(op, [x, zero]), dtype) for op in ("Greater", "Less"))
    return Rewrite({node.outputs[0]: place.make("Sub", [more, less])}, "greater than zero, minus less than zero")


@down(10, "ThresholdedRelu")
def chosen_above(node: ir.Node, place: Place) -> Rewrite:
    """What is above the threshold, else zero."""
    x = node.inputs[0]
    assert x is not None
    dtype = place.dtype(x)
    above = place.make("Greater", [x, place.scalar_constant(float(place.attribute(node, "alpha", 1.0)), dtype)])
    return Rewrite({node.outputs[0]: place.make("Where", [above, x, place.scalar_constant(0, dtype)])}, "a Where")


@down(20, "Gelu")
def gelu_spelt(node: ir.Node, place: Place) -> Rewrite:
    """x/2 (1 + erf(x/√2)), or with ``approximate="tanh"`` x/2 (1 + tanh(√(2/π) (x + 0.044715 x³)))."""
    x = node.inputs[0]
    assert x is not None
    dtype = place.dtype(x)

    def number(value: float) -> ir.Value:
        return place.scalar_constant(value, dtype)

    if place.attribute(node, "approximate", "none") == "tanh":
        cube = place.make("Mul", [place.make("Pow", [x, number(3)]), number(0.044715)])
        inner = place.make("Mul", [place.make("Add", [x, cube]), number(math.sqrt(2 / math.pi))])
        bent = place.make("Tanh", [inner])
    else:
        bent = place.make("Erf", [place.make("Div", [x, number(math.sqrt(2))])])
    half = place.make("Mul", [x, place.make("Add", [bent, number(1)])])
    return Rewrite({node.outputs[0]: place.make("Mul", [half, number(0.5)])}, "spelt out")


@down(24, "Swish")
def swish_spelt(node: ir.Node, place: Place) -> Rewrite:
    """x · sigmoid(αx)."""
    x, alpha = node.inputs[0], float(place.attribute(node, "alpha", 1.0))
    assert x is not None
    inner = x if alpha == 1 else place.make("Mul", [x, place.scalar_constant(alpha, place.dtype(x))])
    return Rewrite({node.outputs[0]: place.make("Mul", [x, place.make("Sigmoid", [inner])])}, "x · Sigmoid(αx)")
