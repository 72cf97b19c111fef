"""Bisecting: two backends, or two models of one source, made ready for the search of the node where they part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from penstock import asked, graph, running, trial
from penstock.data import DataSettings
from penstock.errors import InputError, UsageError
from penstock.jsonable import Json
from penstock.measures import Runnable
from penstock.progress import SILENT, Progress
from penstock.stages import _bisect_integers
from penstock.stages import bisect as stage
from penstock.stages._bisect_cuts import Side
from penstock.stages.bisect import Found

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir


@dataclass(frozen=True, slots=True)
class Ran:
    """A side of a comparison: what it was asked for, what it says that it ran, and what it ran instead; "" for none."""

    label: str
    asked: Mapping[str, Json]
    actual: Mapping[str, Json]
    fell_back: str


SAMPLES = 4  # of one batch: a difference that none of them shows isn't looked for


def bisect(
    model: str | Path, other: str | Path | None = None, *, backend: str = "onnxruntime", against: str = "onnxruntime",
    bound: float | None = None, data: DataSettings | None = None, seed: int = 0, into: Path | None = None,
    progress: Progress = SILENT, ran: list[Ran] | None = None,
) -> Found | None:  # fmt: skip
    """Find the first node where ``model`` on ``backend`` and ``other``, or itself, on ``against`` part.

    ``ran`` is given what each side was asked for and what it says that it ran, of the whole model.

    Returns ``None`` where they agree. Raises ``InputError``, ``UsageError``, and ``MissingError`` for a backend that
    can't run here.
    """
    if other is None and backend == against:
        raise UsageError("bad-setting", f"the model would be compared with itself on {backend}", where="--against",
                         do="name another backend, or another model")  # fmt: skip
    path, second = Path(model), Path(other if other is not None else model)
    feeds = running.role_feeds(path, data or DataSettings(), seed).golden.first(SAMPLES)
    for one in dict.fromkeys((path, second)):
        trial.survive(one, [feeds], str(one))
    # of two of which one alone has operators on integers, the tensors of that one have no counterparts as they are
    whole = [_bisect_integers.on_integers(graph.load(one, weights=False)) for one in (path, second)]
    sides = [
        _side(one, on, f"{one.name} on {on}", opened=integers and not all(whole))
        for one, on, integers in zip((path, second), (backend, against), whole, strict=True)
    ]
    if other is not None:
        _need_alike(sides[0].model, sides[1].model, str(second))
    if ran is not None:
        ran += [_ran(side, one, feeds) for side, one in zip(sides, (path, second), strict=True)]
    return stage.bisect(sides[0], sides[1], feeds, progress, bound=bound, into=into)


def _ran(side: Side, path: Path, feeds: Mapping[str, np.ndarray]) -> Ran:
    """Run a whole model once, and read what ran. Where it can't be, nothing is known: a part of it may be run."""
    wanted = asked.asked_of(side.deployment)
    try:
        session = Runnable(side.deployment, running.loadable(path), True).open()
        try:
            session.run(feeds)
            actual = dict(session.actual())
        finally:
            session.close()
    except InputError as error:
        return Ran(side.label, wanted, {"problem": error.what}, "")
    return Ran(side.label, wanted, actual, asked.fallback(side.deployment, actual))


def _side(path: Path, backend: str, label: str, *, opened: bool) -> Side:
    runnable = running.runnables_of(path, backend, 1, label)[0]
    model = graph.load(path)
    graph.inline(model)
    # a weight that is an input too, as files before IR version 4 have them, is a weight: nobody gives it
    model.graph.inputs[:] = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    if opened:
        _bisect_integers.open_up(model)
    return Side(label, model, runnable.deployment, runnable.model.libraries)


def _need_alike(one: ir.Model, other: ir.Model, where: str) -> None:
    """Raise ``InputError`` where two models have other inputs, or no tensor of one name."""
    if graph.signature(one).inputs != graph.signature(other).inputs:
        raise InputError("signatures-differ", "the two models have other inputs", where=where,
                         do="compare models of one source")  # fmt: skip
    outputs = [{spec.name for spec in graph.signature(model).outputs} for model in (one, other)]
    if outputs[0] != outputs[1]:
        apart = sorted(outputs[0] ^ outputs[1])[0]
        raise InputError("signatures-differ", f"only one of the two models has the output {apart!r}", where=where,
                         do="compare models of one source")  # fmt: skip
    names = [{str(v.name) for node in model.graph for v in node.outputs} for model in (one, other)]
    if not names[0] & names[1]:
        raise InputError("signatures-differ", "no tensor of the two models goes by the same name", where=where,
                         do="compare models of one source")  # fmt: skip
