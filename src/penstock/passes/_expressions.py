"""Take arithmetic apart: the factors of a product, a number beside a value, and who else reads what lies between."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from penstock.rewriting import Refusal
from penstock.rewriting.site import Site

if TYPE_CHECKING:
    import onnx_ir as ir

FLOATS = ("FLOAT", "FLOAT16", "DOUBLE", "BFLOAT16")
MOST_FACTORS = 6
_TOLERANCE = {"FLOAT16": 2e-3, "BFLOAT16": 1e-2, "DOUBLE": 1e-12}


@dataclass(slots=True)
class Factors:
    """A product: a number times values, each as often as it stands in it, and the nodes that multiply them."""

    number: float = 1.0
    values: list[ir.Value] = field(default_factory=list)
    nodes: list[ir.Node] = field(default_factory=list)


def factors(node: ir.Node, site: Site) -> Factors:
    """Write a Mul, Div or Pow as a product; what others read as well is one factor.

    1. A constant of one number multiplies or divides the number.
    2. ``Pow(x, 2)`` and ``Pow(x, 3)`` are x·x and x·x·x.
    """
    found = Factors()
    _collect(node, site, found)
    return found


def factors_of(value: ir.Value | None, site: Site) -> Factors:
    """Write a value as a product, of itself alone where nothing multiplies."""
    found = Factors()
    if value is not None:
        _enter(value, site, found, sole=True)
    return found


def _collect(node: ir.Node, site: Site, found: Factors) -> None:
    found.nodes.append(node)
    if node.op_type == "Pow":
        power = site.scalar(node.inputs[1])
        if power in (2.0, 3.0) and node.inputs[0] is not None:
            found.values.extend([node.inputs[0]] * int(power))
            return
    if node.op_type in ("Mul", "Div"):
        for value, number in beside_number(node, site):
            found.number = found.number * number if node.op_type == "Mul" else found.number / (number or math.nan)
            _enter(value, site, found, sole=True)
            return
        if node.op_type == "Mul":
            left, right = node.inputs
            if left is not None and right is not None:
                _enter(left, site, found, sole=left is not right)
                _enter(right, site, found, sole=left is not right)
                return
    found.nodes.pop()
    found.values.append(node.outputs[0])


def _enter(value: ir.Value, site: Site, found: Factors, *, sole: bool) -> None:
    maker = site.maker(value, "Mul", "Div", "Pow")
    enough = len(found.nodes) >= MOST_FACTORS
    if maker is None or enough or not sole or not site.sole_reader(value):
        found.values.append(value)
    else:
        _collect(maker, site, found)


def operands(node: ir.Node) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Yield the two inputs of a node, in both orders."""
    if len(node.inputs) == 2 and node.inputs[0] is not None and node.inputs[1] is not None:
        yield node.inputs[0], node.inputs[1]
        yield node.inputs[1], node.inputs[0]


def beside_number(node: ir.Node, site: Site) -> Iterator[tuple[ir.Value, float]]:
    """Yield (value, number) where one input is a constant of one element that doesn't add axes to the result.

    Of Sub, Div and Pow that is the second input only.
    """
    for place, (value, other) in enumerate(operands(node)):
        if place and node.op_type in ("Sub", "Div", "Pow"):
            return
        tensor, rank = site.tensor(other), site.rank(value)
        if tensor is None or tensor.size != 1 or tensor.dtype.name not in FLOATS:
            continue
        if len(tensor.shape) == 0 or (rank is not None and len(tensor.shape) <= rank):
            yield value, float(tensor.numpy().reshape(-1)[0])


def plus_number(node: ir.Node, site: Site) -> Iterator[tuple[ir.Value, float]]:
    """Yield (value, number) where an Add or a Sub adds a constant of one element, or takes one away."""
    for value, number in beside_number(node, site):
        yield value, -number if node.op_type == "Sub" else number


def near(number: float | None, wanted: float, value: ir.Value) -> bool:
    """Whether a number is the wanted one, as exactly as the type of ``value`` holds it."""
    kind = "" if value.dtype is None else value.dtype.name
    return number is not None and math.isclose(number, wanted, rel_tol=_TOLERANCE.get(kind, 2e-6))


def is_float(value: ir.Value | None) -> bool:
    """Whether a value's type is known to be a floating-point one."""
    return value is not None and value.dtype is not None and value.dtype.name in FLOATS


def need_enclosed(inner: Iterable[ir.Node], root: ir.Node) -> None:
    """Raise ``Refusal`` where another node than these and the root reads what one of the inner nodes makes."""
    nodes = {*inner} - {root}
    for node in nodes:
        if node.graph is not root.graph:
            raise Refusal(f"{node.op_type}, a part of it, lies in an outer graph")
        for value in node.outputs:
            if value.is_graph_output():
                raise Refusal(f"the result of {node.op_type}, a part of it, is an output of its graph")
            if any(use.node is not root and use.node not in nodes for use in value.uses()):
                raise Refusal(f"the result of {node.op_type}, a part of it, is read elsewhere too")


def need_opset(operator: str, since: int, site: Site) -> None:
    """Raise ``Refusal`` where the model's opset doesn't have an operator."""
    if site.opset < since:
        raise Refusal(f"{operator} needs opset {since}, the model has {site.opset}")


def need_narrow(operator: str, *values: ir.Value | None) -> None:
    """Raise ``Refusal`` where one of the values is of float64.

    Operators that come with numbers (as attributes, or in their function body) have them in float32, and ONNX Runtime
    has no kernels of float64 for some of the others.
    """
    if any(value is not None and value.dtype is not None and value.dtype.name == "DOUBLE" for value in values):
        raise Refusal(f"{operator} isn't as exact in float64, or not there in ONNX Runtime")
