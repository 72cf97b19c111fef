"""What optimizing does to one node: which rewrites took it in, what stands in its place, and why nothing more was done.

The optimizer is run in memory, without the proof, and its log is read; nothing is written.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from penstock.errors import UsageError
from penstock.rewriting.trace import Event, NodeRow, snapshot
from penstock.stages.optimize import Optimized, OptimizeSettings

REACH, MOST_READERS, MOST_BESIDE = 8, 16, 3  # how far below a node is looked for near misses, and how many are told


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

    ``near_misses`` are the rewrites that almost took it, or what stands in its place, as (pass, reason). ``beside`` are
    the nearest ones that were asked at a node below it, as (pass, node, reason): a form of several nodes is looked for
    from its last one on.
    """

    node: str
    op: str
    line: str  # of the user's code, where it is known
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    steps: tuple[Step, ...]
    now: tuple[str, ...]
    near_misses: tuple[tuple[str, str], ...]
    beside: tuple[tuple[str, str, str], ...]


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
    told = [(one.name, place) for one in done.passes for place in (*one.declined, *one.failures)]
    labels = {_declined_as(rows[id]) for id in touched}
    misses = [(rule, place.reason) for rule, place in told if place.node in labels]
    below = {_declined_as(one): _label(one) for one in _below([left[id] for id in present if id in left], left)}
    near = sorted((one for one in told if one[1].node in below), key=lambda one: [*below].index(one[1].node))
    beside = [(rule, below[place.node], place.reason) for rule, place in near if place.node not in labels]
    return Fate(
        row.name or row.id, row.op, row.line, row.inputs, row.outputs, tuple(steps),
        tuple(_label(left[id]) for id in present if id in left), tuple(dict.fromkeys(misses)),
        tuple(dict.fromkeys(beside))[:MOST_BESIDE],
    )  # fmt: skip


def _below(start: Sequence[NodeRow], left: Mapping[str, NodeRow]) -> list[NodeRow]:
    """Return the nodes of the same graph that read what these make, and so on, the nearest first."""
    readers: dict[tuple[str, str], list[NodeRow]] = {}
    for row in left.values():
        for value in row.inputs:
            readers.setdefault((row.scope, value), []).append(row)
    found = {row.id: row for row in start}
    layer = [*start]
    for _ in range(REACH):
        read = [readers.get((row.scope, value), []) for row in layer for value in row.outputs if value]
        layer = [user for users in read if len(users) <= MOST_READERS for user in users if user.id not in found]
        found |= {row.id: row for row in layer}
    return [row for row in found.values() if row not in start]


def _step(event: Event, rows: dict[str, NodeRow]) -> Step:
    gone = tuple(_label(rows[id]) for id in event.removed)
    return Step(event.rule, event.what, gone, tuple(_label(row) for row in event.added), event.saved_bytes)


def _declined_as(row: NodeRow) -> str:
    """Return what passes call the node, see :func:`penstock.passes._library.node_label`."""
    return row.name or f"{row.op.rpartition('::')[2]}({row.outputs[0] if row.outputs else ''})"


def _label(row: NodeRow) -> str:
    return f"{row.op} {row.name or row.outputs[0]}" if row.name or row.outputs else row.op
