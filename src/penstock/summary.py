"""Read a build's ledger as a table: one row per deployment, with all that was measured of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import cast

from penstock.deployment import Deployment
from penstock.jsonable import Json
from penstock.ledger import Entry
from penstock.record import Record
from penstock.variant import Variant
from penstock.verdict import Verdict


@dataclass(slots=True)
class Row:
    """What is known of one deployment. Times in ms, scores in [0, 1], drops in percentage points (positive: worse)."""

    deployment: Deployment
    size_bytes: int
    verdicts: list[Verdict] = field(default_factory=list)
    score: float | None = None  # on the evaluate role
    score_low: float | None = None
    score_high: float | None = None
    score_samples: int = 0
    difference_pp: tuple[float, float, float] | None = None  # to float32 on the evaluate role, with its interval
    select_score: float | None = None  # on the select role, which the limits look at
    drop_pp: float | None = None
    drop_pp_range: tuple[float, float] | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    throughput: float | None = None  # samples per second
    ratio: tuple[float, float, float] | None = None  # to the bench's baseline
    rounds_ms: tuple[float, ...] = ()
    bench_failure: str = ""

    @property
    def refusals(self) -> list[Verdict]:
        """The verdicts that refuse it."""
        return [verdict for verdict in self.verdicts if not verdict.passed]


def rows(entries: Iterable[Entry]) -> list[Row]:
    """Gather one row per deployment, in the ledger's order."""
    sizes: dict[str, int] = {}
    table: dict[str, Row] = {}
    for entry in entries:
        if isinstance(entry, Variant):
            sizes[entry.name] = entry.size_bytes
        elif isinstance(entry, Deployment):
            table[entry.name] = Row(entry, sizes.get(entry.variant, 0))
        elif isinstance(entry, Verdict) and entry.deployment in table:
            table[entry.deployment].verdicts.append(entry)
        elif isinstance(entry, Record) and entry.subject in table:
            _read(table[entry.subject], entry)
    return list(table.values())


def _number(value: Json) -> float | None:
    return float(value) if isinstance(value, (int, float, str)) else None


def _interval(value: Json, scale: float, names: tuple[str, str, str]) -> tuple[float, float, float] | None:
    if not isinstance(value, dict):
        return None
    found = [_number(value.get(name)) for name in names]
    return cast("tuple[float, float, float]", tuple(v * scale for v in found)) if None not in found else None  # type: ignore[operator]  # None was ruled out


def _read(row: Row, record: Record) -> None:
    got = record.measured
    if record.stage == "evaluate":
        gap = _interval(got.get("difference"), 100.0, ("difference", "low", "high"))
        if record.inputs.get("role") == "evaluate":
            row.score, row.score_low, row.score_high = (_number(got.get(k)) for k in ("score", "low", "high"))
            row.score_samples = int(_number(got.get("samples")) or 0)
            row.difference_pp = gap
        else:
            row.select_score = _number(got.get("score"))
            if gap is not None:
                row.drop_pp, row.drop_pp_range = -gap[0], (-gap[2], -gap[1])
    elif record.stage == "bench":
        row.bench_failure = str(got.get("failure", ""))
        row.p50_ms, row.p95_ms = _number(got.get("p50_ms")), _number(got.get("p95_ms"))
        row.ratio = _interval(got.get("to_baseline"), 1.0, ("ratio", "low", "high"))
        speed = got.get("throughput")
        row.throughput = _number(speed.get("samples_per_s")) if isinstance(speed, dict) else None
        rounds = got.get("rounds_ms")
        row.rounds_ms = tuple(float(cast(float, r)) for r in rounds) if isinstance(rounds, list) else ()
