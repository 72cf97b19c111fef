"""Synthetic samples: where there is no data, inputs on which a model's BatchNormalizations see what they remember.

1. Inputs are drawn as textures (:mod:`.textures`) whose gains, offsets and colours are fitted so that the mean and the
   variance of what every BatchNormalization reads are those that it holds (:mod:`.fitting`).
2. They are bred (:mod:`.breeding`) until the last ones spread as far as they remember, or the work is at its bound.

The idea of meeting these statistics is that of ZeroQ (Cai et al., arXiv 2001.00281), which has gradients to do so.
Every figure comes out of seeds and a number of runs that depends on the model alone, not on the time they take.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.errors import PenstockError
from penstock.quantization.breeding import children
from penstock.quantization.fitting import FORMS, fit
from penstock.quantization.looking import Distance, Look, Outputs, looking
from penstock.quantization.normalizations import Normalizations
from penstock.quantization.textures import Texture, drawn

if TYPE_CHECKING:
    from penstock.jsonable import Json

    Array = np.ndarray[Any, np.dtype[Any]]
    Rows = Callable[[int, int], Mapping[str, Array]]

HEADROOM = 1.1  # by which ranges of made-up samples are widened: real ones reach further
FIT_SAMPLES, FIT_STEPS = 32, 8
GENERATIONS = 48
CHECKED = 4  # generations from one look at the statistics to the next
WORK = 1e12  # multiply-accumulates that all runs may take together, about
BYTE = 25  # multiply-accumulates that a byte of what a run returns is worth, in time
UNKNOWN_MACS = 1e9  # of a sample, where the model's cost isn't known
HELD = 0.1  # how strongly gains and offsets are held where they begin, against what no normalization tells of them
WEAK = 0.02  # the same for colour and noise
NEARER = 0.75  # of the squared distance of random inputs: what doesn't come nearer isn't worth its name
NOT_NEARER = "no made-up inputs were found that meet the statistics clearly better than random ones"
SPREAD = 1.0  # remembered deviations in the last normalizations: breeding ends there


@dataclass(frozen=True, slots=True)
class Part:
    """One input to fit: its name, the shape of a sample, the dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Samples:
    """Arrays by input for calibration and for the golden set, and how near they come to the statistics."""

    calibrate: Mapping[str, Array]
    golden: Mapping[str, Array]
    facts: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class Asked:
    """What samples are wanted: how many, from which seed; ``base`` gives the inputs that aren't fitted."""

    parts: Sequence[Part]
    base: Rows
    calibrate: int
    golden: int
    batch: int | None  # where the model fixes it
    mixed: bool = False  # whether there are other inputs, which ``base`` alone gives
    macs: float = UNKNOWN_MACS  # of a sample
    seed: int = 0


def make(found: Normalizations, asked: Asked) -> Samples | str:
    """Make the samples, or say why none can be made."""
    try:
        with looking(found, asked.batch) as look:
            return _made(look, asked)
    except PenstockError as error:  # a shape that the model refuses, a model that the runtime does
        return f"the statistics could not be met: {error.what}"


def _made(look: Look, asked: Asked) -> Samples | str:
    def rows(arrays: Mapping[str, Array]) -> Rows:
        others = asked.base if asked.mixed else lambda start, stop: {}
        return lambda start, stop: {**others(start, stop), **_cut(arrays, start, stop, asked.batch)}

    look.measure(asked.base, _whole(FIT_SAMPLES, asked.batch))
    work = asked.macs + BYTE * look.held
    few = _whole(int(np.clip(WORK / 4 / (work * _runs(asked)), 4, FIT_SAMPLES)), asked.batch)
    before, _ = look.at(asked.base, min(few, asked.calibrate))
    textures = _drawn(asked, few, asked.seed)

    def residuals(parameters: Array) -> Array:
        return look.at(rows(_arrays(asked, textures, parameters)), few)[0].residuals

    starts = [np.concatenate([one.start(*form) for one in textures]) for form in FORMS]
    weak = np.concatenate([[*[HELD] * (one.parameters - 2), WEAK, WEAK] for one in textures])
    parameters = fit(residuals, starts, weak, FIT_STEPS)
    fitted, _ = look.at(rows(_arrays(asked, textures, parameters)), few)
    if not (fitted.finite and before.finite):
        return "the model makes NaN or infinity of made-up inputs"
    if not _nearer(fitted, before):
        return NOT_NEARER
    calibrate = _arrays(asked, _drawn(asked, _whole(asked.calibrate, asked.batch), asked.seed + 1), parameters)
    golden = _arrays(asked, _drawn(asked, _whole(asked.golden, asked.batch), asked.seed + 2), parameters)
    calibrate, bred, after = _bred(look, asked, calibrate, rows, [one.axis for one in textures])
    if not (after.finite and _nearer(after, before)):
        return NOT_NEARER
    facts: dict[str, Json] = {
        "normalizations": len(look.found.remembered), "left_out": [*look.found.reasons],
        "fitted_inputs": [part.name for part in asked.parts], "parameters": len(parameters),
        "fitted_on": few, "generations": bred,
        "random": _told(before), "fitted": _told(fitted), "made": _told(after),
    }  # fmt: skip
    return Samples(calibrate, golden, facts)


def _bred(
    look: Look, asked: Asked, arrays: dict[str, Array], rows: Callable[[Mapping[str, Array]], Rows], axes: list[int]
) -> tuple[dict[str, Array], int, Distance]:
    """Breed the samples; return them, after how many generations, and their distance."""
    count, random = asked.calibrate, np.random.RandomState(asked.seed + 3)
    most = int(np.clip(WORK / 2 / ((asked.macs + BYTE * look.held) * count), 0, GENERATIONS))
    distance, answers = look.at(rows(arrays), count)
    usual = Outputs()
    usual.settle(answers)
    best = usual.energy(answers) if answers else np.zeros(0)
    done = 0
    while answers and done < most and distance.deep_spread < SPREAD:
        others = {part.name: children(arrays[part.name], axis, random)
                  for part, axis in zip(asked.parts, axes, strict=True)}  # fmt: skip
        _, answers = look.at(rows(others), count)
        energy = usual.energy(answers)
        better = np.flatnonzero(energy > best)
        best[better] = energy[better]
        for name, array in others.items():
            arrays[name][better] = array[better]
        done += 1
        if done % CHECKED == 0 or done == most:
            distance, _ = look.at(rows(arrays), count)
    return arrays, done, distance


def _nearer(one: Distance, other: Distance) -> bool:
    return bool(np.square(one.residuals).sum() < NEARER * np.square(other.residuals).sum())


def _runs(asked: Asked) -> int:
    """Return how often the fit runs its samples, at most about."""
    return FIT_STEPS * (20 * len(asked.parts) + 1)


def _whole(count: int, batch: int | None) -> int:
    return count if batch is None else -(-count // batch) * batch


def _drawn(asked: Asked, count: int, seed: int) -> list[Texture]:
    return [drawn(count, part.shape, seed * 1009 % (2**31) + number) for number, part in enumerate(asked.parts)]


def _arrays(asked: Asked, textures: Sequence[Texture], parameters: Array) -> dict[str, Array]:
    found, start = {}, 0
    for part, one in zip(asked.parts, textures, strict=True):
        found[part.name] = one.made(parameters[start : start + one.parameters]).astype(part.dtype)
        start += one.parameters
    return found


def _cut(arrays: Mapping[str, Array], start: int, stop: int, batch: int | None) -> dict[str, Array]:
    return {name: array[start : start + batch if batch else stop] for name, array in arrays.items()}


def _told(distance: Distance) -> Json:
    return {"mean_off": distance.shift, "deviation_off": distance.spread}
