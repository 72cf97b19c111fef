"""Verify: hold a deployment's outputs against the golden set, and pass or refuse it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from penstock.metrics import Difference, compare
from penstock.settings import option
from penstock.verdict import Outcome

if TYPE_CHECKING:
    import numpy as np

    from penstock.backends import Session
    from penstock.golden import Golden
    from penstock.jsonable import Json
    from penstock.variant import Precision


@dataclass(frozen=True, slots=True)
class VerifySettings:
    """How far a deployment may be from the source."""

    fp32_relative: float = option(1e-4, "largest relative difference of a float32 deployment", minimum=0.0)
    fp16_relative: float = option(1e-2, "largest relative difference of a float16 deployment", minimum=0.0)
    bf16_relative: float = option(8e-2, "largest relative difference of a bfloat16 deployment", minimum=0.0)
    int8_sqnr_db: float = option(20.0, "least SQNR of a quantized deployment, in dB")
    float_mismatches: float = option(
        0.0, "largest share of unequal integers or booleans, float deployments", minimum=0.0
    )
    int8_mismatches: float = option(0.05, "largest share of unequal integers, quantized deployments", minimum=0.0)
    float_kl: float = option(0.0, "largest KL divergence of class scores, float deployments (0: none)", minimum=0.0)
    int8_kl: float = option(0.0, "largest KL divergence of class scores, quantized deployments (0: none)", minimum=0.0)
    float_flips: float = option(1.0, "largest share of top answers that flip, float deployments", minimum=0.0)
    int8_flips: float = option(1.0, "largest share of top answers that flip, quantized deployments", minimum=0.0)
    micro_steps: int = option(
        4, "tflite-micro: largest difference to ONNX Runtime's integers, in steps of the output's grid", minimum=0
    )
    micro_flips: float = option(
        0.01, "tflite-micro: largest share of top answers that aren't those of ONNX Runtime's integers", minimum=0.0
    )
    noise_factor: float = option(
        4.0,
        "made-up inputs: allow this many times the source's own rounding noise, up to 10 times the limit",
        minimum=0.0,
    )
    allow_fallback: bool = option(
        False, "let pass where something else ran than was asked for: a device, provider, type or threads"
    )
    logits: tuple[str, ...] = option((), "outputs that hold class scores (default: found from labelled data)")
    oracle_seconds: float = option(
        3.0, "time for the reference evaluator, which takes fewer samples instead", minimum=0.0
    )


@dataclass(frozen=True, slots=True)
class Verification:
    """How each output differs, over how many samples, and what the gate says."""

    samples: int
    outputs: Mapping[str, Difference]
    outcome: Outcome
    inputs: Mapping[str, Json]  # what the golden inputs are: real data, or made up
    asked: Mapping[str, Json] = field(default_factory=dict)  # of the deployment, where that is known
    actual: Mapping[str, Json] = field(default_factory=dict)  # what its runtime says that it ran
    steps: int | None = None  # of the outputs' grids from ONNX Runtime's integers, where a runtime rounds its own way
    step_flips: float | None = None  # the share of top answers that aren't those of ONNX Runtime's integers


def verify(
    session: Session, golden: Golden, precision: Precision, settings: VerifySettings, *, seconds: float | None = None,
    seen: Callable[[Sequence[np.ndarray]], None] | None = None,
) -> Verification:  # fmt: skip
    """Run the golden inputs and compare. With ``seconds`` it stops before a run that would exceed them.

    ``seen`` is shown what each run gives. What the session raises on a run becomes a refusal.
    """
    from penstock.errors import PenstockError

    began, runs = time.monotonic(), []
    for feeds in golden.feeds:
        try:
            runs.append(session.run(feeds))
        except PenstockError as error:
            return Verification(0, {}, Outcome(False, error.what), golden.description)
        if len(runs[-1]) != len(golden.output_names):
            what = f"it gives {len(runs[-1])} outputs, the model has {len(golden.output_names)}"
            return Verification(0, {}, Outcome(False, what), golden.description)
        if seen is not None:
            seen(runs[-1])
        done = len(runs)
        if seconds is not None and done < len(golden.real):
            spent = time.monotonic() - began
            if spent + spent / sum(golden.real[:done]) * golden.real[done] > seconds:
                break
    differences = {}
    for position, name in enumerate(golden.output_names):
        got = [real(run[position], golden, i) for i, run in enumerate(runs)]
        want = [real(golden.outputs[i][position], golden, i) for i in range(len(runs))]
        found = _compare_runs(got, want, logits=name in (settings.logits or golden.logits))
        if golden.description.get("whole") and found.worst_sample is not None and want[0].ndim:
            found = replace(found, worst_sample=found.worst_sample // max(len(want[0]), 1))
        differences[name] = found
    return Verification(
        sum(golden.real[: len(runs)]),
        differences,
        judge(differences, precision, settings, golden.noise),
        golden.description,
    )


def real(output: np.ndarray, golden: Golden, run: int) -> np.ndarray:
    """Leave out the rows that only fill up a fixed batch; an output without a batch axis stays whole."""
    if golden.description.get("whole"):
        return output
    batch = next((len(array) for array in golden.feeds[run].values() if array.ndim), 0)
    return output[: golden.real[run]] if output.ndim and len(output) == batch else output


def _compare_runs(got: list[np.ndarray], want: list[np.ndarray], *, logits: bool) -> Difference:
    """Compare all runs of one output as one array where they stack, else one by one, keeping the worst."""
    import numpy as np

    for ours, theirs in zip(got, want, strict=True):
        if ours.shape != theirs.shape:
            return compare(ours, theirs, logits=logits)
    if want[0].ndim and all(a.shape[1:] == want[0].shape[1:] for a in want):
        return compare(np.concatenate(got), np.concatenate(want), logits=logits)
    if not want[0].ndim:
        return compare(np.stack(got), np.stack(want), logits=False)
    found = [compare(a, b, logits=logits) for a, b in zip(got, want, strict=True)]
    worst = max(found, key=lambda d: (d.nonfinite, d.relative or 0.0, d.mismatches or 0.0))
    levels = [d.sqnr_db for d in found if d.sqnr_db is not None]
    # the sample is one of a run of its own here, so its number would mislead
    return replace(worst, sqnr_db=min(levels) if levels else worst.sqnr_db, worst_sample=None)


def judge(
    differences: Mapping[str, Difference],
    precision: Precision,
    settings: VerifySettings,
    noise: Mapping[str, float] | None = None,
) -> Outcome:
    """Apply the thresholds of a precision to every output.

    Where inputs were made up, the source may be ill-conditioned on them: ``noise`` is how far an output moves when the
    inputs move by one unit in the last place, and no float runtime can be expected to stay much closer than that.
    """
    quantized = precision in ("int8", "int4", "mixed")
    kl, flips = (
        (settings.int8_kl, settings.int8_flips) if quantized else (settings.float_kl, settings.float_flips)
    )  # fmt: skip
    for name, found in differences.items():
        where = f"output {name!r}"
        if found.worst_sample is not None:
            where += f", worst at sample {found.worst_sample}"
        if found.reason and found.max_abs is None:
            return Outcome(False, f"{found.reason} ({where})")
        if found.nonfinite:
            return Outcome(False, f"NaN or infinity where the source has none, or the other way round ({where})")
        if found.relative is None or found.sqnr_db is None:
            limit = settings.int8_mismatches if quantized else settings.float_mismatches
            if (found.mismatches or 0.0) > limit:
                return Outcome(
                    False, f"{found.mismatches:.2%} of the values differ, the limit is {limit:.2%} ({where})"
                )
            continue
        if quantized:
            if found.sqnr_db < settings.int8_sqnr_db:
                told = f"SQNR {found.sqnr_db:.1f} dB, the limit is {settings.int8_sqnr_db:g} dB"
                return Outcome(False, f"{told} ({where})")
            if told := _answers(found, kl, flips):
                return Outcome(False, f"{told} ({where})")
            continue
        halves = {"fp16": settings.fp16_relative, "bf16": settings.bf16_relative}  # whose bits differ by three
        limit = halves.get(precision, settings.fp32_relative)
        limit = max(limit, min(settings.noise_factor * (noise or {}).get(name, 0.0), 10.0 * limit))
        if not found.relative <= limit:
            return Outcome(False, f"relative difference {found.relative:.2g}, the limit is {limit:.2g} ({where})")
        if told := _answers(found, kl, flips):
            return Outcome(False, f"{told} ({where})")
    if (kl or flips < 1) and all(found.top1_agreement is None for found in differences.values()):
        what = "no output is known to hold class scores, and the limits of KL and flips are for those: name it with"
        return Outcome(False, f"{what} --logits")
    return Outcome(True)


def _answers(found: Difference, kl: float, flips: float) -> str:
    """Say what is beyond the limits of class scores (a ``kl`` of 0 is none), "" where nothing is."""
    if kl and found.kl is not None and not found.kl <= kl:
        return f"KL divergence {found.kl:.2g}, the limit is {kl:g}"
    if found.top1_agreement is not None and 1 - found.top1_agreement > flips + 1e-12:
        return f"{1 - found.top1_agreement:.2%} of the top answers flip, the limit is {flips:.2%}"
    return ""
