"""The tables that build and select print."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from penstock.summary import Row
from penstock.timing.ladder import Ladder

if TYPE_CHECKING:
    from rich.console import Console


def show_rows(console: Console, rows: Sequence[Row], chosen: str) -> None:
    """Print one line per deployment: size, accuracy, difference to float32, latency, ratio, verdict."""
    from rich import box
    from rich.table import Table

    scored = any(row.score is not None for row in rows)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("deployment", no_wrap=True)
    table.add_column("size\nMB", justify="right")
    if scored:
        table.add_column("accuracy %\n(95 % interval)", justify="right")
        table.add_column("to fp32, points\n(95 % interval)", justify="right")
    table.add_column("p50\nms", justify="right")
    table.add_column("ratio to\nbaseline (95 %)", justify="right")
    table.add_column("batched\nper s", justify="right")
    table.add_column("verdict", overflow="fold")
    for row in rows:
        cells = [row.deployment.name, f"{row.size_bytes / 1e6:.2f}" if row.size_bytes else "–"]
        if scored:
            cells += [_score(row), _difference(row)]
        cells += [
            "–" if row.p50_ms is None else f"{row.p50_ms:.3f}",
            _ratio(row),
            "–" if row.throughput is None else f"{row.throughput:,.0f}",
            _verdict(row, chosen),
        ]
        table.add_row(*cells, style="bold green" if row.deployment.name == chosen else None)
    console.print(table)


def _score(row: Row) -> str:
    if row.score is None or row.score_low is None or row.score_high is None:
        return "–"
    return f"{100 * row.score:.2f} ({100 * row.score_low:.2f}–{100 * row.score_high:.2f})"


def _difference(row: Row) -> str:
    if row.difference_pp is None:
        return "–"
    value, low, high = row.difference_pp
    return f"{value:+.2f} ({low:+.2f} to {high:+.2f})"


def _ratio(row: Row) -> str:
    if row.ratio is None:
        return "–"
    value, low, high = row.ratio
    if value == low == high:
        return "1"
    if math.isinf(high):
        return f"{value:.2f} (no interval: too few rounds)"
    if low <= 1.0 <= high:
        return f"no difference ({low:.2f}–{high:.2f})"
    return f"{value:.2f} ({low:.2f}–{high:.2f})"


def _verdict(row: Row, chosen: str) -> str:
    if refused := row.refusals:
        return "refused: " + "; ".join(dict.fromkeys(verdict.reason for verdict in refused))
    if row.deployment.name == chosen:
        return "CHOSEN"
    return {"baseline": "baseline", "oracle": "oracle: agrees", "candidate": "passed"}[row.deployment.role]


def show_ladder(console: Console, ladder: Ladder) -> None:
    """Print the steps from the first rung to the chosen deployment, each with its own factor."""
    if not ladder.steps:
        return
    first = ladder.steps[0]
    console.print(f"ladder    {first.before:<22} {first.before_ms:.3f} ms")
    for step in ladder.steps:
        console.print(f"          → {step.name:<20} {step.p50_ms:.3f} ms   {step.text}")
    console.print(f"          in all {ladder.total_text}")


def result_json(rows: Sequence[Row], chosen: str) -> list[dict[str, object]]:
    """Return the rows for ``--json``: everything measured, without the raw rounds."""
    return [
        {
            "deployment": row.deployment, "size_bytes": row.size_bytes, "chosen": row.deployment.name == chosen,
            "score": row.score, "score_interval": [row.score_low, row.score_high], "score_samples": row.score_samples,
            "difference_points": row.difference_pp, "select_score": row.select_score, "drop_points": row.drop_pp,
            "drop_points_range": row.drop_pp_range, "p50_ms": row.p50_ms, "p95_ms": row.p95_ms, "ratio": row.ratio,
            "throughput_per_s": row.throughput, "verdicts": row.verdicts,
        }
        for row in rows
    ]  # fmt: skip
