"""Time callables side by side: warm-up until steady, then rounds in which each takes its turn.

In every round each callable runs one burst of calls, in an order that is shuffled anew, so that a slow phase of the
machine meets all of them, and comparing round by round cancels it.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from penstock.errors import PenstockError

if TYPE_CHECKING:
    import numpy as np

    from penstock.backends import Session

Clock = Callable[[], int]
Run = Callable[[], object]
WINDOW = 20  # calls
STEADY = 0.03
MAX_ROUNDS = 1000
PATIENCE = 5  # times the budget, after which even the least number of warm-up calls is given up …
PATIENCE_S = 1.0  # … but not before this
FEWEST_CALLS = 3


@dataclass(frozen=True, slots=True)
class Warmth:
    """How the warm-up of one callable went. ``call_ns``: the median of its last calls."""

    calls: int
    steady: bool
    call_ns: float


@dataclass(frozen=True, slots=True)
class Timed:
    """What the rounds gave: samples in ns, one list per round, per callable; and why a callable dropped out."""

    samples: Mapping[str, list[list[int]]]
    failures: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Calls:
    """Runs of a session on one batch. Of a session in another process the clock stands there, beside the runtime."""

    session: Session
    feeds: Mapping[str, np.ndarray]

    def __call__(self) -> object:
        """Run once."""
        return self.session.run(self.feeds)

    @property
    def is_far(self) -> bool:
        """Whether the session has a clock of its own."""
        return hasattr(self.session, "timed")

    def timed(self, calls: int) -> list[int]:
        """Return what each of so many runs took there, in nanoseconds."""
        found: list[int] = self.session.timed(self.feeds, calls)  # type: ignore[attr-defined]  # is_far has looked
        return found


def reason(error: Exception) -> str:
    """Say in one line why something failed."""
    if isinstance(error, PenstockError):
        return f"{error.what}; {error.do}" if error.do else error.what
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def warm_up(run: Run, *, calls: int, seconds: float, clock: Clock = time.perf_counter_ns) -> Warmth:
    """Call until the median of the last 20 calls is within 3 % of the 20 before, and at least ``calls`` times.

    After ``seconds`` it goes on only to reach ``calls``, after five times that long (and 1 s) it stops anyway: a slow
    model is then reported as not steady. Whatever ``run`` raises goes through.
    """
    limit_s = max(PATIENCE * seconds, PATIENCE_S)
    spent: list[int] = []
    begin = clock()
    while True:
        start = clock()
        run()
        end = clock()
        spent.append(end - start)
        elapsed_s = (end - begin) / 1e9
        enough = len(spent) >= calls
        if enough and _steady(spent):
            return Warmth(len(spent), True, statistics.median(spent[-WINDOW:]))
        if (enough and elapsed_s >= seconds) or (elapsed_s >= limit_s and len(spent) >= FEWEST_CALLS):
            return Warmth(len(spent), False, statistics.median(spent[-WINDOW:]))


def _steady(spent: list[int]) -> bool:
    if len(spent) < 2 * WINDOW:
        return False
    last, before = statistics.median(spent[-WINDOW:]), statistics.median(spent[-2 * WINDOW : -WINDOW])
    return abs(last - before) <= STEADY * before


def interleave(
    runs: Mapping[str, Run],
    call_ns: Mapping[str, float],
    *,
    min_rounds: int,
    calls_per_round: int,
    seconds: float,
    seed: int,
    clock: Clock = time.perf_counter_ns,
    heard: Callable[[int], None] = lambda done: None,
) -> Timed:
    """Run rounds until ``seconds`` per callable are spent, at least ``min_rounds``, at most 1000.

    ``call_ns`` is what one call took lately: a slow callable gets shorter bursts, of one call at least. The first call
    of a burst is not counted: it finds the caches full of another's data. One that raises drops out with its reason,
    and the others go on. ``heard`` is told the number of rounds done.
    """
    samples: dict[str, list[list[int]]] = {name: [] for name in runs}
    failures: dict[str, str] = {}
    order = random.Random(seed)
    budget_ns = seconds * 1e9
    bursts = {
        name: max(1, min(calls_per_round, int(budget_ns / (min_rounds * max(call_ns[name], 1.0))))) for name in runs
    }
    begin = clock()
    for done in range(MAX_ROUNDS):
        alive = sorted(samples)
        if not alive or (done >= min_rounds and clock() - begin >= budget_ns * len(alive)):
            break
        order.shuffle(alive)
        for name in alive:
            try:
                samples[name].append(_burst(runs[name], bursts[name], clock))
            except Exception as error:  # a runtime's own error: reported as a value, the others go on
                failures[name] = f"it failed in round {done + 1}: {reason(error)}"
                del samples[name]
        heard(done + 1)
    return Timed(samples, failures)


def _burst(run: Run, calls: int, clock: Clock) -> list[int]:
    if isinstance(run, Calls) and run.is_far:
        return run.timed(calls + 1)[1:]
    spent: list[int] = []
    with collector_off():
        run()
        for _ in range(calls):
            start = clock()
            run()
            spent.append(clock() - start)
    return spent


@contextmanager
def collector_off() -> Iterator[None]:
    """Keep Python's garbage collector from running, as long as the block lasts."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
