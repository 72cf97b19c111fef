"""Repair: choose the integers of weights, and biases, by what the layers really read.

A bias takes back what the rounding of its layer's weights adds on average, (Ŵ - W)·E[q] (Nagel et al., arXiv
1906.04721): ``analytic`` with the mean of what the layer reads in the float model, ``empirical`` in the quantized one.
``adaptive`` rounding chooses the integers too, see :mod:`.rounding`. Each layer is mended for itself, so that what one
adds isn't taken back twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.calibration import Batches, size
from penstock.quantization import moments, probe, rounding
from penstock.quantization.emit import Weights
from penstock.quantization.ends import bias_home
from penstock.quantization.placement import Placement

if TYPE_CHECKING:
    import onnx_ir as ir

    Array = np.ndarray[Any, np.dtype[Any]]

COLUMNS = 8  # times the length of a column: how many are gathered for a layer, where there are as many
LEAST_COLUMNS = 4096
CHUNK_BYTES = 768 << 20  # of moments that are gathered at once
MOST_LENGTH = 8192  # of a column: the moments of longer ones would take gigabytes


def corrected(
    model: ir.Model, placement: Placement, weights: Mapping[str, Weights], batches: Batches, *,
    seen: ir.Model, adaptive: bool, known: dict[str, moments.Moments] | None = None,
) -> dict[str, Weights]:  # fmt: skip
    """Return weights whose biases, and with ``adaptive`` whose integers, are chosen on the samples.

    ``seen`` is the model in which the layers are looked at: the float one, or the one quantized with ``weights``.
    ``known`` has what was gathered of layers before, in the same model on the same samples, and gets the rest.
    """
    nodes = {str(node.name): node for node in model.graph}
    done = dict(weights)
    for part in _chunks(nodes, placement, weights, squares=adaptive):
        held = {name: known[name] for name in part if known is not None and name in known}
        if missing := {name: nodes[name] for name in part if name not in held}:
            held |= _gathered(seen, missing, placement, batches, squares=adaptive)
        if known is not None:
            known |= held
        for name, found in held.items():
            done[name] = _chosen(nodes[name], _real(nodes[name], placement.weights[name]), weights[name], found)
    return done


def _chosen(node: ir.Node, real: Array, held: Weights, seen: moments.Moments) -> Weights:
    """Choose the bias of one layer, and its integers where second moments were gathered."""
    home = bias_home(node)
    rows = moments.rows(node, real).astype(np.float64)
    whole = moments.rows(node, held.whole.astype(np.float64))
    scale = np.broadcast_to(held.grid.spread(real.ndim)[0], real.shape)
    steps = moments.rows(node, np.ascontiguousarray(scale, np.float64))[:, :, 0]
    if seen.square.size:
        for group in range(len(rows)):
            # without a bias the mean is a part of what has to be kept
            square = seen.covariance(group, centred=home is not None)
            whole[group] = rounding.rounded(rows[group], steps[group], square, held.grid.high)
    bias = held.bias
    if home is not None:
        shift = np.einsum("gok,gk->go", rows - whole * steps[:, :, None], seen.mean)
        bias = ((0 if bias is None else bias) + shift.reshape(-1)).astype(np.float32)
    return Weights(moments.unrows(node, whole, held.whole).astype(held.whole.dtype), held.grid, bias)


def _real(node: ir.Node, index: int) -> Array:
    value = node.inputs[index]
    assert value is not None and value.const_value is not None
    return value.const_value.numpy().astype(np.float32)


def _chunks(
    nodes: Mapping[str, ir.Node], placement: Placement, weights: Mapping[str, Weights], *, squares: bool
) -> Iterator[list[str]]:
    """Cut the layers into parts whose moments fit the memory."""
    part: list[str] = []
    held = 0
    for name, made in weights.items():
        node = nodes[name]
        if node.op_type not in ("Conv", "Gemm", "MatMul") or placement.weights[name] != 1:
            continue
        groups, k = moments.shape(node, made.whole)
        if squares and k > MOST_LENGTH:
            continue
        cost = groups * k * (k if squares else 1) * 8
        if part and held + cost > CHUNK_BYTES:
            yield part
            part, held = [], 0
        part.append(name)
        held += cost
    if part:
        yield part


def _gathered(
    seen: ir.Model, nodes: Mapping[str, ir.Node], placement: Placement, batches: Batches, *, squares: bool
) -> dict[str, moments.Moments]:
    """Run a model and gather the moments of what some layers read in it."""
    there = {str(node.name): node for node in seen.graph}
    readers: dict[str, list[str]] = {}
    for name in nodes:
        value = there[name].inputs[1 - placement.weights[name]]
        assert value is not None and value.name
        readers.setdefault(value.name, []).append(name)
    real = {name: _real(node, placement.weights[name]) for name, node in nodes.items()}
    found = {name: moments.empty(node, real[name], squares=squares) for name, node in nodes.items()}
    first = next(iter(batches), {})
    parts = max(1, -(-batches.count // max(size(first), 1)))

    def visit(tensor: str, array: Array, start: int, count: int) -> None:
        for name in readers[tensor]:
            node = nodes[name]
            most = max(LEAST_COLUMNS, COLUMNS * moments.shape(node, real[name])[1]) // parts + 1
            found[name].add(moments.columns(node, real[name], array, most, start))

    probe.observe(seen, list(readers), batches, visit)
    return found
