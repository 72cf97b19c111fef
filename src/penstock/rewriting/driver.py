"""Run passes until none of them finds anything: each looks at all nodes once, then only where something has changed.

What nobody reads goes before anything else.

1. Passes run in their order. A rule is called for the nodes of its operators; a pass over the whole model is called
   on a copy, which is dropped where the result isn't sound.
2. In later rounds a rule looks only at the nodes around the rewrites that came since its last turn.
3. When nothing is left to look at, everything is looked at once more; a fixpoint is reached when that finds nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from penstock.graph import first_line
from penstock.passes import Declined, Pass, PassResult, Rule, is_rule
from penstock.passes._library import node_label
from penstock.rewriting import PassBroke, Refusal
from penstock.rewriting.editor import Editor
from penstock.rewriting.walk import refers

if TYPE_CHECKING:
    import onnx_ir as ir

MOST_DECLINED = 200  # near misses of one pass that are kept
MOST_FAILURES = 20
CLEARS = "remove-unused"  # the pass that takes out what others leave unread
MOST_WORK = 5_000_000  # see Editor.work; the largest of the shared models needs 90,000


@dataclass(slots=True)
class Turns:
    """What one pass did over the whole run."""

    name: str
    phase: str
    seconds: float = 0.0
    rewrites: int = 0
    nodes_gone: int = 0  # removed minus added
    saved_bytes: int = 0
    failures: list[Declined] = field(default_factory=list)
    declined: dict[str, Declined] = field(default_factory=dict)  # by node id: the latest reason
    cursor: int = 0  # how far it has read the list of touched nodes

    def failed(self, where: str, reason: str) -> None:
        """Keep where it raised or was taken back, and why: once, though it may be asked in every round."""
        told = Declined(where, reason)
        if told not in self.failures and len(self.failures) < MOST_FAILURES:
            self.failures.append(told)


Apply = Callable[[str, Pass], PassResult]


class Driver:
    """One run over one model."""

    def __init__(
        self,
        editor: Editor,
        passes: Sequence[tuple[str, Pass | Rule]],
        max_rounds: int,
        max_work: int,
        stop_after: int | None = None,
    ) -> None:
        self.editor = editor
        self.stop_after = stop_after
        self.max_rounds, self.max_work = max_rounds, max_work
        self.passes = passes
        self.turns = {name: Turns(name, one.PHASE) for name, one in passes}
        self.rounds = 0
        self.settled = False

    def run(self, apply: Apply, after: Callable[[str], None]) -> None:
        """Run to the fixpoint. ``apply`` runs a pass over the whole model; ``after`` is called after each change."""
        everything, log = True, self.editor.trace.events
        self._clear(apply, after)  # nothing is spent on what goes anyway
        while self.rounds < self.max_rounds:
            self.rounds += 1
            before = len(log)
            index = self._index() if everything else None
            self.editor.site.sweeping = everything
            for name, one in self.passes:
                if self._stops():
                    self._clear(apply, after)
                    return
                turns, began, count = self.turns[name], time.perf_counter(), len(log)
                if is_rule(one):
                    self._rule(turns, one, self._candidates(turns, one, index))
                elif everything:
                    model = self.editor.model
                    self._whole(turns, cast("Pass", one), apply)
                    if len(log) != count or self.editor.model is not model:  # which a copy took the place of
                        index = self._index()
                turns.seconds += time.perf_counter() - began
                if len(log) != count:
                    after(name)
            if everything and len(log) == before:
                self.settled = True
                return
            everything = len(log) == before
        self._clear(apply, after)

    def _clear(self, apply: Apply, after: Callable[[str], None]) -> None:
        """Take out what nobody reads: before the first round, and where the run ends before its fixpoint."""
        log = self.editor.trace.events
        count = len(log)
        if CLEARS not in self.turns or (self.stop_after is not None and count >= self.stop_after):
            return
        self._whole(self.turns[CLEARS], cast("Pass", dict(self.passes)[CLEARS]), apply)
        if len(log) != count:
            after(CLEARS)

    def _stops(self) -> bool:
        if self.editor.work + self.editor.site.work > self.max_work:
            return True
        return self.stop_after is not None and len(self.editor.trace.events) >= self.stop_after

    def _index(self) -> dict[str, list[ir.Node]]:
        """Sort the standard nodes by operator, and find out what is known of their values."""
        self.editor.learn()
        found: dict[str, list[ir.Node]] = {"*": []}
        for node in self.editor.nodes():
            if node.domain == "" and not refers(node):
                found["*"].append(node)
                found.setdefault(node.op_type, []).append(node)
        return found

    def _candidates(self, turns: Turns, rule: Rule, index: Mapping[str, list[ir.Node]] | None) -> Iterable[ir.Node]:
        touched = self.editor.touched
        if index is not None:
            turns.cursor = len(touched)
            return [node for op in rule.OPERATORS for node in index.get(op, ())]
        every = "*" in rule.OPERATORS
        fresh = dict.fromkeys(node for node in touched[turns.cursor :] if every or node.op_type in rule.OPERATORS)
        turns.cursor = len(touched)
        return [node for node in fresh if node.domain == "" and not refers(node)]

    def _rule(self, turns: Turns, rule: Rule, nodes: Iterable[ir.Node]) -> None:
        editor, site, trace = self.editor, self.editor.site, self.editor.trace
        for node in nodes:
            if self._stops():
                return
            if node not in trace.rows:
                continue  # it went with another rewrite
            try:
                rewrite = rule.rewrite(node, site)
                if rewrite is None:
                    if site.made:
                        editor.drop()
                    continue
                event = editor.carry_out(node, rewrite, turns.name)
            except PassBroke:
                raise
            except Refusal as refusal:
                editor.drop()
                if len(turns.declined) < MOST_DECLINED:
                    turns.declined[trace.id_of(node)] = Declined(node_label(node), str(refusal))
                continue
            except (
                Exception,
                SystemExit,
            ) as error:  # a rule meets arbitrary graphs: this place stays as it was, and that is told
                editor.drop()
                turns.failed(node_label(node), f"{type(error).__name__}: {first_line(error, 200)}")
                continue
            turns.rewrites += 1
            turns.nodes_gone += len(event.removed) - len(event.added)
            turns.saved_bytes += event.saved_bytes

    def _whole(self, turns: Turns, one: Pass, apply: Apply) -> None:
        before = len(self.editor.trace.rows)
        result = apply(turns.name, one)
        turns.rewrites += len(result.changes)
        turns.nodes_gone += before - len(self.editor.trace.rows)
        turns.declined = {f"{i}": place for i, place in enumerate(result.declined[:MOST_DECLINED])}
