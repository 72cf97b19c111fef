"""Normalizations, softmaxes and reductions. Imports torch: load it inside functions only."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from penstock.qat.operators._node import Node, Run, Untrainable, axes_of


def _softmax(function: Callable[..., Tensor]) -> Callable[[Node], Run]:
    def bind(node: Node) -> Run:
        axis = node.integer("axis", -1)
        return lambda x: function(x, dim=axis)

    return bind


def _batch_normalization(node: Node) -> Run:
    epsilon = node.real("epsilon", 1e-5)
    node.only("training_mode", 0, node.integer("training_mode", 0))

    def run(x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return functional.batch_norm(x, mean, variance, scale, shift, False, 0.0, epsilon)

    return run


def _layer_normalization(node: Node) -> Run:
    axis, epsilon = node.integer("axis", -1), node.real("epsilon", 1e-5)

    def run(x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
        shape = list(x.shape[axis % x.ndim :])
        if list(scale.shape) == shape and (shift is None or list(shift.shape) == shape):
            return functional.layer_norm(x, shape, scale, shift, epsilon)
        made = functional.layer_norm(x, shape, None, None, epsilon) * scale
        return made if shift is None else made + shift

    return run


def _rms_normalization(node: Node) -> Run:
    axis, epsilon = node.integer("axis", -1), node.real("epsilon", 1e-5)

    def run(x: Tensor, scale: Tensor) -> Tensor:
        return functional.rms_norm(x, list(x.shape[axis % x.ndim :]), None, epsilon) * scale

    return run


def _instance_normalization(node: Node) -> Run:
    epsilon = node.real("epsilon", 1e-5)
    return lambda x, scale, shift: functional.instance_norm(x, None, None, scale, shift, True, 0.0, epsilon)


def _group_normalization(node: Node) -> Run:
    epsilon, groups = node.real("epsilon", 1e-5), node.integer("num_groups", 1)
    if node.opset < 21:
        raise Untrainable("GroupNormalization of opset 18, which was withdrawn, isn't among what it knows")
    return lambda x, scale, shift: functional.group_norm(x, groups, scale, shift, epsilon)


def _reduce(function: Callable[..., Tensor]) -> Callable[[Node], Run]:
    """Bind a reduction, whose axes are an attribute or, in later opsets, an input."""

    def bind(node: Node) -> Run:
        keep, nothing = bool(node.integer("keepdims", 1)), bool(node.integer("noop_with_empty_axes", 0))

        def run(x: Tensor, axes: Tensor | None = None) -> Tensor:
            chosen = axes_of(node, axes, x.ndim)
            if not chosen and nothing:
                return x
            return function(x, dim=chosen or list(range(x.ndim)), keepdim=keep)

        return run

    return bind


def _norm1(x: Tensor, dim: list[int], keepdim: bool) -> Tensor:
    return x.abs().sum(dim=dim, keepdim=keepdim)


def _norm2(x: Tensor, dim: list[int], keepdim: bool) -> Tensor:
    found: Tensor = torch.linalg.vector_norm(x, dim=dim, keepdim=keepdim)
    return found


def _sum_of_squares(x: Tensor, dim: list[int], keepdim: bool) -> Tensor:
    return x.square().sum(dim=dim, keepdim=keepdim)


def _extreme(function: Callable[..., Tensor]) -> Callable[[Node], Run]:
    """Bind ArgMax or ArgMin, of which no gradient comes back."""

    def bind(node: Node) -> Run:
        axis, keep = node.integer("axis", 0), bool(node.integer("keepdims", 1))
        node.only("select_last_index", 0, node.integer("select_last_index", 0))
        return lambda x: function(x, dim=axis, keepdim=keep)

    return bind


BINDERS: dict[str, Callable[[Node], Run]] = {
    "ArgMax": _extreme(torch.argmax), "ArgMin": _extreme(torch.argmin), "BatchNormalization": _batch_normalization,
    "GroupNormalization": _group_normalization, "InstanceNormalization": _instance_normalization,
    "LayerNormalization": _layer_normalization, "LogSoftmax": _softmax(functional.log_softmax),
    "RMSNormalization": _rms_normalization, "ReduceL1": _reduce(_norm1), "ReduceL2": _reduce(_norm2),
    "ReduceMax": _reduce(torch.amax), "ReduceMean": _reduce(torch.mean), "ReduceMin": _reduce(torch.amin),
    "ReduceSum": _reduce(torch.sum), "ReduceSumSquare": _reduce(_sum_of_squares),
    "Softmax": _softmax(functional.softmax),
}  # fmt: skip
