"""Account: what was done to each layer of a quantized model, with which range, and how much was clipped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.quantization.emit import Weights, bounds, clips
from penstock.quantization.grid import Grid
from penstock.quantization.placement import Placement, weight_index

if TYPE_CHECKING:
    import onnx_ir as ir

    from penstock.jsonable import Json
    from penstock.quantization.statistics import Statistics

    Array = np.ndarray[Any, np.dtype[Any]]


def layers(
    model: ir.Model, placement: Placement, grids: Mapping[str, Grid], weights: Mapping[str, Weights],
    seen: Mapping[str, Statistics], reasons: Mapping[str, str] | None = None,
) -> list[Json]:  # fmt: skip
    """Tell of each node: its state and the reason, the grids it reads and makes, what rounding did to its weights."""
    nodes = {str(node.name): node for node in model.graph}
    found: list[Json] = []
    for layer in placement.layers:
        node = nodes[layer.node]
        told: dict[str, Json] = {"node": layer.node, "op": layer.op, "state": layer.state, "reason": layer.reason}
        told["reason"] = (reasons or {}).get(layer.node, layer.reason)
        if layer.state == "absorbed" and not clips(node, grids[placement.absorbed[layer.node]]):
            low, high = bounds(node)
            told["state"], told["reason"] = "float", f"it clips to [{low:g}, {high:g}], which its grid doesn't"
        names = [str(value.name) for i in placement.reads.get(layer.node, ()) if (value := node.inputs[i]) is not None]
        told["reads"] = [tensor(name, grids.get(placement.key(layer.node, name)), seen) for name in names]
        told["makes"] = [
            tensor(name, grids.get(name), seen) for out in node.outputs if (name := str(out.name)) in placement.whole
        ]  # fmt: skip
        if layer.node in placement.int16:
            told["bits"] = 16
        if layer.node in weights:
            told["weights"] = _weights(node, weights[layer.node])
        found.append(told)
    return found


def tensor(name: str, grid: Grid | None, seen: Mapping[str, Statistics]) -> Json:
    """Tell of one tensor: its grid, what was seen of it, and the share that the grid clips."""
    if grid is None:
        return {"tensor": name}
    told: dict[str, Json] = {
        "tensor": name, "dtype": grid.dtype, "scale": float(grid.scale.flat[0]), "zero_point": int(grid.zero.flat[0]),
        "low": grid.bottom, "high": grid.top,
    }  # fmt: skip
    if (known := seen.get(name)) is not None and np.isfinite(known.low):
        told |= {"seen_low": known.low, "seen_high": known.high}
        if known.wants_histogram:
            told["clipped"] = clipped(known, grid)
        elif known.low >= grid.bottom - _slack(grid) and known.high <= grid.top + _slack(grid):
            told["clipped"] = 0.0
    return told


def clipped(seen: Statistics, grid: Grid) -> float:
    """Return the share of all values that lie outside of a grid by more than half a step."""
    values, counts = seen.histogram.bins()
    if not len(values):
        return 0.0
    outside = (values < grid.bottom - _slack(grid)) | (values > grid.top + _slack(grid))
    return float(counts[outside].sum() / counts.sum())


def _slack(grid: Grid) -> float:
    return 0.5 * float(grid.scale.flat[0])


def _weights(node: ir.Node, held: Weights) -> Json:
    index = weight_index(node)
    value = node.inputs[index]
    assert value is not None and value.const_value is not None
    real = value.const_value.numpy().astype(np.float64)
    gap = held.grid.dequantize(held.whole) - real
    noise, signal = float(np.square(gap).sum()), float(np.square(real).sum())
    return {
        "dtype": held.grid.dtype, "shape": [int(dim) for dim in real.shape], "scales": int(held.grid.scale.size),
        "sqnr_db": None if noise == 0 or signal == 0 else 10 * float(np.log10(signal / noise)),
    }  # fmt: skip


def histograms(seen: Mapping[str, Statistics], grids: Mapping[str, Grid]) -> dict[str, Json]:
    """Return a histogram of 256 equal bins for each tensor that was looked at so closely, with its grid's ends."""
    found: dict[str, Json] = {}
    for name, known in seen.items():
        if known.wants_histogram and known.histogram.count:
            edges, counts = known.histogram.coarse()
            grid = grids.get(name)
            ends = {} if grid is None else {"grid_low": grid.bottom, "grid_high": grid.top}
            found[name] = {"low": edges[0], "high": edges[-1], "counts": list(counts), **ends}
    return found
