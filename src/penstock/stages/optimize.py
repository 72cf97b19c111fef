"""Optimize: rewrite the graph pass by pass until nothing changes, each pass taken back where it does harm."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from penstock import graph, guard, registry, source_lines
from penstock.errors import InputError, MissingError, PenstockError
from penstock.jsonable import Json, to_json
from penstock.passes import Declined, Pass
from penstock.passes._order import in_order
from penstock.passes._soundness import Soundness, fingerprint
from penstock.settings import option

if TYPE_CHECKING:
    import onnx_ir as ir

MAIN = "model.onnx"  # the file that the stage writes
IN_MEMORY_BYTES = 1 << 30  # external weights up to here are read in first
EXAMPLES = 5  # changes that a record spells out


@dataclass(frozen=True, slots=True)
class OptimizeSettings:
    """Which passes run, and how often."""

    passes: tuple[str, ...] = option((), "passes to run (default: all)")
    skip: tuple[str, ...] = option((), "passes to leave out")
    max_rounds: int = option(10, "most rounds over all passes", minimum=1)


@dataclass(frozen=True, slots=True)
class PassRecord:
    """What one pass did in one round; ``undone`` says why it was taken back, empty where it wasn't."""

    name: str
    phase: str
    round: int
    changes: int
    examples: tuple[str, ...]
    declined: tuple[Declined, ...]
    undone: str
    nodes_before: int
    nodes_after: int


@dataclass(frozen=True, slots=True)
class Optimized:
    """The result: a record for each pass of each round, and whether a fixpoint was reached."""

    passes: tuple[PassRecord, ...]
    nodes_before: int
    nodes_after: int
    rounds: int
    settled: bool
    broken: tuple[Declined, ...]  # plug-ins that don't load
    seconds: tuple[float, ...]  # one for each record of ``passes``

    def facts(self) -> dict[str, Json]:
        """Return what follows from model and settings alone."""
        names = ("passes", "nodes_before", "nodes_after", "rounds", "settled", "broken")
        return {name: to_json(getattr(self, name)) for name in names}

    def measured(self) -> dict[str, Json]:
        """Return the seconds that each pass took, over all rounds."""
        total: dict[str, float] = {}
        for record, seconds in zip(self.passes, self.seconds, strict=True):
            total[record.name] = total.get(record.name, 0.0) + seconds
        return {"seconds": to_json(total)}


def optimize(model_path: Path, settings: OptimizeSettings, into: Path) -> Optimized:
    """Optimize a model and save it as ``into``/``model.onnx``; same bytes for the same input.

    A pass works on a copy. The copy is dropped, and the reason recorded, where the pass raises, changes the inputs, the
    outputs or an opset, brings in a domain that the model didn't use, or leaves a model that is less sound than before.
    Raises ``InputError`` for a model that can't be read or is invalid, ``UsageError`` for an unknown pass.
    """
    with guard.rare_collection():
        return _optimize(model_path, settings, into)


def _optimize(model_path: Path, settings: OptimizeSettings, into: Path) -> Optimized:
    model = _loaded(model_path)
    sound = Soundness.of(model, str(model_path))
    passes, broken = _load(settings)
    nodes_before = _count(model)
    records: list[PassRecord] = []
    seconds: list[float] = []
    seen = [fingerprint(model)]
    settled, number = False, 0
    idle: dict[str, PassRecord] = {}  # the passes that found nothing in the model as it is now
    while not settled and number < settings.max_rounds:
        number += 1
        for name, rewrite in passes:
            start = time.perf_counter()
            if name in idle:  # it would look at the same model again and find the same
                record = replace(idle[name], round=number)
            else:
                rewritten, record = _apply(model, name, rewrite, number, sound)
                idle = {**idle, name: record} if rewritten is model else {}
                model = rewritten
            seconds.append(time.perf_counter() - start)
            records.append(record)
        mark = fingerprint(model)
        settled = mark == seen[-1]
        if mark in seen:
            break  # settled, or the passes undo each other's work and more rounds would go in circles
        seen.append(mark)
    _write(model, sound, into / MAIN)
    return Optimized(tuple(records), nodes_before, _count(model), number, settled, broken, tuple(seconds))


def _loaded(path: Path) -> ir.Model:
    import onnx_ir as ir

    model = graph.load(path)
    tensors = [value.const_value for value in model.graph.initializers.values()]
    if sum(tensor.nbytes for tensor in tensors if tensor is not None) <= IN_MEMORY_BYTES:
        # passes make views of weights, and a mapped file can't be closed while there are any
        ir.external_data.load_to_model(model)
    return model


def _load(settings: OptimizeSettings) -> tuple[list[tuple[str, Pass]], tuple[Declined, ...]]:
    wanted = settings.passes or registry.names("passes")
    for name in settings.skip:
        if name not in registry.names("passes"):
            registry.load("passes", name)  # raises, with the nearest name
    loaded: dict[str, Pass] = {}
    broken: list[Declined] = []
    for name in wanted:
        if name in settings.skip:
            continue
        try:
            loaded[name] = cast(Pass, registry.load("passes", name))
        except MissingError as error:
            if settings.passes:
                raise
            broken.append(Declined(name, error.what))
    return in_order(loaded), tuple(broken)


def _apply(model: ir.Model, name: str, rewrite: Pass, number: int, sound: Soundness) -> tuple[ir.Model, PassRecord]:
    before = _count(model)
    tensors = [value.const_value for value in model.graph.initializers.values()]
    weights = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    candidate = model.clone()
    undone = ""
    changes: tuple[str, ...] = ()
    declined: tuple[Declined, ...] = ()
    known = source_lines.lines(graph.all_nodes(candidate))
    try:
        with guard.limited_memory(guard.EXTRA_BYTES + 4 * weights):
            result = rewrite.run(candidate)
        if known and result.modified:
            source_lines.inherit(graph.all_nodes(candidate), known)
        changes, declined = result.changes, result.declined
        if result.modified:
            undone = sound.complaint(candidate)
    except Exception as error:  # a pass, maybe a third party's, meets arbitrary graphs: what it raises is recorded
        undone = f"{type(error).__name__}: {graph.first_line(error)}"
    kept = candidate if changes and not undone else model
    record = PassRecord(
        name, rewrite.PHASE, number, len(changes), changes[:EXAMPLES], declined, undone, before, _count(kept)
    )
    return kept, record


def _count(model: ir.Model) -> int:
    return sum(1 for _ in model.graph.all_nodes()) + sum(1 for f in model.functions.values() for _ in f.all_nodes())


def _write(model: ir.Model, sound: Soundness, path: Path) -> None:
    graph.tidy(model)
    if complaint := sound.complaint(model):
        raise PenstockError(
            "invalid-result", f"the optimized model is invalid: {complaint}", where=str(path),
            do="leave passes out with --skip, and report this with the model",
        )  # fmt: skip
    try:
        graph.save(model, path)
    except (ValueError, TypeError) as error:
        what = f"the model can't be written: {graph.first_line(error)}"
        raise InputError("unwritable-model", what, where=str(path), do="check it with onnx.checker") from error
