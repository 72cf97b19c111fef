"""The ladder of a build: from eager PyTorch (or the model as it came) to the chosen deployment, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock.timing.ladder import Ladder, ladder

if TYPE_CHECKING:
    from penstock.summary import Row


@dataclass(frozen=True, slots=True)
class _Rung:
    name: str
    p50_ms: float
    rounds_ms: tuple[float, ...]


def chain(rows: Sequence[Row], chosen: str) -> list[Row]:
    """Return the rungs in order: eager, the export, the optimized graph, the int8 model, another runtime, as measured.

    A rung changes one thing at a time where that was measured: first the runtime (eager → ONNX Runtime), then the
    graph, then the precision, then the runtime again if the chosen one is another.
    """
    by_name = {row.deployment.name: row for row in rows if row.rounds_ms}
    if chosen not in by_name:
        return []
    goal = by_name[chosen].deployment
    rungs = [row.deployment.name for row in by_name.values() if row.deployment.role == "baseline"][:1]
    # of each variant and backend the plain deployment, or one with the chosen one's options
    ranked = sorted(by_name.items(), key=lambda item: ("+" not in item[0], item[1].deployment.options == goal.options))
    plain = {(row.deployment.variant, row.deployment.backend): name for name, row in ranked}
    first = "onnxruntime" if ("fp32", "onnxruntime") in plain else goal.backend
    for variant in dict.fromkeys(row.deployment.variant for row in by_name.values()):
        rungs.append(plain.get((variant, first), ""))
        if variant == goal.variant:
            break
    rungs.append(chosen)
    return [by_name[name] for name in dict.fromkeys(rungs) if name in by_name]


def of_build(rows: Sequence[Row], chosen: str, seed: int) -> Ladder:
    """Return the ladder of a build, empty where fewer than two rungs were measured."""
    rungs = [
        _Rung(row.deployment.name, row.p50_ms, row.rounds_ms) for row in chain(rows, chosen) if row.p50_ms is not None
    ]
    return ladder(rungs, [rung.name for rung in rungs], seed=seed)
