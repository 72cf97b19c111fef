"""Find the change that made a model wrong, among all that a rewriting did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from penstock import graph, store
from penstock.rewriting.extract import extract
from penstock.rewriting.run import Rewritten, weight_bytes

EVERY = "every pass"  # the culprit where no single change is one
MOST_NODES = 20  # that are named
Problem = Callable[[Path, int], str]  # a model and the bytes of its weights → what is wrong with it
Again = Callable[[int | None], Rewritten]  # rewrites anew, up to so many changes


@dataclass(frozen=True, slots=True)
class Culprit:
    """The change that broke something: its pass, what it did, and the nodes that it replaced."""

    rule: str
    what: str
    nodes: tuple[str, ...]
    problem: str


def first_bad(again: Again, events: int | None, problem: Problem, evidence: Path | None = None) -> Culprit | None:
    """Find the first change after which the model is wrong, by halving; ``None`` where it isn't wrong after all.

    The nodes that it took, as a model of their own, are written to ``evidence``: the smallest model that shows it.
    """

    def state(stop: int | None) -> tuple[Rewritten, str]:
        done = again(stop)
        with store.scratch() as work:
            graph.save(done.model, work / "model.onnx")
            return done, problem(work / "model.onnx", weight_bytes(done.model))

    done, told = state(events)
    low, high = 0, len(done.trace.events)
    if not told or not high:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        tried, found = state(middle)
        if found:
            high, done, told = middle, tried, found
        else:
            low = middle
    event = done.trace.events[high - 1]
    if evidence is not None:
        before = again(high - 1)
        taken = {node for node, row in before.trace.rows.items() if row.id in event.removed}
        store.write_bytes(evidence, extract(before.model, taken))
    rows = {row.id: row for row in (*done.trace.base, *(row for e in done.trace.events for row in e.added))}
    nodes = tuple(rows[id].name or rows[id].op for id in event.removed if id in rows)
    return Culprit(event.rule, event.what, nodes[:MOST_NODES], told)
