"""Optimize: rewrite the graph to a fixpoint, log every step, and prove the result against the original."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from penstock import graph, guard, precheck, proof, registry, store
from penstock.blame import EVERY, Again, Culprit, Problem, first_bad
from penstock.errors import GateError, InputError, MissingError, PenstockError
from penstock.jsonable import Json, dumps, to_json
from penstock.opsets.whole import Restated, in_opset
from penstock.passes import Declined, Pass, Rule
from penstock.passes._library import expanded_size
from penstock.passes._order import in_order
from penstock.passes._soundness import refusal_of
from penstock.proof import Proof
from penstock.rewriting import PassBroke
from penstock.rewriting.driver import MOST_WORK, Turns
from penstock.rewriting.knowledge import Knowledge, to_ir
from penstock.rewriting.run import Rewritten, count, rewrite, weight_bytes
from penstock.rewriting.trace import Event, NodeRow
from penstock.rewriting.walk import graphs_of, nodes_in
from penstock.settings import option
from penstock.specialise import Specialised, specialise

if TYPE_CHECKING:
    import onnx_ir as ir

MAIN = "model.onnx"  # the file that the stage writes
TRACE = "trace.json"  # the log of the rewriting, beside it
EXAMPLES = 5  # changes that a record spells out
PROOF_BYTES = 96 << 20  # of the proof's process before it holds a model
SHOWN_NODES = 5  # that are named of a change that is wrong
MOST_EXPANDED = 50_000  # nodes that inlining may add: what stands for more isn't looked into


@dataclass(frozen=True, slots=True)
class OptimizeSettings:
    """Which passes run, how often, and how the result is proved."""

    passes: tuple[str, ...] = option((), "passes to run (default: all)")
    skip: tuple[str, ...] = option((), "passes to leave out")
    also: tuple[str, ...] = option((), "passes to run that aren't run unasked, see `penstock list passes`")
    opset: int | None = option(
        None, "opset of the result: its operators are what passes may use (default: the model's own)", minimum=1,
        flag="--optimize-opset",
    )  # fmt: skip
    max_rounds: int = option(30, "most rounds over all passes", minimum=1)
    max_work: int = option(MOST_WORK, "most inputs and outputs of nodes that changes may touch", minimum=1)
    strict: bool = option(False, "end with an error where a pass fails or has to be taken back")
    proof: bool = option(True, "run the result beside the original and compare", flag="--proof/--no-proof")
    proof_seeds: int = option(3, "made-up inputs for each set of sizes", minimum=1)
    proof_seconds: float = option(6.0, "longest that the proof may run the models", minimum=0.1)
    proof_bytes: int = option(1 << 30, "largest weights that are run twice for the proof", minimum=0)
    proof_nodes: int = option(20_000, "largest graph that is run twice for the proof, in nodes and weights", minimum=1)
    proof_memory_bytes: int = option(
        768 << 20, "most memory of the proof, where 6 times the weights aren't more", minimum=1 << 20
    )
    runtime: str = option(
        "", "add the fusions of one runtime, by its own optimizer; the result is for it alone", flag="--for",
        choices=("", "ort"),
    )  # fmt: skip
    evidence: str = option("", "file for the smallest model that shows what a wrong pass does")
    verify_each: bool = option(False, "prove after each pass, and name the one that breaks something")


@dataclass(frozen=True, slots=True)
class Extent:
    """How large a model is, all of its graphs together."""

    nodes: int  # without Constants
    weights: int  # their number

    @classmethod
    def of(cls, model: ir.Model) -> Extent:
        """Measure a model."""
        return cls(count(model), sum(len(one.initializers) for one in graphs_of(model)))


@dataclass(frozen=True, slots=True)
class PassRecord:
    """What one pass did over the whole run; ``failures`` tells where it raised or was taken back."""

    name: str
    phase: str
    changes: int
    nodes_gone: int
    saved_bytes: int  # of intermediate values per run, dynamic sizes counted as 1
    examples: tuple[str, ...]
    declined: tuple[Declined, ...]
    failures: tuple[Declined, ...]


@dataclass(frozen=True, slots=True)
class Optimized:
    """The result: a record for each pass, the proof, and the log from which every step can be drawn again."""

    passes: tuple[PassRecord, ...]
    nodes_before: int
    nodes_after: int
    weight_bytes_before: int
    weight_bytes_after: int
    rounds: int
    settled: bool
    restated: Restated | None  # in another opset, before anything else
    specialised: Specialised | None  # by a runtime's own optimizer
    broken: tuple[Declined, ...]  # plug-ins that don't load
    culprits: tuple[Culprit, ...]  # what the proof found, and was left out
    proof: Proof
    seconds: tuple[float, ...]  # one for each record of ``passes``
    base: tuple[NodeRow, ...] = field(repr=False)
    events: tuple[Event, ...] = field(repr=False)

    def facts(self) -> dict[str, Json]:
        """Return what follows from model and settings alone."""
        names = (
            "passes", "nodes_before", "nodes_after", "weight_bytes_before", "weight_bytes_after", "rounds", "settled",
            "restated", "specialised", "broken", "culprits",
        )  # fmt: skip
        return {name: to_json(getattr(self, name)) for name in names} | {"proof": self.proof.state}

    def measured(self) -> dict[str, Json]:
        """Return the seconds that each pass took, and what the proof measured."""
        named = zip(self.passes, self.seconds, strict=True)
        return {"seconds": {record.name: seconds for record, seconds in named}, "proof": to_json(self.proof)}

    def complaints(self) -> list[str]:
        """Return what a user has to know beside the result, see :func:`complaints`."""
        return complaints(self.facts(), self.proof.reason)

    def trace_json(self) -> str:
        """Return the log as JSON: ``base`` and ``events`` of :mod:`penstock.rewriting.trace`."""
        return dumps({"schema": 1, "base": self.base, "events": self.events})


def complaints(facts: Mapping[str, Json], reason: str) -> list[str]:
    """Tell what went wrong beside a result: plug-ins that don't load, passes left out, places taken back, no proof.

    ``facts`` are :meth:`Optimized.facts`, which a cache may hold; ``reason`` is the proof's.
    """
    told = [f"left out  {each['node']}: {each['reason']}" for each in _rows(facts, "broken")]
    blamed = set()
    for each in _rows(facts, "culprits"):
        blamed.add(each["rule"])
        nodes = cast("list[str]", each["nodes"])
        more = f" and {len(nodes) - SHOWN_NODES:,} more" if len(nodes) > SHOWN_NODES else ""
        place = f", at {', '.join(nodes[:SHOWN_NODES])}{more}" if nodes else ""
        what = f" ({each['what']})" if each["what"] else ""
        told.append(f"left out  {each['rule']}{place}{what}: {each['problem']}")
    for record in _rows(facts, "passes"):
        if record["name"] not in blamed:
            places = cast("list[dict[str, str]]", record["failures"])
            told += [f"failed    {record['name']} at {place['node']}: {place['reason']}" for place in places]
    if not facts["settled"]:
        told.append("stopped   it could be improved further: raise --max-rounds or --max-work")
    if facts["proof"] in ("skipped", "failed"):
        told.append(f"no proof  {reason}")
    return told


def _rows(facts: Mapping[str, Json], name: str) -> list[dict[str, Json]]:
    return cast("list[dict[str, Json]]", facts[name])


def optimize(
    model_path: Path, settings: OptimizeSettings, into: Path, *, name: str = MAIN, data: str = "", beside: bool = False
) -> Optimized:
    """Optimize a model and save it as ``into``/``name``; same bytes for the same input.

    Large weights lie beside it in the file ``data``. ``beside``: ``into`` is the model's own folder, and what isn't
    touched of the weights beside the model stays where it is, for both (:func:`penstock.graph.save`).

    Every rewrite is done whole or not at all. A rule that raises leaves its place as it was, and a change that the
    proof finds wrong is left out with its pass, which the result tells; with ``strict`` either is a ``GateError``.
    Raises ``InputError`` for a model that can't be read, ``UsageError`` for an unknown pass or opset, ``GateError``
    where the model loses its meaning in the opset that is asked for.
    """
    with guard.rare_collection():
        passes, broken = _load(settings)
        without: dict[str, Declined] = {}  # passes that broke, and how
        culprits: list[Culprit] = []
        while True:
            model, restated = _opened(model_path, settings)
            kept = [one for one in passes if one[0] not in without and EVERY not in without]
            before = Extent.of(model)
            try:
                done = _run(model, kept, settings)
            except PassBroke as error:
                without[error.name] = Declined("the whole model", error.reason)
                continue
            complaint, special = _write(done.model, model_path, into / name, data, beside), None
            if complaint:
                proved = Proof("failed", complaint, "onnx.checker", 0, 0.0, ())
                culprit: Culprit | None = _invalid(_again(model_path, kept, settings), done)
            else:
                special = specialise(into / name, "onnxruntime") if settings.runtime else None
                proved, culprit = _prove(model_path, into / name, kept, done, before, settings, restated is not None)
            if culprit is None or (culprit.rule == EVERY and not kept):
                break
            culprits.append(culprit)
            without[culprit.rule] = Declined(", ".join(culprit.nodes), culprit.problem)
            if settings.strict:
                break
    if complaint:
        raise PenstockError(
            "invalid-result", f"the optimized model is invalid: {complaint}", where=str(model_path),
            do="leave passes out with --skip, and report this with the model",
        )  # fmt: skip
    records = [_record(turns, done) for turns in done.turns]
    records += [PassRecord(name, "", 0, 0, 0, (), (), (place,)) for name, place in without.items()]
    seconds = tuple(turns.seconds for turns in done.turns) + (0.0,) * len(without)
    result = Optimized(
        tuple(records), before.nodes, count(done.model), done.weight_bytes_before, weight_bytes(done.model),
        done.rounds, done.settled, restated, special, broken, tuple(culprits), proved, seconds, done.trace.base,
        tuple(done.trace.events),
    )  # fmt: skip
    if settings.strict:
        _hold(result, model_path)
    return result


def _run(
    model: ir.Model, passes: Sequence[tuple[str, Pass | Rule]], settings: OptimizeSettings, *,
    stop_after: int | None = None, after: Callable[[str, ir.Model], None] | None = None,
) -> Rewritten:  # fmt: skip
    return rewrite(
        model, passes, max_rounds=settings.max_rounds, max_work=settings.max_work, foreign=_foreign(),
        stop_after=stop_after, after=after,
    )  # fmt: skip


def _hold(result: Optimized, path: Path) -> None:
    for record in result.passes:
        for place in record.failures:
            do = f"leave it out with --skip {record.name}, and report it with the model"
            what = f"the pass {record.name!r} failed at {place.node}: {place.reason}"
            raise GateError("pass-failed", what, where=str(path), do=do)


def _opened(path: Path, settings: OptimizeSettings) -> tuple[ir.Model, Restated | None]:
    """Load the model, and say it in the opset that is wished.

    Raises ``InputError`` for functions that stand for too many nodes, ``GateError`` where it loses its meaning there.
    """
    model = graph.load(path, weights=False)  # passes read few of them, and what isn't touched is never read
    limit = MOST_EXPANDED + len(graph.all_nodes(model)) if model.functions else 0
    if model.functions and expanded_size(model, limit) >= limit:
        what = f"its functions stand for {MOST_EXPANDED:,} nodes or more, or call each other too deeply"
        raise InputError("too-many-nodes", what, where=str(path), do="export the model without nested functions")
    if settings.opset is None:
        return model, None
    model, restated = in_opset(model, settings.opset, str(path))
    return model, restated if restated.opset_before != restated.opset_after else None


def _foreign() -> frozenset[str]:
    return frozenset(registry.origins("passes"))


def _load(settings: OptimizeSettings) -> tuple[list[tuple[str, Pass | Rule]], tuple[Declined, ...]]:
    wanted = settings.passes or registry.names("passes")
    asked = {*settings.passes, *settings.also}
    for name in (*settings.skip, *settings.also):
        if name not in registry.names("passes"):
            registry.load("passes", name)  # raises, with the nearest name
    loaded: dict[str, Pass | Rule] = {}
    broken: list[Declined] = []
    for name in wanted:
        if name in settings.skip:
            continue
        try:
            found = cast("Pass | Rule", registry.load("passes", name))
            if name in asked or not getattr(found, "OPTIONAL", False):
                loaded[name] = found
        except MissingError as error:
            if settings.passes:
                raise
            broken.append(Declined(name, error.what))
    return in_order(loaded), tuple(broken)


def _record(turns: Turns, done: Rewritten) -> PassRecord:
    told = dict.fromkeys(event.what for event in done.trace.events if event.rule == turns.name)
    return PassRecord(
        turns.name, turns.phase, turns.rewrites, turns.nodes_gone, turns.saved_bytes, tuple(told)[:EXAMPLES],
        tuple(turns.declined.values()), tuple(turns.failures),
    )  # fmt: skip


def _write(model: ir.Model, source: Path, path: Path, data: str, beside: bool) -> str:
    """Save the model with the shapes that are known now; return what onnx.checker has against it, and only it."""
    graph.tidy(model)
    declare(model)
    try:
        graph.save(model, path, data=data, beside=beside)
    except (ValueError, TypeError) as error:
        what = f"the model can't be written: {graph.first_line(error)}"
        raise InputError("unwritable-model", what, where=str(source), do="check it with onnx.checker") from error
    complaint = refusal_of(path)
    return complaint if complaint and not refusal_of(source) else ""


def declare(model: ir.Model) -> None:
    """Note on every inner value the shape that follows from the graph, and no other.

    What an earlier exporter declared may be wrong, or no longer true. Values of other domains' operators keep theirs.
    A size that the pre-check refuses isn't written: the model is to be opened again.
    """
    most = precheck.settings().max_tensor_bytes
    known = Knowledge(model)
    outputs = set(model.graph.outputs)
    for node in graph.all_nodes(model):
        for value in node.outputs:
            if node.domain == "" and value not in outputs:
                value.shape = None
    known.learn(model.graph)
    for node in nodes_in(model.graph):
        for value in node.outputs:
            shape = known.shapes.get(value)
            large = shape is not None and math.prod(size for size in shape if isinstance(size, int)) > most
            if value not in outputs and shape is not None and value.type is not None and not large:
                value.shape = to_ir(shape)


def _prove(
    source: Path, result: Path, passes: Sequence[tuple[str, Pass | Rule]], done: Rewritten, extent: Extent,
    settings: OptimizeSettings, restated: bool,
) -> tuple[Proof, Culprit | None]:  # fmt: skip
    """Prove the result; where it is wrong, find the change that made it so."""
    if not settings.proof:
        return proof.skipped("it was switched off"), None
    if not done.trace.events and not settings.runtime and not restated:
        return Proof("proved", "", "nothing was changed", 0, 0.0, ()), None
    weights, size = done.weight_bytes_before, extent.nodes + extent.weights
    if weights > settings.proof_bytes:
        what = f"its weights have {weights:,} bytes, {settings.proof_bytes:,} are run twice (--proof-bytes)"
        return proof.skipped(what), None
    if size > settings.proof_nodes:
        what = f"it has {size:,} nodes and weights, {settings.proof_nodes:,} are run twice (--proof-nodes)"
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
    again, shown = _again(source, passes, settings), Path(settings.evidence) if settings.evidence else None
    culprit = first_bad(again, len(done.trace.events), _difference(source, settings), shown)
    return proved, culprit or Culprit(EVERY, "", (), proved.reason)


def _hold_restated(source: Path, weights: int, settings: OptimizeSettings) -> None:
    """Raise ``GateError`` where the model computes something else in the other opset before any pass has run."""
    with store.scratch() as work:
        graph.save(_opened(source, settings)[0], work / MAIN)
        proved = _compared(source, work / MAIN, weights, settings)
    if proved.state == "failed":
        what = f"the model computes something else in opset {settings.opset}: {proved.reason}"
        raise GateError("conversion-differs", what, where=str(source), do="report it with the model")


def _invalid(again: Again, done: Rewritten) -> Culprit:
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

    class Found(Exception):  # noqa: N818
        pass

    bad: list[tuple[str, Proof]] = []
    with store.scratch() as work:

        def after(name: str, model: ir.Model) -> None:
            copy = model.clone()
            graph.save(copy, work / MAIN)
            proved = _compared(source, work / MAIN, weight_bytes(model), settings)
            if proved.state == "failed":
                bad.append((name, proved))
                raise Found

        try:
            _run(_opened(source, settings)[0], passes, settings, after=after)
        except Found:
            name, proved = bad[0]
            shown = Path(settings.evidence) if settings.evidence else None
            culprit = first_bad(_again(source, passes, settings), None, _difference(source, settings), shown)
            return proved, culprit or Culprit(name, "", (), proved.reason)
    return None


def _again(source: Path, passes: Sequence[tuple[str, Pass | Rule]], settings: OptimizeSettings) -> Again:
    return lambda stop: _run(_opened(source, settings)[0], passes, settings, stop_after=stop)
