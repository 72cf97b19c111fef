"""The proof of an optimized model, and the change that is to blame where it fails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from penstock import graph, proof, store
from penstock.blame import EVERY, Again, Culprit, Problem, first_bad
from penstock.opsets.whole import changed_meaning
from penstock.passes import Pass, Rule
from penstock.passes._soundness import refusal_of
from penstock.proof import Proof
from penstock.rewriting.run import Rewritten, weight_bytes
from penstock.stages._optimize_steps import Extent, opened, run

if TYPE_CHECKING:
    import onnx_ir as ir

    from penstock.stages.optimize import OptimizeSettings

MODEL = "model.onnx"
PROOF_BYTES = 96 << 20  # of the proof's process before it holds a model


def prove(
    source: Path, result: Path, passes: Sequence[tuple[str, Pass | Rule]], done: Rewritten, extent: Extent,
    settings: OptimizeSettings, restated: bool,
) -> tuple[Proof, Culprit | None]:  # fmt: skip
    """Prove the result; where it is wrong, find the change that made it so."""
    if not settings.proof:
        return proof.skipped("it was switched off"), None
    if not done.trace.events and not settings.runtime and not restated:
        return Proof("proved", "", "nothing was changed", 0, 0.0, ()), None
    weights, size = done.weight_bytes_before, extent.nodes + extent.weights + extent.bodies
    if weights > settings.proof_bytes:
        what = f"its weights have {weights:,} bytes, {settings.proof_bytes:,} are run twice (--proof-bytes)"
        return proof.skipped(what), None
    if size > settings.proof_nodes:
        what = f"it has {size:,} nodes, weights and bodies, {settings.proof_nodes:,} are run twice (--proof-nodes)"
        return proof.skipped(what), None
    if restated and settings.verify_each:
        _hold_restated(source, weights, settings)
    if settings.verify_each and (found := _first_bad_pass(source, passes, settings)) is not None:
        return found
    proved = _compared(source, result, weights, settings)
    if proved.state != "failed":
        return proved, None
    if restated:
        _hold_restated(source, weights, settings)
    if settings.runtime and not passes:
        return proved, None
    shown = Path(settings.evidence) if settings.evidence else None
    anew = again(source, passes, settings)
    culprit = first_bad(anew, len(done.trace.events), _difference(source, settings), shown)
    return proved, culprit or Culprit(EVERY, "", (), proved.reason)


def _hold_restated(source: Path, weights: int, settings: OptimizeSettings) -> None:
    """Raise ``GateError`` where the model computes something else in the other opset before any pass has run."""
    with store.scratch() as work:
        graph.save(opened(source, settings)[0], work / MODEL)
        proved = _compared(source, work / MODEL, weights, settings)
    if proved.state == "failed":
        what = f"the model computes something else in opset {settings.opset}: {proved.reason}"
        raise changed_meaning(source, what)


def invalid(again: Again, done: Rewritten) -> Culprit:
    """Find the change after which onnx.checker refuses the model."""
    reason = "onnx.checker refuses the result"
    found = first_bad(again, len(done.trace.events), lambda path, _: refusal_of(path))
    return replace(found, problem=f"{reason}: {found.problem}") if found else Culprit(EVERY, "", (), reason)


def _difference(source: Path, settings: OptimizeSettings) -> Problem:
    def problem(path: Path, weights: int) -> str:
        proved = _compared(source, path, weights, settings)
        return proved.reason if proved.state == "failed" else ""

    return problem


def _compared(source: Path, result: Path, weights: int, settings: OptimizeSettings) -> Proof:
    # two models, as files, as weights and as packed weights
    memory = max(settings.proof_memory_bytes, PROOF_BYTES + 6 * weights)
    return proof.prove(
        source, result, seeds=settings.proof_seeds, seconds=settings.proof_seconds, memory_bytes=memory,
        other_opset=settings.opset is not None,
    )  # fmt: skip


def _first_bad_pass(
    source: Path, passes: Sequence[tuple[str, Pass | Rule]], settings: OptimizeSettings
) -> tuple[Proof, Culprit] | None:
    """Prove after each pass that changes something; return the first that fails."""

    class Found(Exception):  # noqa: N818  # no fault: it leaves the rewriting
        pass

    bad: list[tuple[str, Proof]] = []
    with store.scratch() as work:

        def after(name: str, model: ir.Model) -> None:
            copy = model.clone()
            graph.save(copy, work / MODEL)
            proved = _compared(source, work / MODEL, weight_bytes(model), settings)
            if proved.state == "failed":
                bad.append((name, proved))
                raise Found

        try:
            run(opened(source, settings)[0], passes, settings, after=after)
        except Found:
            name, proved = bad[0]
            shown = Path(settings.evidence) if settings.evidence else None
            culprit = first_bad(again(source, passes, settings), None, _difference(source, settings), shown)
            return proved, culprit or Culprit(name, "", (), proved.reason)
    return None


def again(source: Path, passes: Sequence[tuple[str, Pass | Rule]], settings: OptimizeSettings) -> Again:
    """Return what rewrites the model anew, up to so many changes."""
    return lambda stop: run(opened(source, settings)[0], passes, settings, stop_after=stop)
