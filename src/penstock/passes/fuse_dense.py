"""Let a matrix product with weights take any number of axes, and its bias come before the Reshape after it.

What TensorFlow's ``Tensordot`` becomes is Reshape to ``(…, K)``, MatMul with ``(K, N)``, Reshape to ``(…, N)``.

1. Where the last Reshape gives ``(lead…, N)``, the MatMul takes x of ``(lead…, K)`` as it is, and both Reshapes go; an
   x of another shape gets one Reshape to it instead of two.
2. Where another Reshape follows after an element-wise operator with a constant along the last axis, or without one, the
   first Reshape goes and the operator works on its input: then MatMul and Add are a Gemm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.passes.fold_shapes import as_numbers
from penstock.rewriting import Rewrite
from penstock.rewriting.site import Site
from penstock.rewriting.sizes import same

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "fuse"
AFTER: tuple[str, ...] = ("merge-reshapes", "fuse-gemm")
OPERATORS: tuple[str, ...] = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
_ELEMENTWISE = (
    "Add", "Sub", "Mul", "Div", "Relu", "Clip", "Sigmoid", "Tanh", "Gelu", "Erf", "Neg", "Cast", "HardSigmoid",
    "HardSwish", "LeakyRelu", "Sqrt", "Exp", "Log", "Softplus",
)  # fmt: skip
LONGEST = 4
FIRST_OPSET = 5


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Recognise it from the Reshape after the product."""
    if site.opset < FIRST_OPSET:
        return None
    return _through(node, site) or _any_axes(node, site)


def _any_axes(node: ir.Node, site: Site) -> Rewrite | None:
    product = site.maker(node.inputs[0], "MatMul")
    first = None if product is None else site.maker(product.inputs[0], *OPERATORS)
    if product is None or first is None or node.inputs[0] is None or first.inputs[0] is None:
        return None
    x, flat, weight = first.inputs[0], product.inputs[0], product.inputs[1]
    shape, inner, end = site.shape(weight), site.shape(flat), site.shape(node.outputs[0])
    if shape is None or inner is None or end is None or len(shape) != 2 or len(inner) < 2 or len(end) < 2:
        return None
    if not isinstance(shape[0], int) or not isinstance(shape[1], int) or end[-1] != shape[1] or 0 in end:
        return None
    if inner[-1] != shape[0] or shape[0] == 0:
        return None
    if not site.sole_reader(node.inputs[0]):
        return None
    wanted = (*end[:-1], shape[0])
    if _followed(node, site):
        return None  # better without the Reshape than without its fellow
    if same(wanted, site.shape(x)):
        made = site.make("MatMul", [x, weight])
        return site.instead(node, made, "MatMul takes all axes, without Reshapes around it")
    if flat is None or not site.sole_reader(flat):
        return None
    target = as_numbers(wanted, site.shape(x))
    made = site.make("MatMul", [site.make("Reshape", [x, site.int64s(target)]), weight])
    return site.instead(node, made, "MatMul takes all axes, with one Reshape before it")


def _followed(node: ir.Node, site: Site) -> bool:
    """Whether a Reshape follows after an element-wise operator, so that ``_through`` has something to do."""
    for _ in range(LONGEST):
        if not site.sole_reader(node.outputs[0]):
            return False
        (use,) = node.outputs[0].uses()
        node = use.node
        if node.domain == "" and node.op_type in OPERATORS and use.idx == 0:
            return True
        if node.domain != "" or node.op_type not in _ELEMENTWISE:
            return False
    return False


def _through(node: ir.Node, site: Site) -> Rewrite | None:
    """Leave out a Reshape before element-wise operators that are followed by a Reshape."""
    chain: list[tuple[ir.Node, int]] = []
    value = node.inputs[0]
    while True:
        maker = site.maker(value, *_ELEMENTWISE, *OPERATORS)
        if maker is None or value is None or not site.sole_reader(value) or len(chain) > LONGEST:
            return None
        if maker.op_type in OPERATORS:
            break
        place = next((i for i, one in enumerate(maker.inputs) if one is not None and site.tensor(one) is None), 0)
        chain.append((maker, place))
        value = maker.inputs[place]
    if not chain or maker.inputs[0] is None:
        return None
    start, after, end = maker.inputs[0], site.shape(maker.outputs[0]), site.shape(node.outputs[0])
    before = site.shape(start)
    if before is None or after is None or end is None or not before or not after or 0 in end:
        return None
    if not isinstance(before[-1], int) or before[-1] != after[-1]:
        return None
    target = as_numbers(end, before)
    if any(not _along_last(one, place, after, site) for one, place in chain):
        return None
    made: ir.Value = start
    for one, place in reversed(chain):
        inputs = [made if i == place else _flattened(value, len(before), site) for i, value in enumerate(one.inputs)]
        made = site.copy(one, inputs)
    made = site.make("Reshape", [made, site.int64s(target)])
    return site.instead(node, made, "what stands between two Reshapes doesn't need the first")


def _along_last(node: ir.Node, place: int, shape: tuple[object, ...], site: Site) -> bool:
    """Whether all inputs but the one at ``place`` are constants along the last axis, or of one number."""
    if not same(site.shape(node.inputs[place]), site.shape(node.outputs[0])):
        return False
    for index, value in enumerate(node.inputs):
        if index == place or value is None:
            continue
        own = site.static(value)
        if site.tensor(value) is None or own is None or len(own) > len(shape):
            return False
        if any(size != 1 for size in own[:-1]) or (own and own[-1] not in (1, shape[-1])):
            return False
    return True


def _flattened(value: ir.Value | None, rank: int, site: Site) -> ir.Value | None:
    """Return a constant with no more axes than needed."""
    tensor, own = site.tensor(value), site.static(value)
    if value is None or tensor is None or own is None or len(own) <= rank:
        return value
    return site.constant(tensor.numpy().reshape(own[-1:]), tensor.dtype)
