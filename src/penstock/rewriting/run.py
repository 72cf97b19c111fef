"""Rewrite a model with passes to a fixpoint: from a loaded model to the rewritten one, with the log of how."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock import graph, guard
from penstock.passes import Pass, PassResult, Rule
from penstock.passes._soundness import Soundness
from penstock.rewriting import PassBroke
from penstock.rewriting.driver import MOST_WORK, Driver, Turns
from penstock.rewriting.editor import Editor
from penstock.rewriting.trace import Trace
from penstock.rewriting.walk import graphs_of, nodes_of

if TYPE_CHECKING:
    import onnx_ir as ir

FIRST_WITH_FREE_INITIALIZERS = 4  # IR version: an initializer needn't be listed as an input


@dataclass(slots=True)
class Rewritten:
    """A model after rewriting: the log, what each pass did, and whether a fixpoint was reached."""

    model: ir.Model
    trace: Trace
    turns: tuple[Turns, ...]
    rounds: int
    settled: bool
    weight_bytes_before: int


def rewrite(
    model: ir.Model,
    passes: Sequence[tuple[str, Pass | Rule]],
    *,
    max_rounds: int,
    max_work: int = MOST_WORK,
    foreign: frozenset[str] = frozenset(),
    stop_after: int | None = None,
    after: Callable[[str, ir.Model], None] | None = None,
) -> Rewritten:
    """Rewrite ``model`` in place.

    ``foreign`` passes over the whole model, of third parties, are taken back where they raise or leave the model less
    sound. ``max_work`` bounds :attr:`Editor.work`. ``stop_after`` ends the run after so many changes; ``after`` is
    called after each pass that changed something. Raises ``PassBroke``.
    """
    trace = Trace()
    trace.begin(model)
    editor = Editor(model, trace)
    driver = Driver(editor, passes, max_rounds, max_work, stop_after)
    weights = weight_bytes(model)

    def apply(name: str, one: Pass) -> PassResult:
        if name in foreign:
            return _foreign(editor, driver.turns[name], name, one)
        try:
            result = one.run(editor.model)
        except Exception as error:  # a pass meets arbitrary graphs, and may have left this one half changed
            raise PassBroke(name, f"{type(error).__name__}: {graph.first_line(error)}") from error
        if result.modified:
            trace.compare(editor.model, name, _told(result))
        return result

    def changed(name: str) -> None:
        _permit_initializers(editor.model)
        if after is not None:
            after(name, editor.model)

    with guard.limited_memory(guard.EXTRA_BYTES + 4 * min(weights, 1 << 30)):
        driver.run(apply, changed)
    return Rewritten(editor.model, trace, tuple(driver.turns.values()), driver.rounds, driver.settled, weights)


def _permit_initializers(model: ir.Model) -> None:
    """Raise the IR version to the first in which an initializer needn't be an input, where there is such a one."""
    if (model.ir_version or 0) < FIRST_WITH_FREE_INITIALIZERS and any(
        not value.is_graph_input() for one in graphs_of(model) for value in one.initializers.values()
    ):
        model.ir_version = FIRST_WITH_FREE_INITIALIZERS


def _told(result: PassResult) -> str:
    more = f", and {len(result.changes) - 3} more" if len(result.changes) > 3 else ""
    return "; ".join(result.changes[:3]) + more


def _foreign(editor: Editor, turns: Turns, name: str, one: Pass) -> PassResult:
    """Run a third party's pass; put the model back where it does harm."""
    sound = Soundness.of(editor.model)
    before, backup = nodes_of(editor.model), editor.model.clone()
    harm = ""
    try:
        result = one.run(editor.model)
        if result.modified:
            harm = sound.complaint(editor.model)
    except (Exception, SystemExit) as error:  # a third party's code meets arbitrary graphs
        harm = f"{type(error).__name__}: {graph.first_line(error)}"
    if harm:
        turns.failed("the whole model", f"taken back: {harm}")
        editor.put_back(backup, before)
        return PassResult()
    if result.modified:
        editor.trace.compare(editor.model, name, _told(result))
    return result


def count(model: ir.Model) -> int:
    """Count the nodes: of the graph, of bodies, of functions; Constants are no work and don't count."""
    return sum(1 for node in nodes_of(model) if node.op_type != "Constant" or node.domain != "")


def weight_bytes(model: ir.Model) -> int:
    """Return the bytes of all constants."""
    return sum(
        value.const_value.nbytes for one in graphs_of(model) for value in one.initializers.values()
        if value.const_value is not None
    )  # fmt: skip
