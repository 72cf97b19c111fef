"""The figures of one deployment, and the ratio of two, each with its interval and its words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from penstock import intervals
from penstock.backends import NodeTime
from penstock.jsonable import Json

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of latencies with its 95 % interval over rounds."""

    ratio: float
    low: float
    high: float
    rounds: int

    @property
    def difference(self) -> bool:
        """Whether a difference was shown: the interval doesn't cover 1."""
        return not intervals.covers_one(self.low, self.high)

    def text(self) -> str:
        """Return ``0.38× (0.37–0.39)``, or "no difference" with the interval, or that the rounds are too few."""
        if math.isinf(self.high):
            return f"{_digits(self.ratio)}× (no interval from {self.rounds} rounds)"
        span = f"{_digits(self.low)}–{_digits(self.high)}"
        return f"{_digits(self.ratio)}× ({span})" if self.difference else f"no difference ({span})"


def _digits(value: float) -> str:
    if value < 0.1:
        return f"{value:.2g}"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def ratio(a_rounds: Sequence[float], b_rounds: Sequence[float], seed: int) -> Ratio:
    """Compare two deployments by the medians of the rounds they shared; a's latency over b's."""
    return Ratio(*intervals.bootstrap_ratio(a_rounds, b_rounds, seed=seed), rounds=len(a_rounds))


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory of one deployment in a process of its own, in MB (10⁶ bytes) of resident memory.

    ``imported_mb``: once the runtime was imported; ``peak_mb``: the most, up to the end of the first run.
    ``reason`` says why there are no figures.
    """

    imported_mb: float | None = None
    loaded_mb: float | None = None
    first_run_mb: float | None = None
    peak_mb: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Throughput:
    """Samples per second at a batch size: the batch over the median of ``count`` calls; or why there is none."""

    batch: int = 0
    samples_per_s: float | None = None
    count: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Timing:
    """What was measured of one deployment. Percentiles are over all samples of all rounds, in ms.

    ``load_ms`` leaves out the import of the runtime; ``first_run_ms`` is the first call after it, before any warm-up.
    ``samples_ns`` holds the raw samples, of shape (rounds, calls). ``to_baseline`` is this latency over the
    baseline's. ``stray_threads``: threads of this session that aren't bound to the pinned CPUs.
    """

    name: str
    p50_ms: float
    p95_ms: float
    p99_ms: float
    min_ms: float
    mean_ms: float
    count: int
    rounds_ms: tuple[float, ...]  # the median of each round
    load_ms: float
    first_run_ms: float
    warmup_calls: int
    steady: bool
    memory: Memory
    throughput: Throughput
    to_baseline: Ratio | None
    actual: Mapping[str, Json]
    stray_threads: int
    samples_ns: np.ndarray = field(repr=False, compare=False)
    nodes: tuple[NodeTime, ...] = ()  # in the order that they ran in, where they were asked for and the runtime tells

    @property
    def peak_rss_mb(self) -> float | None:
        """The peak resident memory in a process of its own, in MB."""
        return self.memory.peak_mb


def summarise(samples_ns: np.ndarray) -> dict[str, float]:
    """Return p50, p95, p99, min and mean in ms. ``samples_ns``: (rounds, calls)."""
    import numpy as np

    p50, p95, p99 = np.percentile(samples_ns, [50, 95, 99]) / 1e6
    low, mean = samples_ns.min() / 1e6, samples_ns.mean() / 1e6
    names = ("p50_ms", "p95_ms", "p99_ms", "min_ms", "mean_ms")
    return {name: float(value) for name, value in zip(names, (p50, p95, p99, low, mean), strict=True)}
