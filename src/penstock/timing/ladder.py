"""The ladder: from the slowest way to run a model to the chosen one, each step with its own factor."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from penstock.timing.figures import Ratio, ratio


class Rung(Protocol):
    """What a ladder needs of a timing: a name, the median in ms, and the median of each interleaved round in ms."""

    @property
    def name(self) -> str:
        """The deployment's name."""

    @property
    def p50_ms(self) -> float:
        """The median over all samples, in ms."""

    @property
    def rounds_ms(self) -> tuple[float, ...]:
        """The median of each round, in ms."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step: ``gain`` is how many times faster ``name`` is than ``before``, the step under it."""

    before: str
    name: str
    before_ms: float
    p50_ms: float
    gain: Ratio
    text: str


@dataclass(frozen=True, slots=True)
class Ladder:
    """The steps in order and the whole: ``total`` is the first's latency over the last's, the product of the gains.

    ``missing`` names what was asked for and not measured; the step over it leads from its neighbour.
    """

    steps: tuple[Step, ...] = ()
    total: Ratio | None = None
    total_text: str = ""
    missing: tuple[str, ...] = ()


def ladder(timings: Sequence[Rung], chain: Sequence[str], *, seed: int = 0) -> Ladder:
    """Build the ladder of ``chain``, names of deployments that were timed in the same rounds, slowest first."""
    by_name = {timing.name: timing for timing in timings}
    present = [by_name[name] for name in chain if name in by_name]
    missing = tuple(name for name in chain if name not in by_name)
    steps = []
    for before, timing in itertools.pairwise(present):
        gain = ratio(before.rounds_ms, timing.rounds_ms, seed)
        steps.append(Step(before.name, timing.name, before.p50_ms, timing.p50_ms, gain, gain.text()))
    total = ratio(present[0].rounds_ms, present[-1].rounds_ms, seed) if steps else None
    return Ladder(tuple(steps), total, total.text() if total else "", missing)
