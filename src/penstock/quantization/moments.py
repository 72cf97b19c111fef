"""Moments: what the weighted layers read, on average and against each other, as rounding and biases need it.

A layer is a product of its weights with columns: pixels' neighbourhoods for a Conv, rows for a Gemm or MatMul. With q a
column, what is gathered is Σ q·qᵀ and Σ q.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

    Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(slots=True)
class Moments:
    """Sums over columns, by group of a grouped Conv: of shape (groups, k, k) and (groups, k)."""

    square: Array  # empty where only the means are wanted
    total: Array
    count: int = 0

    def add(self, columns: Array) -> None:
        """Take in columns of shape (groups, n, k)."""
        if self.square.size:
            self.square += columns.transpose(0, 2, 1) @ columns
        self.total += columns.sum(axis=1, dtype=np.float64)
        self.count += columns.shape[1]

    @property
    def mean(self) -> Array:
        """The mean column, (groups, k)."""
        found: Array = self.total / max(self.count, 1)
        return found

    def covariance(self, group: int, *, centred: bool) -> Array:
        """Return E[q·qᵀ] of a group, (k, k) float64, about the mean or not."""
        found: Array = self.square[group] / max(self.count, 1)
        return found - np.outer(self.mean[group], self.mean[group]) if centred else found


def empty(node: ir.Node, weights: Array, *, squares: bool) -> Moments:
    """Return sums of nothing for a weighted node."""
    groups, k = shape(node, weights)
    return Moments(np.zeros((groups, k, k) if squares else (0,)), np.zeros((groups, k)))


def shape(node: ir.Node, weights: Array) -> tuple[int, int]:
    """Return the number of groups, and how many numbers a column has."""
    if node.op_type == "Conv":
        return node.attributes.get_int("group", 1), int(np.prod(weights.shape[1:]))
    return 1, weights.shape[1 if node.attributes.get_int("transB", 0) else 0]


def rows(node: ir.Node, weights: Array) -> Array:
    """Return the weights as (groups, outputs of a group, k)."""
    groups, k = shape(node, weights)
    if node.op_type == "Conv":
        return weights.reshape(groups, -1, k)
    return (weights if node.attributes.get_int("transB", 0) else weights.T)[None]


def unrows(node: ir.Node, made: Array, weights: Array) -> Array:
    """Bring what :func:`rows` gave back into the shape of the weights."""
    if node.op_type == "Conv":
        return made.reshape(weights.shape)
    return made[0] if node.attributes.get_int("transB", 0) else np.ascontiguousarray(made[0].T)


def columns(node: ir.Node, weights: Array, data: Array, most: int, seed: int) -> Array:
    """Return columns of a batch, (groups, n, k); where there are more than ``most``, as many drawn by ``seed``."""
    if node.op_type != "Conv":
        flat = data.reshape(-1, data.shape[-1])
        return _drawn(flat, most, seed)[None]
    spatial = data.ndim - 2
    kernel = weights.shape[2:]
    strides = list(node.attributes.get_ints("strides", [1] * spatial))
    dilations = list(node.attributes.get_ints("dilations", [1] * spatial))
    padded = np.pad(data, [(0, 0), (0, 0), *_pads(node, data.shape[2:], kernel, strides, dilations)])
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    seen = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=tuple(range(2, 2 + spatial)))
    seen = seen[(slice(None), slice(None), *(slice(None, None, s) for s in strides),
                 *(slice(None, None, d) for d in dilations))]  # fmt: skip
    places = seen.shape[2 : 2 + spatial]
    total = len(data) * int(np.prod(places))
    groups, each = node.attributes.get_int("group", 1), weights.shape[1]
    # (n, places…, channels, kernel…), without copying what isn't drawn
    moved = np.moveaxis(seen, 1, 1 + spatial)
    if total > most:
        picked = np.unravel_index(_picked(total, most, seed), (len(data), *places))
        flat = moved[picked]
    else:
        flat = moved.reshape(total, *moved.shape[1 + spatial :])
    return np.ascontiguousarray(flat.reshape(len(flat), groups, -1).transpose(1, 0, 2)) if each else flat[None]


def _pads(
    node: ir.Node, sizes: tuple[int, ...], kernel: tuple[int, ...], strides: list[int], dilations: list[int]
) -> list[tuple[int, int]]:
    spatial = len(sizes)
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        found = []
        for size, width, stride, step in zip(sizes, kernel, strides, dilations, strict=True):
            total = max((-(-size // stride) - 1) * stride + (width - 1) * step + 1 - size, 0)
            small = total // 2
            found.append((small, total - small) if auto == "SAME_UPPER" else (total - small, small))
        return found
    pads = [0] * (2 * spatial) if auto == "VALID" else list(node.attributes.get_ints("pads", [0] * (2 * spatial)))
    return list(zip(pads[:spatial], pads[spatial:], strict=True))


def _picked(total: int, most: int, seed: int) -> Array:
    return np.sort(np.random.default_rng(seed).choice(total, most, replace=False))


def _drawn(flat: Array, most: int, seed: int) -> Array:
    return flat if len(flat) <= most else flat[_picked(len(flat), most, seed)]
