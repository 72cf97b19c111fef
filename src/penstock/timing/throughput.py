"""Samples per second at a larger batch, in rounds as for latency, one call a round."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from penstock.timing.figures import Throughput
from penstock.timing.rounds import Clock, Run, interleave, reason, warm_up

MIN_ROUNDS = 10
FEWEST_ROUNDS = 3  # where one call takes longer than its share of the budget
WARMUP_CALLS = 3


def throughput(
    runs: Mapping[str, Run], batch: int, *, seconds: float, seed: int, clock: Clock
) -> dict[str, Throughput]:  # fmt: skip
    """Time each callable, one call being ``batch`` samples, for ``seconds`` each; one that raises gets its reason."""
    found: dict[str, Throughput] = {}
    call_ns: dict[str, float] = {}
    for name, run in runs.items():
        try:
            call_ns[name] = warm_up(run, calls=WARMUP_CALLS, seconds=seconds / 4, clock=clock).call_ns
        except Exception as error:  # a runtime that can't take the batch: its answer is a value
            found[name] = Throughput(batch, reason=f"batch {batch} failed: {reason(error)}")
    slowest_s = max(call_ns.values(), default=0.0) / 1e9
    affordable = int(4 * seconds / slowest_s) if slowest_s > 0 else MIN_ROUNDS
    timed = interleave(
        {name: runs[name] for name in call_ns},
        call_ns,
        min_rounds=max(FEWEST_ROUNDS, min(MIN_ROUNDS, affordable)),
        calls_per_round=1,
        seconds=seconds,
        seed=seed,
        clock=clock,
    )
    for name, text in timed.failures.items():
        found[name] = Throughput(batch, reason=f"batch {batch} failed: {text}")
    for name, rounds in timed.samples.items():
        spent = [call for burst in rounds for call in burst]
        found[name] = Throughput(batch, batch / max(statistics.median(spent), 1) * 1e9, len(spent))
    return found
