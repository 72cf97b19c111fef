"""Put a per-channel ``y = a·x + d`` into the weights of the Conv, ConvTranspose, Gemm or MatMul that computes x.

All of it is computed in float64 and rounded once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.rewriting import Refusal
from penstock.rewriting.site import Site, attribute

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx_ir as ir

    Array = npt.NDArray[np.float64]

_DIGITS = {"FLOAT": 23, "FLOAT16": 10, "BFLOAT16": 7}  # binary digits of a number's fraction
OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
MOST_AWAY = 1000.0  # of an offset from where the values are, whose spread is taken for about 1
FLOATS = ("FLOAT", "FLOAT16", "DOUBLE", "BFLOAT16")


def linear_before(value: ir.Value | None, site: Site) -> ir.Node:
    """Return the linear operator whose result only this reader reads. Raises ``Refusal``."""
    linear = None if value is None else value.producer()
    if value is None or linear is None:
        raise Refusal("its input is a graph input or a constant, not the result of a Conv, ConvTranspose or Gemm")
    if linear.domain != "" or linear.op_type not in OPERATORS:
        raise Refusal(f"its input comes from {linear.op_type}, not from Conv, ConvTranspose or Gemm")
    site.need_sole_reader(value, f"the output of {linear.op_type}")
    return linear


def channels_of(node: ir.Node, site: Site) -> int:
    """Return the number of output channels of a linear operator with constant weights. Raises ``Refusal``."""
    shape = site.static(node.inputs[1])
    tensor = site.tensor(node.inputs[1])
    if tensor is None or shape is None:
        raise _not_constant(node.inputs[1], f"the weight of {node.op_type}")
    if tensor.dtype.name not in FLOATS:
        raise Refusal(f"its weights are {tensor.dtype.name}, no floating-point type that can be folded")
    if node.op_type == "Conv":
        return shape[0]
    if node.op_type == "ConvTranspose":
        return shape[1] * int(attribute(node, "group", 1))
    if len(shape) != 2:
        raise Refusal(f"the weight of {node.op_type} has {len(shape)} axes")
    return shape[0] if node.op_type == "Gemm" and attribute(node, "transB", 0) else shape[1]


def folded(node: ir.Node, slope: Array, offset: Array, site: Site) -> ir.Value:
    """Return a linear operator like ``node`` that computes ``slope·x + offset``, ``(channels,)`` each.

    Raises ``Refusal`` where the weights aren't constants or don't fit.
    """
    count = channels_of(node, site)
    if slope.size != count:
        raise Refusal(f"{node.op_type} has {count} output channels for {slope.size}")
    weight = numbers(node.inputs[1], f"the weight of {node.op_type}", site)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    old = None if bias is None else numbers(bias, f"the bias of {node.op_type}", site)
    tensor = site.tensor(node.inputs[1])
    assert tensor is not None
    new_weight = site.constant(rounded(_scaled(node, weight, slope), tensor.dtype, "weights"), tensor.dtype)
    if node.op_type == "MatMul":
        product = site.make("MatMul", [node.inputs[0], new_weight])
        if not offset.any():
            return product
        return site.make("Add", [product, site.constant(rounded(offset, tensor.dtype, "bias"), tensor.dtype)])
    changed = {}
    scale = 1.0
    if node.op_type == "Gemm":
        scale = float(attribute(node, "beta", 1.0))
        if old is not None and old.size != 1 and old.shape[-1] != slope.size:
            raise Refusal(f"the bias of Gemm has shape {list(old.shape)}, which isn't one number for each column")
        changed = {"beta": None}
    elif old is not None and old.shape != slope.shape:
        raise Refusal(f"the bias of {node.op_type} has {old.size} numbers for {slope.size} channels")
    new_bias = offset if old is None else slope * scale * old + offset
    inputs = [node.inputs[0], new_weight]
    if old is not None or new_bias.any():
        inputs.append(site.constant(rounded(new_bias, tensor.dtype, "bias"), tensor.dtype))
    return site.copy(node, inputs, **changed)


def numbers(value: ir.Value | None, what: str, site: Site) -> Array:
    """Return a constant's numbers as float64. Raises ``Refusal`` where it isn't one."""
    import numpy as np

    array = site.array(value)
    if array is None:
        raise _not_constant(value, what)
    result: Array = array.astype(np.float64)
    return result


def _not_constant(value: ir.Value | None, what: str) -> Refusal:
    if value is not None and value.is_graph_input() and value.const_value is not None:
        return Refusal(f"{what} is an input with a default, which a caller may override")
    return Refusal(f"{what} is not constant")


def rounded(values: Array, dtype: ir.DataType, what: str) -> npt.NDArray[np.generic]:
    """Round to a type. Raises ``Refusal`` where a number doesn't fit in it."""
    import numpy as np

    with np.errstate(all="ignore"):
        result = values.astype(dtype.numpy())
    back = result.astype(np.float64)
    if not np.isfinite(back).all():
        raise Refusal(f"the folded {what} overflow {dtype.name}")
    largest = float(np.abs(values).max(initial=0.0))
    if float(np.abs(back - values).max(initial=0.0)) > 2.0 ** -_DIGITS.get(dtype.name, 52) * largest:
        raise Refusal(
            f"the folded {what} are too small for {dtype.name}"
        )  # they would be rounded to a few bits, or to 0
    return result


def per_channel(value: ir.Value | None, count: int, rank: int, site: Site, axis: int = 1) -> Array | None:
    """Return a constant that broadcasts along all axes but the channels', as ``(count,)``; ``None`` where it isn't."""
    import numpy as np

    tensor = site.tensor(value)
    if tensor is None or tensor.dtype.name not in FLOATS or tensor.size not in (1, count):
        return None
    shape = tuple(int(dim) for dim in tensor.shape.numpy())
    if len(shape) > rank:
        return None
    padded = (1,) * (rank - len(shape)) + shape
    if any(size != 1 and place != axis for place, size in enumerate(padded)):
        return None
    array = site.array(value)
    assert array is not None
    result: Array = np.broadcast_to(array.reshape(-1).astype(np.float64), (count,)).copy()
    return result


def beside_constant(node: ir.Node, site: Site) -> int | None:
    """Return the place of the input that isn't constant, where the others are."""
    if node.op_type == "Neg":
        return 0
    constant = [site.tensor(value) is not None for value in node.inputs]
    return constant.index(False) if len(constant) == 2 and constant.count(False) == 1 else None


def step(node: ir.Node, place: int, count: int, rank: int, axis: int, site: Site) -> tuple[Array, Array] | None:
    """Write a Mul, Div, Add, Sub or Neg of a value, at ``place``, and a constant as slope·x + offset.

    Both are ``(count,)``, along ``axis`` of x. ``None`` where it isn't linear. Raises ``Refusal`` where the constant
    isn't one number for each channel: then it can't be told whether the result is larger than x.
    """
    import numpy as np

    one, none = np.ones(count), np.zeros(count)
    if node.op_type == "Neg":
        return -one, none
    numbers = per_channel(node.inputs[1 - place], count, rank, site, axis)
    if numbers is None:  # one number for each channel can't enlarge the output, whatever its sizes are
        raise Refusal("the constant isn't one number for each channel")
    if node.op_type == "Add":
        return one, numbers
    if node.op_type == "Sub":
        return (one, -numbers) if place == 0 else (-one, numbers)
    if node.op_type == "Mul":
        return numbers, none
    return (1.0 / numbers, none) if place == 0 and numbers.all() else None


def _scaled(node: ir.Node, weight: Array, slope: Array) -> Array:
    tail = (1,) * (weight.ndim - 2)
    if node.op_type in ("Gemm", "MatMul"):
        return weight * (slope[:, None] if attribute(node, "transB", 0) else slope[None, :])
    if node.op_type == "Conv":
        return weight * slope.reshape(-1, 1, *tail)
    groups = int(attribute(node, "group", 1))
    if weight.shape[0] % groups:
        raise Refusal(f"ConvTranspose has {weight.shape[0]} input channels in {groups} groups")
    grouped = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    result: Array = (grouped * slope.reshape(groups, 1, weight.shape[1], *tail)).reshape(weight.shape)
    return result


# -- the other way: into the operator that comes after -----------------------------------------------------------------


def linear_after(value: ir.Value, site: Site) -> ir.Node | None:
    """Return the linear operator that alone reads a value, once and as what its weights are multiplied with."""
    if not site.sole_reader(value):
        return None
    (use,) = value.uses()
    after, maker = use.node, value.producer()
    if use.idx != 0 or after.domain != "" or after.op_type not in OPERATORS:
        return None
    if maker is None or after.graph is not maker.graph:
        return None
    if after.op_type in ("Gemm", "MatMul") and (attribute(after, "transA", 0) or site.rank(value) != 2):
        return None
    return after


def taken_in(after: ir.Node, source: ir.Value | None, slope: Array, offset: Array, site: Site) -> ir.Value:
    """Return a linear operator like ``after`` on slope·source + offset, ``(input channels,)`` each.

    Raises ``Refusal`` where the weights aren't constants or don't fit, and where it can't take an offset in.
    """
    import numpy as np

    weight = numbers(after.inputs[1], f"the weight of {after.op_type}", site)
    tensor = site.tensor(after.inputs[1])
    assert tensor is not None
    if tensor.dtype.name not in FLOATS:
        raise Refusal(f"its weights are {tensor.dtype.name}, no floating-point type that can be folded")
    if after.op_type in ("Gemm", "MatMul") and weight.ndim != 2:
        raise Refusal(f"the weight of {after.op_type} has {weight.ndim} axes")
    if (np.abs(offset) > MOST_AWAY).any():
        raise Refusal("what is added first is so large that digits of the sum would be missing")
    if offset.any() and after.op_type == "ConvTranspose":
        raise Refusal("each place of what a ConvTranspose makes would get another share of the offset")
    if offset.any() and after.op_type == "Conv" and _pads(after, weight):
        raise Refusal("the offset would be missing where the Conv pads")
    new_weight, extra = _by_input(after, weight, slope, offset)
    weights = site.constant(rounded(new_weight, tensor.dtype, "weights"), tensor.dtype)
    if after.op_type == "MatMul":
        product = site.make("MatMul", [source, weights])
        if not extra.any():
            return product
        return site.make("Add", [product, site.constant(rounded(extra, tensor.dtype, "bias"), tensor.dtype)])
    inputs, changed = [source, weights], {}
    bias = after.inputs[2] if len(after.inputs) > 2 else None
    if bias is not None or extra.any():
        old = 0.0 if bias is None else numbers(bias, f"the bias of {after.op_type}", site)
        if after.op_type == "Gemm":
            old, changed = old * float(attribute(after, "beta", 1.0)), {"beta": None}
        inputs.append(site.constant(rounded(old + extra, tensor.dtype, "bias"), tensor.dtype))
    return site.copy(after, inputs, **changed)


def _pads(node: ir.Node, weight: Array) -> bool:
    auto = attribute(node, "auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        return any(size != 1 for size in weight.shape[2:])
    return auto == "NOTSET" and any(attribute(node, "pads") or ())


def _by_input(node: ir.Node, weight: Array, slope: Array, offset: Array) -> tuple[Array, Array]:
    """Return the weight scaled along its input channels, and what the offset adds to each output channel."""
    import numpy as np

    groups, tail = int(attribute(node, "group", 1)), (1,) * (weight.ndim - 2)
    if node.op_type in ("Gemm", "MatMul"):
        turned = bool(attribute(node, "transB", 0))
        rows = weight.T if turned else weight
        _need_channels(node, rows.shape[0], slope)
        scaled = rows * slope[:, None]
        return (scaled.T if turned else scaled), float(attribute(node, "alpha", 1.0)) * (offset @ rows)
    if node.op_type == "ConvTranspose":
        _need_channels(node, weight.shape[0], slope)
        return weight * slope.reshape(-1, 1, *tail), np.zeros(weight.shape[1] * groups)
    width, outputs = weight.shape[1], weight.shape[0] // groups
    _need_channels(node, groups * width, slope)

    def by_output(given: Array) -> Array:  # (input channels,) → one row of its group for each output channel
        rows: Array = given.reshape(groups, 1, width).repeat(outputs, 1).reshape(-1, width, *tail)
        return rows

    return weight * by_output(slope), (weight * by_output(offset)).reshape(weight.shape[0], -1).sum(1)


def _need_channels(node: ir.Node, count: int, slope: Array) -> None:
    if count != slope.size:
        raise Refusal(f"{node.op_type} has {count} input channels for {slope.size}")
