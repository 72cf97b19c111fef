"""Sensitivity: what it does to the model's output when one layer alone is quantized, and which tensors lose most.

A layer's effect is measured: the model is made with that layer's integers and no others, and run beside the float one.
A tensor's own error on its grid follows from its histogram.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock import metrics, store
from penstock.calibration import Batches
from penstock.quantization import probe
from penstock.quantization.grid import Grid
from penstock.quantization.statistics import Statistics

if TYPE_CHECKING:
    import onnx_ir as ir

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
    outputs_db: tuple[float, ...] = ()  # of each output of floats


@dataclass(frozen=True, slots=True)
class TensorError:
    """The error of a tensor on its grid, over all values that were seen: signal to noise in dB."""

    tensor: str
    sqnr_db: float
    clipped: float


def layers(
    study: Study,
    choice: Choice,
    *,
    seconds: float = float("inf"),
    samples: Batches | None = None,
    wanted: list[Array] | None = None,
    done: Callable[[int, int], None] | None = None,
) -> tuple[list[LayerEffect], list[str]]:
    """Measure each layer, the most sensitive first; those that weren't reached in ``seconds`` are the second list."""
    plain = replace(choice, correct_bias="none", rounding="nearest")
    names = [layer.node for layer in study.placed(plain).integers]
    ops = {str(node.name): node.op_type for node in study.model.graph}
    samples = samples or (study.cleaned or study.batches).some(SAMPLES)
    wanted = outputs(study.model, samples) if wanted is None else wanted
    found: list[LayerEffect] = []
    end = time.monotonic() + seconds
    for number, name in enumerate(names):
        if time.monotonic() > end:
            return ranked(found), names[number:]
        made = study.quantized(replace(plain, only=(name,))).model
        found.append(effect(name, ops[name], outputs(made, samples), wanted, samples.count))
        if done is not None:
            done(number + 1, len(names))
    return ranked(found), []


def whole(study: Study, choice: Choice, samples: Batches, wanted: list[Array]) -> float:
    """Return the signal to noise at the output in dB with all layers quantized, their biases corrected as chosen."""
    made = study.quantized(replace(choice, rounding="nearest")).model
    return effect("", "", outputs(made, samples), wanted, samples.count).sqnr_db


def ranked(found: list[LayerEffect]) -> list[LayerEffect]:
    """Sort by the error at the output, the largest first."""
    return sorted(found, key=lambda one: (one.sqnr_db, one.node))


def effect(node: str, op: str, got: list[Array], want: list[Array], samples: int) -> LayerEffect:
    """Compare outputs; of several the worst figure counts."""
    held = [
        metrics.compare(a, b, logits=b.ndim == 2 and b.shape[1] > 1) for a, b in zip(got, want, strict=True)
        if b.dtype.kind == "f"
    ]  # fmt: skip
    kls = [one.kl for one in held if one.kl is not None]
    agreements = [one.top1_agreement for one in held if one.top1_agreement is not None]
    levels = tuple(float("inf") if one.sqnr_db is None else one.sqnr_db for one in held)
    return LayerEffect(
        node, op, min(levels, default=float("inf")),
        min((one.cosine for one in held if one.cosine is not None), default=1.0),
        max(kls, default=None), min(agreements, default=None), samples, levels,
    )  # fmt: skip


def outputs(model: ir.Model, samples: Batches) -> list[Array]:
    """Run a model and return its outputs over all samples, batches behind one another."""
    with store.scratch() as work:
        session = probe.opened(model.clone(), work)
        try:
            made = [session.run(batch) for batch in samples]
        finally:
            session.close()
    return [
        np.concatenate(parts) if parts[0].ndim and len({part.shape[1:] for part in parts}) == 1
        else np.concatenate([np.asarray(part).reshape(-1) for part in parts])
        for parts in zip(*made, strict=True)
    ]  # fmt: skip


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
        if signal > 0 and noise > 0:
            found.append(TensorError(name, 10 * float(np.log10(signal / noise)), clipped(known, grid)))
    return sorted(found, key=lambda one: (one.sqnr_db, one.tensor))
