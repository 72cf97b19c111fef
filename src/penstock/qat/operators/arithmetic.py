"""Elementwise operators, products of matrices, and comparisons. Imports torch: load it inside functions only."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from penstock.qat.operators._node import Node, Run, Untrainable, together

Unary = Callable[[Tensor], Tensor]


def _plain(function: Callable[..., Tensor]) -> Callable[[Node], Run]:
    """Bind an operator without attributes."""

    def bind(node: Node) -> Run:
        return function

    return bind


def _pair(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Node], Run]:
    """Bind an operator of two tensors that broadcast."""

    def run(one: Tensor, other: Tensor) -> Tensor:
        return function(*together(one, other))

    return _plain(run)


def _many(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Node], Run]:
    """Bind an operator of any number of tensors that broadcast."""

    def run(*tensors: Tensor) -> Tensor:
        return functools.reduce(function, together(*tensors))

    return _plain(run)


def _div(one: Tensor, other: Tensor) -> Tensor:
    """Whole numbers are divided towards 0, as in C."""
    return torch.div(one, other, rounding_mode=None if one.is_floating_point() else "trunc")


def _pow(base: Tensor, exponent: Tensor) -> Tensor:
    """The result has the type of the base."""
    return torch.pow(base, exponent.to(base.dtype) if base.is_floating_point() else exponent).to(base.dtype)


def _mod(node: Node) -> Run:
    function = torch.fmod if node.integer("fmod", 0) else torch.remainder

    def run(one: Tensor, other: Tensor) -> Tensor:
        return function(*together(one, other))

    return run


def _clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    if low is None and high is None:
        return x
    return torch.clamp(x, None if low is None else low.item(), None if high is None else high.item())


def _leaky_relu(node: Node) -> Run:
    alpha = node.real("alpha", 0.01)
    return lambda x: functional.leaky_relu(x, alpha)


def _elu(node: Node) -> Run:
    alpha = node.real("alpha", 1.0)
    return lambda x: functional.elu(x, alpha)


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


def _hard_sigmoid(node: Node) -> Run:
    alpha, beta = node.real("alpha", 0.2), node.real("beta", 0.5)
    return lambda x: torch.clamp(alpha * x + beta, 0.0, 1.0)


def _hard_swish(x: Tensor) -> Tensor:
    return x * torch.clamp(x / 6 + 0.5, 0.0, 1.0)


def _gelu(node: Node) -> Run:
    approximate = node.text("approximate", "none")
    return lambda x: functional.gelu(x, approximate=approximate)


def _swish(node: Node) -> Run:
    alpha = node.real("alpha", 1.0)
    return lambda x: x * torch.sigmoid(alpha * x)


def _softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))


def _gemm(node: Node) -> Run:
    alpha, beta = node.real("alpha", 1.0), node.real("beta", 1.0)
    left, right = node.integer("transA", 0), node.integer("transB", 0)

    def run(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        a, b = a.T if left else a, b if right else b.T
        if c is not None and c.ndim == 1 and alpha == beta == 1:
            return functional.linear(a, b, c)
        product = functional.linear(a, b) * alpha
        return product if c is None else product + beta * c

    return run


def _where(condition: Tensor, one: Tensor, other: Tensor) -> Tensor:
    condition, one, other = together(condition, one, other)
    return torch.where(condition, one, other)


def _einsum(node: Node) -> Run:
    equation = node.text("equation", "")
    return lambda *tensors: torch.einsum(equation, *tensors)


def _identity(x: Tensor, *rest: Tensor | None) -> Tensor:
    return x


def _cast(node: Node) -> Run:
    import onnx_ir as ir

    wanted = ir.DataType(node.integer("to", 1))
    name = {"FLOAT": "float32", "DOUBLE": "float64", "BOOL": "bool"}.get(wanted.name, wanted.name.lower())
    kind = getattr(torch, name, None)
    if not isinstance(kind, torch.dtype):
        raise Untrainable(f"a Cast to {wanted.name} isn't among what it knows")
    return lambda x: x.to(kind)


BINDERS: dict[str, Callable[[Node], Run]] = {
    "Abs": _plain(torch.abs), "Add": _pair(torch.add), "And": _pair(torch.logical_and), "Cast": _cast,
    "Ceil": _plain(torch.ceil), "Clip": _plain(_clip), "Cos": _plain(torch.cos), "Div": _pair(_div),
    "Dropout": _plain(_identity), "Einsum": _einsum, "Elu": _elu, "Equal": _pair(torch.eq),
    "Erf": _plain(torch.erf), "Exp": _plain(torch.exp), "Floor": _plain(torch.floor), "Gelu": _gelu, "Gemm": _gemm,
    "Greater": _pair(torch.gt), "GreaterOrEqual": _pair(torch.ge), "HardSigmoid": _hard_sigmoid,
    "HardSwish": _plain(_hard_swish), "Identity": _plain(_identity), "LeakyRelu": _leaky_relu,
    "Less": _pair(torch.lt), "LessOrEqual": _pair(torch.le), "Log": _plain(torch.log), "MatMul": _pair(torch.matmul),
    "Max": _many(torch.maximum), "Min": _many(torch.minimum), "Mish": _plain(functional.mish), "Mod": _mod,
    "Mul": _pair(torch.mul), "Neg": _plain(torch.neg), "Not": _plain(torch.logical_not), "Or": _pair(torch.logical_or),
    "PRelu": _pair(_prelu), "Pow": _pair(_pow), "Reciprocal": _plain(torch.reciprocal), "Relu": _plain(torch.relu),
    "Round": _plain(torch.round), "Sigmoid": _plain(torch.sigmoid), "Sign": _plain(torch.sign),
    "Sin": _plain(torch.sin), "Softplus": _plain(_softplus), "Softsign": _plain(functional.softsign),
    "Sqrt": _plain(torch.sqrt),
    "Sub": _pair(torch.sub), "Sum": _many(torch.add), "Swish": _swish, "Tanh": _plain(torch.tanh),
    "Where": _plain(_where),
}  # fmt: skip
