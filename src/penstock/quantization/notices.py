"""Notices: what a user should know of calibration samples before the result is trusted."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np

from penstock import calibration
from penstock.calibration import Batches
from penstock.errors import InputError
from penstock.quantization.statistics import Statistics

if TYPE_CHECKING:
    from penstock.quantization.study import Study

SOME = 32  # samples that tell of which scale they are
PIXELS_REACH = 16  # the brightest of a batch of raw pixels is beyond it, what was scaled to 0 to 1 or by --std isn't
CHANNELS = {1, 3, 4}
LEAST_PIXELS = 64  # of an image that is given as a row
OTHER_SCALE = 8.0  # times smaller or larger than the golden set's: not the same preprocessing


def few(batches: Batches, seen: Mapping[str, Statistics]) -> list[str]:
    """Tell how stable the scales are, where the samples are few."""
    count = calibration.few(batches)
    if not count or not seen:
        return []
    found = sorted(one.instability() for one in seen.values())
    middle, worst = found[len(found) // 2], found[-1]
    name = max(seen.values(), key=Statistics.instability).tensor
    return [
        f"{count}: leaving out one of them narrows the range of half of the tensors by {middle:.0%} or more, "
        f"that of {name!r} by {worst:.0%}; give {calibration.FEW} or more"
    ]  # fmt: skip


def raw_pixels(batches: Batches) -> list[str]:
    """Tell of float inputs that hold numbers from 0 to 255, as pixels do before they are scaled."""
    first = next(iter(batches), {})
    found = []
    for name, array in first.items():
        if array.dtype.kind != "f" or not array.size or array.min() < 0 or not PIXELS_REACH < array.max() <= 255:
            continue
        whole = not np.any(array % 1)
        image = array.ndim == 4 and {array.shape[1], array.shape[-1]} & CHANNELS
        if image or (whole and (array.ndim == 3 or (array.ndim == 2 and array.shape[1] >= LEAST_PIXELS))):
            kind = "whole numbers" if whole else "numbers"
            found.append(
                f"the samples of {name!r} are {kind} from 0 up to {array.max():g}, as raw pixels are: if the model was "
                "trained on 0 to 1, give --scale 0.00392157 (and --mean, --std)"
            )
    return found


def other_scale(study: Study, golden: Batches | None, tensors: Collection[str]) -> list[str]:
    """Hold what the first layers make of the calibration samples against what they make of the golden set.

    Raises ``InputError`` where the two differ so much that they weren't preprocessed alike.
    """
    from penstock.quantization import probe

    if golden is None or not tensors:
        return []
    sums: dict[str, list[list[float]]] = {name: [[], []] for name in tensors}
    for number, batches in enumerate((study.batches.some(SOME), golden.some(SOME))):

        def visit(name: str, array: np.ndarray, first: int, count: int, place: int = number) -> None:
            sums[name][place].append(float(np.abs(array).mean(dtype=np.float64)) if array.size else 0.0)

        probe.observe(study.model, [*tensors], batches, visit)
    for name, (ours, theirs) in sums.items():
        mine, golds = float(np.mean(ours)), float(np.mean(theirs))
        ratio = mine / golds if golds else (1.0 if mine == 0 else np.inf)
        if ratio >= OTHER_SCALE or ratio <= 1 / OTHER_SCALE:
            what = (
                f"the calibration samples are of another scale than the golden set: the first layer's {name!r} is "
                f"{mine:.4g} in the mean on them and {golds:.4g} on the golden set"
            )
            do = "preprocess both alike ([data] scale, mean, std): pixels from 0 to 255 are no pixels from 0 to 1"
            raise InputError("other-scale", what, do=do)
    return []


def first_layers(study: Study) -> list[str]:
    """Return what the first weighted layers make: those that read an input, directly or moved."""
    reached = set(study.model.graph.inputs)
    found = []
    for node in study.model.graph:
        if not any(value in reached for value in node.inputs if value is not None):
            continue
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            found.append(str(node.outputs[0].name))
        elif node.op_type in ("Add", "Cast", "Div", "Mul", "Pad", "Reshape", "Resize", "Sub", "Transpose", "Unsqueeze"):
            reached.update(node.outputs)
    return found[:4]
