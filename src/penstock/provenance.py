"""What optimizing does to one node: which rewrites took it in, what stands in its place, and why nothing more was done.

The optimizer is run in memory, without the proof, and its log is read; nothing is written.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from penstock.errors import UsageError
from penstock.rewriting.trace import Event, NodeRow, snapshot
from penstock.stages.optimize import Optimized, OptimizeSettings


@dataclass(frozen=True, slots=True)
class Step:
    """One rewrite on a node's way: the pass, what it did, the nodes that went and came, as ``op name``."""

    rule: str
    what: str
    gone: tuple[str, ...]
    came: tuple[str, ...]
    saved_bytes: int


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of a node. ``now`` are the nodes that stand in its place, empty where nothing needs it any more.

    ``near_misses`` are the rewrites that almost took it, or what stands in its place, as (pass, reason).
    """

    node: str
    op: str
    line: str  # of the user's code, where it is known
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    steps: tuple[Step, ...]
    now: tuple[str, ...]
    near_misses: tuple[tuple[str, str], ...]


def fates(model: Path, name: str, settings: OptimizeSettings | None = None) -> tuple[Fate, ...]:
    """Tell the fate of every node of this name, or that makes the value of this name, or has this id (``n12``).

    Raises ``UsageError`` where there is none, with the nearest names.
    """
    from dataclasses import replace

    from penstock import store
    from penstock.stages.optimize import optimize

    chosen = replace(settings or OptimizeSettings(), strict=False)  # proved: what is taken back is no fate
    with store.scratch() as work:
        done = optimize(model, chosen, work)
    rows = {row.id: row for row in (*done.base, *(row for event in done.events for row in event.added))}
    wanted = [row for row in rows.values() if name in (row.id, row.name) or name in row.outputs]
    if not wanted:
        known = [text for row in rows.values() for text in (row.name, *row.outputs) if text]
        near = difflib.get_close_matches(name, known, 3, 0.5)
        do = f"did you mean {', '.join(near)}?" if near else "`penstock inspect` lists the nodes"
        raise UsageError("unknown-node", f"the model has no node named {name!r}", where=str(model), do=do)
    first = [row for row in wanted if row in done.base] or wanted  # what a rewrite made may go by the same name
    return tuple(_fate(row, rows, done) for row in first)


def _fate(row: NodeRow, rows: dict[str, NodeRow], done: Optimized) -> Fate:
    present: dict[str, None] = {row.id: None}
    touched = [row.id]
    steps = []
    for event in done.events:
        if not present.keys() & set(event.removed):
            continue
        steps.append(_step(event, rows))
        for id in event.removed:
            present.pop(id, None)
        for new in event.added:
            present[new.id] = None
            touched.append(new.id)
    left = {one.id: one for scope in snapshot(done.base, done.events).values() for one in scope}
    labels = {_declined_as(rows[id]) for id in touched}
    misses = [
        (record.name, place.reason) for record in done.passes for place in (*record.declined, *record.failures)
        if place.node in labels
    ]  # fmt: skip
    return Fate(
        row.name or row.id, row.op, row.line, row.inputs, row.outputs, tuple(steps),
        tuple(_label(left[id]) for id in present if id in left), tuple(dict.fromkeys(misses)),
    )  # fmt: skip


def _step(event: Event, rows: dict[str, NodeRow]) -> Step:
    gone = tuple(_label(rows[id]) for id in event.removed)
    return Step(event.rule, event.what, gone, tuple(_label(row) for row in event.added), event.saved_bytes)


def _declined_as(row: NodeRow) -> str:
    """Return what passes call the node, see :func:`penstock.passes._library.node_label`."""
    return row.name or f"{row.op.rpartition('::')[2]}({row.outputs[0] if row.outputs else ''})"


def _label(row: NodeRow) -> str:
    return f"{row.op} {row.name or row.outputs[0]}" if row.name or row.outputs else row.op
