"""Optimize: rewrite the graph to a fixpoint, log every step, and prove the result against the original."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from penstock import guard
from penstock.blame import EVERY, Culprit
from penstock.errors import GateError, PenstockError
from penstock.jsonable import Json, dumps, to_json
from penstock.opsets.whole import Restated
from penstock.passes import Declined
from penstock.proof import Proof
from penstock.rewriting import PassBroke
from penstock.rewriting.driver import MOST_WORK, Turns
from penstock.rewriting.run import Rewritten, count, weight_bytes
from penstock.rewriting.trace import Event, NodeRow
from penstock.settings import option
from penstock.specialise import Specialised, specialise
from penstock.stages._optimize_proof import again, invalid, prove
from penstock.stages._optimize_steps import Extent, load_passes, opened, run, without_ending, write

MAIN = "model.onnx"  # the file that the stage writes
TRACE = "trace.json"  # the log of the rewriting, beside it
EXAMPLES = 5  # changes that a record spells out
SHOWN_NODES = 5  # that are named of a change that is wrong


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
    max_work: int = option(
        MOST_WORK, "most inputs and outputs of nodes that changes may touch or look through", minimum=1
    )
    strict: bool = option(False, "end with an error where a pass fails or has to be taken back")
    proof: bool = option(True, "run the result beside the original and compare", flag="--proof/--no-proof")
    proof_seeds: int = option(3, "made-up inputs for each set of sizes", minimum=1)
    proof_seconds: float = option(6.0, "longest that the proof may run the models", minimum=0.1)
    proof_bytes: int = option(1 << 30, "largest weights that are run twice for the proof", minimum=0)
    proof_nodes: int = option(
        10_000, "largest graph that is run twice for the proof, in nodes, weights and bodies", minimum=1
    )
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
        passes, broken = load_passes(settings)
        passes, ending = without_ending(model_path, passes)
        broken += ending
        without: dict[str, Declined] = {}  # passes that broke, and how
        culprits: list[Culprit] = []
        while True:
            model, restated = opened(model_path, settings)
            kept = [one for one in passes if one[0] not in without and EVERY not in without]
            before = Extent.of(model)
            try:
                done = run(model, kept, settings)
            except PassBroke as error:
                without[error.name] = Declined("the whole model", error.reason)
                continue
            complaint, special = write(done.model, model_path, into / name, data, beside), None
            if complaint:
                proved = Proof("failed", complaint, "onnx.checker", 0, 0.0, ())
                culprit: Culprit | None = invalid(again(model_path, kept, settings), done)
            else:
                special = specialise(into / name, "onnxruntime") if settings.runtime else None
                proved, culprit = prove(model_path, into / name, kept, done, before, settings, restated is not None)
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


def _hold(result: Optimized, path: Path) -> None:
    for record in result.passes:
        for place in record.failures:
            do = f"leave it out with --skip {record.name}, and report it with the model"
            what = f"the pass {record.name!r} failed at {place.node}: {place.reason}"
            raise GateError("pass-failed", what, where=str(path), do=do)


def _record(turns: Turns, done: Rewritten) -> PassRecord:
    told = dict.fromkeys(event.what for event in done.trace.events if event.rule == turns.name)
    return PassRecord(
        turns.name, turns.phase, turns.rewrites, turns.nodes_gone, turns.saved_bytes, tuple(told)[:EXAMPLES],
        tuple(turns.declined.values()), tuple(turns.failures),
    )  # fmt: skip
