"""The tables of the optimizers' benchmark: nodes, failures, times, and the misses with their reasons."""

from __future__ import annotations

import datetime as dt
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock import machine
from penstock.intervals import bootstrap_median

if TYPE_CHECKING:
    from optimizers import Row

OWN, BASE = "penstock", "onnxsim"
Rows = Mapping[str, "Row"]


def line(name: str, row: Row) -> str:
    """Show one model in one line, while the benchmark runs."""
    shown = []
    for tool, one in row.results.items():
        mark = "!" if one.problem else "*" if one.left else ""
        shown.append(f"{tool} {one.nodes or '–'}{mark} {_ms(row.seconds.get(tool))}")
    return f"{name:28s} {row.nodes:5d} → " + "  ".join(shown) + ("" if row.idempotent else "  NOT IDEMPOTENT")


def _ms(seconds: Sequence[float] | None) -> str:
    return f"({1e3 * statistics.median(seconds):,.0f} ms)" if seconds else ""


def markdown(models: Rows, tools: Sequence[str], reasons: Mapping[str, str]) -> str:
    """Return all tables."""
    parts = [
        _taken(models),
        _nodes(models, tools),
        _summary(models, tools),
        _wrong(models, tools),
        _lost(models, reasons),
    ]
    return "\n\n".join(part for part in parts if part)


def _taken(models: Rows) -> str:
    rounds = max((len(s) for row in models.values() for s in row.seconds.values()), default=0)
    cores = machine.describe().get("cores_allowed", "?")
    return (f"Taken on {today()}, {cores} cores shared with other work; {len(models)} models, up to {rounds} "
            "interleaved rounds.")  # fmt: skip


def _nodes(models: Rows, tools: Sequence[str]) -> str:
    rows = [["model", "opset", "before", *tools, "best peer"]]
    for name, row in models.items():
        cells = [_cell(row, tool) for tool in tools]
        rows.append([name, str(row.opset), str(row.nodes), *cells, str(row.best_peer() or "–")])
    return table("Nodes", rows) + (
        "\n\n! failed, can't be loaded, or computes something else; * left standard ONNX, the opset or the inputs, and "
        "doesn't compete. Bodies and inlined functions count, Constants don't."
    )


def _cell(row: Row, tool: str) -> str:
    one = row.results.get(tool)
    if one is None:
        return ""
    own = f"**{one.nodes}**" if tool == OWN else str(one.nodes)
    return "!" if one.problem else f"{one.nodes}*" if one.left else own


def _summary(models: Rows, tools: Sequence[str]) -> str:
    rows = [["tool", "wrong or failed", "doesn't compete", "time to onnxsim's (median, 95 %)", "slowest (s)",
             "whole process to onnxsim's"]]  # fmt: skip
    for tool in tools:
        results = [row.results[tool] for row in models.values() if tool in row.results]
        slowest = max((statistics.median(row.seconds[tool]) for row in models.values() if row.seconds.get(tool)),
                      default=math.nan)  # fmt: skip
        rows.append([
            tool, str(sum(bool(one.problem) for one in results)),
            str(sum(bool(one.left) and not one.problem for one in results)),
            interval([ratio(row.seconds, tool) for row in models.values()]), f"{slowest:.2f}",
            interval([ratio(row.process_seconds, tool) for row in models.values()]),
        ])  # fmt: skip
    own = [row for row in models.values() if OWN in row.results]
    same = [row for row in own if (best := row.best_peer()) is not None and row.results[OWN].nodes <= best]
    judged = [row for row in own if row.best_peer() is not None]
    differing = [row for row in judged if len({o.nodes for t, o in row.results.items() if t != OWN and o.competes}) > 1]
    fewer = [row for row in differing if row.results[OWN].nodes < (row.best_peer() or 0)]
    worst = max((row.results[OWN].worst for row in own), default=0.0)
    told = [
        f"Penstock has no more nodes than the best competing peer on {len(same)} of {len(judged)} models, and fewer on "
        f"{len(fewer)} of the {len(differing)} on which the peers differ among themselves.",
        f"Optimizing twice gives the same bytes on {sum(bool(row.idempotent) for row in own)} of {len(own)}. "
        f"The largest relative difference of Penstock's results is {worst:.1e}.",
    ]  # fmt: skip
    return table("Tools", rows) + "\n\n" + "\n".join(told)


def ratio(seconds: Mapping[str, Sequence[float]], tool: str) -> float | None:
    """Return the median over rounds of a tool's time to onnxsim's in the same round."""
    pairs = [a / b for a, b in zip(seconds.get(tool, ()), seconds.get(BASE, ()), strict=False) if a == a and b == b]
    return statistics.median(pairs) if pairs else None


def interval(ratios: Sequence[float | None]) -> str:
    """Return the median of models' ratios with its 95 % interval."""
    known = [one for one in ratios if one is not None]
    if not known:
        return "–"
    middle, low, high = bootstrap_median(known, seed=0)
    return f"{middle:.2f} ({low:.2f}–{high:.2f}), n = {len(known)}"


def _wrong(models: Rows, tools: Sequence[str]) -> str:
    rows = [["model", "tool", "what"]]
    for name, row in models.items():
        for tool in tools:
            if tool in row.results and (problem := row.results[tool].problem):
                rows.append([name, tool, cell_text(problem)])
        if row.idempotent is False:
            rows.append([name, OWN, "optimizing twice gives other bytes"])
        if OWN in row.results and (note := row.results[OWN].note):
            rows.append([name, "–", cell_text(f"not or not wholly compared: {note}")])
    return table("Failures", rows) if len(rows) > 1 else ""


def cell_text(text: str) -> str:
    """Cut a message to a cell, without the folders of this machine."""
    return re.sub(r"(?<![\w.])/(?:[^\s/]+/)+", "", text).replace("|", "/").replace("\n", " ")[:160]


def misses(models: Rows) -> dict[str, tuple[int, int]]:
    """Return the models on which a competing peer has fewer nodes: Penstock's and the peer's."""
    found = {}
    for name, row in models.items():
        best = row.best_peer()
        if OWN in row.results and best is not None and row.results[OWN].nodes > best:
            found[name] = (row.results[OWN].nodes, best)
    return found


def _lost(models: Rows, reasons: Mapping[str, str]) -> str:
    rows = [["model", "Penstock", "best peer", "reason"]]
    rows += [[name, str(own), str(best), reasons.get(name, "**no reason given**")]
             for name, (own, best) in misses(models).items()]  # fmt: skip
    return table("Misses", rows) if len(rows) > 1 else ""


def sound(models: Rows, reasons: Mapping[str, str]) -> bool:
    """Whether Penstock is right everywhere, idempotent, and has a reason for every miss."""
    own = [row for row in models.values() if OWN in row.results]
    right = all(not row.results[OWN].problem and not row.results[OWN].left and row.idempotent for row in own)
    return right and all(name in reasons for name in misses(models))


def facts(models: Rows) -> dict[str, Any]:
    """Return everything, for JSON."""
    return {"machine": machine.describe(), "models": {name: asdict(row) for name, row in models.items()}}


def today() -> str:
    """Return the day and the processor."""
    facts = machine.describe()
    return f"{dt.datetime.now(dt.UTC):%Y-%m-%d}, {facts.get('cpu', facts.get('architecture'))}"


def table(title: str, rows: Sequence[Sequence[str]]) -> str:
    """Return a table with a heading."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return f"### {title}\n\n" + "\n".join([lines[0], rule, *lines[1:]])


def put_into(page: Path, name: str, text: str) -> None:
    """Write a text between ``<!-- name -->`` and ``<!-- /name -->`` of a page."""
    whole = page.read_text()
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, _, rest = whole.partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}")
