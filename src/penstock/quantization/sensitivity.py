"""Sensitivity: what it does to the model's output when one layer alone is quantized, and which tensors lose most.

A layer's effect is measured: the model is made with that layer's integers and no others, and run beside the float one
(:mod:`.beside`).
A tensor's own error on its grid follows from its histogram.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.quantization import beside
from penstock.quantization.beside import Beside
from penstock.quantization.grid import Grid
from penstock.quantization.statistics import Statistics

if TYPE_CHECKING:
    from penstock.quantization.study import Choice, Study

    Array = np.ndarray[Any, np.dtype[Any]]

SAMPLES = 64  # that a layer's effect is measured on


@dataclass(frozen=True, slots=True)
class LayerEffect:
    """How the output differs where one layer alone is quantized; the worst of several outputs. ``kl`` in nats."""

    node: str
    op: str
    sqnr_db: float
    cosine: float
    kl: float | None
    top1_agreement: float | None
    samples: int
    outputs_db: tuple[float, ...] = ()  # of each result


@dataclass(frozen=True, slots=True)
class TensorError:
    """The error of a tensor on its grid, over all values that were seen: signal to noise in dB, and the cosine."""

    tensor: str
    sqnr_db: float
    cosine: float
    clipped: float


def layers(
    study: Study,
    choice: Choice,
    *,
    seconds: float = float("inf"),
    held: Beside | None = None,
    done: Callable[[int, int], None] | None = None,
) -> tuple[list[LayerEffect], list[str]]:
    """Measure each layer, the most sensitive first; those that weren't reached in ``seconds`` are the second list."""
    plain = replace(choice, correct_bias="none", rounding="nearest")
    names = [layer.node for layer in study.placed(plain).integers]
    ops = {str(node.name): node.op_type for node in study.model.graph}
    found: list[LayerEffect] = []
    end = time.monotonic() + seconds
    with contextlib.ExitStack() as stack:
        if held is None:
            samples = (study.cleaned or study.batches).some(SAMPLES)
            held = stack.enter_context(beside.opened(study.model, samples))
        for number, name in enumerate(names):
            if time.monotonic() > end:
                return ranked(found), names[number:]
            seen = held.effect(study.quantized(replace(plain, only=(name,))).model)
            levels = seen.sqnr_db, seen.cosine, seen.kl, seen.top1_agreement
            found.append(LayerEffect(name, ops[name], *levels, held.samples.count, seen.levels))
            if done is not None:
                done(number + 1, len(names))
    return ranked(found), []


def whole(study: Study, choice: Choice, held: Beside) -> float:
    """Return the signal to noise at the output in dB with all layers quantized, their biases corrected as chosen."""
    return held.effect(study.quantized(replace(choice, rounding="nearest")).model).sqnr_db


def ranked(found: list[LayerEffect]) -> list[LayerEffect]:
    """Sort by the error at the output, the largest first."""
    return sorted(found, key=lambda one: (one.sqnr_db, one.node))


def tensors(grids: Mapping[str, Grid], seen: Mapping[str, Statistics]) -> list[TensorError]:
    """Return the error of each tensor on its grid, the largest first; those without a histogram aren't told."""
    from penstock.quantization.account import clipped

    found = []
    for name, grid in grids.items():
        known = seen.get(name)
        if known is None or not known.wants_histogram:
            continue
        values, counts = known.histogram.bins()
        if not len(values):
            continue
        step = float(grid.scale.flat[0])
        inside = np.clip(values, grid.bottom, grid.top)
        small = np.abs(inside) < step / 2
        error = np.where(small, np.square(values), np.square(values - inside) + step**2 / 12)
        noise, signal = float((error * counts).sum()), float((np.square(values) * counts).sum())
        # what rounding adds is independent of the value, but of values that become 0
        kept = np.where(small, 0.0, np.square(inside) + step**2 / 12)
        along = float((np.where(small, 0.0, values * inside) * counts).sum())
        length = float(np.sqrt(signal * (kept * counts).sum()))
        if signal > 0 and noise > 0:
            cosine = along / length if length else 0.0
            found.append(TensorError(name, 10 * float(np.log10(signal / noise)), cosine, clipped(known, grid)))
    return sorted(found, key=lambda one: (one.sqnr_db, one.tensor))
