"""Select: choose a deployment by one objective under the user's limits; say of every other one why not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from penstock.settings import option
from penstock.summary import Row
from penstock.verdict import Outcome, Verdict

MEASURED = ("load", "verify", "fallback", "evaluate")  # gates before this one: what they refused isn't judged


@dataclass(frozen=True, slots=True)
class SelectSettings:
    """What is wanted, and what is not to be exceeded."""

    objective: str = option(
        "latency", "what the best is best at", choices=("latency", "throughput", "size", "accuracy")
    )
    max_drop: float | None = option(None, "accuracy budget: largest drop to float32, in percentage points", minimum=0.0)
    max_latency_ms: float | None = option(None, "largest median latency at batch 1, in ms", minimum=0.0)
    max_size_mb: float | None = option(None, "largest model on disk, in MB (10⁶ bytes)", minimum=0.0)


@dataclass(frozen=True, slots=True)
class Selection:
    """The chosen deployment's name ("" if none fits), the verdicts of the limits, and the nearest miss."""

    chosen: str
    verdicts: tuple[Verdict, ...]
    nearest_miss: str


def select(rows: Sequence[Row], settings: SelectSettings, seed: int = 0) -> Selection:
    """Judge every candidate by the limits and choose the best of those that pass all gates."""
    verdicts: list[Verdict] = []
    fitting: list[Row] = []
    overshoots: list[tuple[float, str]] = []
    for row in rows:
        if row.deployment.role != "candidate":
            continue
        name = row.deployment.name
        if refused := [v for v in row.verdicts if not v.passed and v.gate in MEASURED]:
            overshoots.append((math.inf, f"{name}: {refused[0].reason}"))
            continue
        found = [*_limits(row, settings), *_speed(row, rows, settings, seed)]
        verdicts += [Verdict(gate, name, outcome) for gate, outcome, _ in found]
        failed = [(over, outcome.reason) for _, outcome, over in found if not outcome.passed]
        if failed:
            worst = max(failed)
            overshoots.append((worst[0], f"{name}: {'; '.join(reason for _, reason in failed)}"))
        else:
            fitting.append(row)
    if not fitting:
        return Selection("", tuple(verdicts), min(overshoots, default=(0.0, "there was no candidate at all"))[1])
    best = min(fitting, key=lambda row: (*_rank(row, settings.objective), row.deployment.name))
    return Selection(best.deployment.name, tuple(verdicts), "")


def _rank(row: Row, objective: str) -> tuple[float, float]:
    latency = row.p50_ms if row.p50_ms is not None else math.inf
    if objective == "throughput":
        # without a throughput of its own (fixed batch) a deployment does one batch per latency
        return -(row.throughput or (1e3 / latency if latency else 0.0)), latency
    if objective == "size":
        return row.size_bytes, latency
    if objective == "accuracy":
        return -(row.select_score if row.select_score is not None else -math.inf), latency
    return latency, row.size_bytes


def _limits(row: Row, settings: SelectSettings) -> list[tuple[str, Outcome, float]]:
    """Return (gate, outcome, how far beyond the limit as a share of it) for every limit that was set."""
    found = []
    if row.bench_failure or row.p50_ms is None:
        told = f"could not be measured: {row.bench_failure or 'no latency'}"
        return [("bench", Outcome(False, told), math.inf)]
    if settings.max_drop is not None:
        drop = row.drop_pp
        if row.deployment.precision == "fp32" and drop is None and row.select_score is not None:
            drop = 0.0  # the float baseline itself
        if drop is None:
            found.append(("accuracy", Outcome(False, "its accuracy was not measured"), math.inf))
        else:
            over = (drop - settings.max_drop) / max(settings.max_drop, 0.1)
            span = f" ({row.drop_pp_range[0]:+.2f} to {row.drop_pp_range[1]:+.2f})" if row.drop_pp_range else ""
            told = f"outside the accuracy budget: drops {drop:.2f} points{span}, the limit is {settings.max_drop:g}"
            found.append(("accuracy", Outcome(True) if drop <= settings.max_drop else Outcome(False, told), over))
    if settings.max_latency_ms is not None:
        over = row.p50_ms / settings.max_latency_ms - 1.0 if settings.max_latency_ms else math.inf
        told = f"too slow: {row.p50_ms:.3g} ms, the limit is {settings.max_latency_ms:g} ms"
        found.append(("latency", Outcome(True) if over <= 0 else Outcome(False, told), over))
    if settings.max_size_mb is not None:
        size = row.size_bytes / 1e6
        over = size / settings.max_size_mb - 1.0 if settings.max_size_mb else math.inf
        told = f"too large: {size:.3g} MB, the limit is {settings.max_size_mb:g} MB"
        found.append(("size", Outcome(True) if over <= 0 else Outcome(False, told), over))
    return found


def _speed(row: Row, rows: Sequence[Row], settings: SelectSettings, seed: int) -> list[tuple[str, Outcome, float]]:
    """Refuse a quantized deployment that isn't faster than a float one of the same runtime, where speed is wanted."""
    if settings.objective != "latency" or row.deployment.precision == "fp32" or not row.rounds_ms:
        return []
    from penstock.timing.figures import ratio

    floats = [
        other
        for other in rows
        if other.deployment.precision == "fp32" and other.deployment.backend == row.deployment.backend
        and len(other.rounds_ms) == len(row.rounds_ms)
    ]  # fmt: skip
    if not floats:
        return []
    fastest = min(floats, key=lambda other: other.p50_ms or math.inf)
    found = ratio(row.rounds_ms, fastest.rounds_ms, seed)
    if found.difference and found.ratio > 1.0:
        told = f"slower than the float model: {found.text()} of {fastest.deployment.name}"
        return [("speed", Outcome(False, told), found.ratio - 1.0)]
    return [("speed", Outcome(True), 0.0)]
