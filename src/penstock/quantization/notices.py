"""Notices: what a user should know of calibration samples before the result is trusted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from penstock import calibration, graph
from penstock.calibration import Batches, size
from penstock.errors import InputError, PenstockError
from penstock.quantization.statistics import Statistics

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

SOME = 32  # samples that tell of which scale they are
PIXELS_REACH = 16  # the brightest of a batch of raw pixels is beyond it, what was scaled to 0 to 1 or by --std isn't
CHANNELS = {1, 3, 4}
LEAST_SPAN = 64  # from the darkest to the brightest pixel of a batch
LEAST_PIXELS = 64  # of an image that is given as a row
APART = 16.0  # times as large: the other group of samples, with nothing between
SMALLER, LARGER = 0.1, 0.02  # of the samples are in each group at least; fewer large ones stand out (:mod:`.outliers`)
LEAST_OF_TWO = 8  # samples
LARGE, SMALL = 8.0, 1 / 32  # times what a normalization remembers
EARLIER = "earlier"  # the kind of a golden set that the user names
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


def of_samples(model: Path, batches: Batches) -> list[str]:
    """Tell what is odd about samples of the user's own: of every method that looks at some."""
    return [*raw_pixels(batches), *alike(batches), *two_scales(batches), *unlike_training(model, batches)]


def raw_pixels(batches: Batches) -> list[str]:
    """Tell of float inputs that hold numbers from 0 to 255, as pixels do before they are scaled.

    Of images also whole numbers below 0, which 127 or so was taken from. Rows of these may be anything.
    """
    first = next(iter(batches), {})
    found = []
    for name, array in first.items():
        if array.dtype.kind != "f" or not array.size:
            continue
        low, high = float(array.min()), float(array.max())
        whole = not np.any(array % 1)
        image = array.ndim == 4 and {array.shape[1], array.shape[-1]} & CHANNELS
        row = array.ndim == 3 or (array.ndim == 2 and array.shape[1] >= LEAST_PIXELS)
        kind = "whole numbers" if whole else "numbers"
        if low >= 0 and PIXELS_REACH < high <= 255 and (image or (whole and row)):
            said = f"{kind} from 0 up to {high:g}, as raw pixels are"
        elif image and whole and -128 <= low < 0 and high > PIXELS_REACH and LEAST_SPAN <= high - low <= 255:
            said = f"{kind} from {low:g} to {high:g}, as raw pixels less their middle are"
        else:
            continue
        found.append(
            f"the samples of {name!r} are {said}: if the model was trained on 0 to 1, give --scale 0.00392157 (and "
            "--mean, --std)"
        )
    return found


def alike(batches: Batches) -> list[str]:
    """Tell where all samples are copies of one."""
    first: dict[str, np.ndarray] = {}
    for batch in batches:
        count = size(batch)
        for name, array in batch.items():
            rows = array if array.ndim and len(array) == count else array[None]
            if not np.array_equal(rows, np.broadcast_to(first.setdefault(name, rows[:1]), rows.shape)):
                return []
    if batches.count < 2 or not first:
        return []
    return [f"all {batches.count} calibration samples are copies of one: they tell no more than that one does"]


def two_scales(batches: Batches) -> list[str]:
    """Tell of inputs whose samples fall into two groups, one many times as large as the other, and none between."""
    found = []
    for name, reached in calibration.reaches(batches).items():
        ends = np.sort(reached[: batches.count].astype(np.float64))
        ends = ends[ends > 0]  # a silent or a black one is of no scale
        if len(ends) < LEAST_OF_TWO:
            continue
        gaps = ends[1:] / ends[:-1]
        place = int(gaps.argmax()) + 1
        if gaps[place - 1] >= APART and min(place / SMALLER, (len(ends) - place) / LARGER) >= len(ends):
            found.append(
                f"the samples of {name!r} are of two scales: {place} reach {ends[place - 1]:.4g} at most, "
                f"{len(ends) - place} reach {ends[place]:.4g} or more, and none lies between; prepare all alike"
            )
    return found


def unlike_training(path: Path, batches: Batches) -> list[str]:
    """Hold what the model's first BatchNormalization reads on the samples against what it remembers of its training.

    By the usual channel. On CIFAR-10, down to its 32 flattest images, four nets saw 1/15 to 1.1 of the deviations that
    they remember, and of noise 2.4; pixels from 0 to 255 gave 9 to 63, and what was divided by 255 twice 1/140 to 1/500
    in three of them and 1/12 in one, which isn't noticed.
    """
    from penstock.quantization import normalizations, probe
    from penstock.quantization.looking import Met

    try:
        found = normalizations.first(path)
        if found is None:
            return []
        model, known = found
        met = Met(known, np.zeros(known.mean.size), np.zeros(known.mean.size))

        def visit(name: str, array: np.ndarray, first: int, count: int) -> None:
            real = array[: max(batches.count - first, 0)] if array.ndim and len(array) == count else array
            if real.ndim >= 2 and real.shape[1] == known.mean.size and real.size:
                met.add(real)

        some = batches.some(SOME)
        probe.observe(model, [known.tensor], some, visit)
    except PenstockError:  # what can't be run is told by the method itself
        return []
    if not met.count or not (np.isfinite(met.total).all() and np.isfinite(met.square).all()):
        return []
    spread, shift = float(np.median(met.spread)), float(np.median(np.abs(met.shift)))
    if spread > LARGE:
        said = f"vary {spread:.3g} times as much as"
    elif spread < SMALL and some.count >= LEAST_OF_TWO:
        said = f"vary {spread:.2g} times as much as"
    elif shift > LARGE:
        said = f"lie {shift:.3g} standard deviations away from"
    else:
        return []
    return [
        f"the calibration samples are of another scale than the data that the model was trained on: on them the values "
        f"of {known.tensor!r} {said} what its BatchNormalization remembers; prepare them as in training (--scale, "
        f"--mean, --std)"
    ]  # fmt: skip


def hold_scale(path: Path, batches: Batches) -> None:
    """Hold what the first layers make of the calibration samples against what they make of the golden set.

    Of a model whose inputs go elsewhere first, the inputs themselves. Raises ``InputError`` where the two differ so
    much that they weren't preprocessed alike.
    """
    from penstock.quantization import probe

    golden = batches.golden
    if golden is None:
        return
    model = graph.load(path)
    floats = [str(value.name) for value in model.graph.inputs if graph.dtype_name(value).startswith("float")]
    tensors = first_layers(model) or floats
    if not tensors or not any(array.any() for batch in golden.some(SOME) for array in batch.values()):
        return  # silence, or black images: of no scale
    sums: dict[str, list[list[float]]] = {name: [[], []] for name in tensors}
    for number, some in enumerate((batches.some(SOME), golden.some(SOME))):

        def visit(name: str, array: np.ndarray, first: int, count: int, place: int = number) -> None:
            sums[name][place].append(float(np.abs(array).mean(dtype=np.float64)) if array.size else 0.0)

        try:
            probe.observe(model, tensors, some, visit)
        except PenstockError as error:  # what can't be run on the user's samples is told by the method itself
            if number == 1 and golden.description.get("kind") == EARLIER:
                what = f"the model can't be run on the earlier golden set: {error.what}"
                raise InputError("bad-golden", what, do="give the golden folder of a build of this model") from error
            return
    for name, (ours, theirs) in sums.items():
        mine, golds = float(np.mean(ours)), float(np.mean(theirs))
        if not (mine and golds):
            continue
        ratio = mine / golds
        if ratio >= OTHER_SCALE or ratio <= 1 / OTHER_SCALE:
            what = (
                f"the calibration samples are of another scale than the golden set: the mean of {name!r} is "
                f"{mine:.4g} on them and {golds:.4g} on the golden set"
            )
            do = "preprocess both alike ([data] scale, mean, std): pixels from 0 to 255 are no pixels from 0 to 1"
            raise InputError("other-scale", what, do=do)


def first_layers(model: ir.Model) -> list[str]:
    """Return what the first weighted layers make: those that read an input, directly or moved."""
    reached = set(model.graph.inputs)
    found = []
    for node in model.graph:
        if not any(value in reached for value in node.inputs if value is not None):
            continue
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            found.append(str(node.outputs[0].name))
        elif node.op_type in ("Add", "Cast", "Div", "Mul", "Pad", "Flatten", "Reshape", "Resize", "Squeeze",
                              "Sub", "Transpose", "Unsqueeze"):  # fmt: skip
            reached.update(node.outputs)
    return found[:4]
