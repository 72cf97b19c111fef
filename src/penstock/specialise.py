"""Rewrite a model for one runtime: its own offline optimizer, run until nothing changes any more.

One run of ONNX Runtime's is no fixpoint: its result, optimized again, gets better. What it saves may not load again or
want a new input, so the result is held against what went in, and refused where it isn't the same interface.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from penstock import graph, store, worker
from penstock.errors import InputError, MissingError, PenstockError
from penstock.jsonable import Json, from_json, to_json

KEY = "penstock.runtime"  # in the model's metadata: the runtime that it is for
MOST_RUNS = 8
SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Specialised:
    """How often the runtime's optimizer ran, the nodes after each run, and why it wasn't used (else empty)."""

    runtime: str
    nodes: tuple[int, ...]
    refused: str


def specialise(model: Path, runtime: str) -> Specialised:
    """Rewrite the file ``model`` in place for a runtime, in a process of its own; leave it where that isn't right.

    Raises ``MissingError`` where the runtime can't run here.
    """
    with store.scratch() as work:
        argument: Json = {"model": str(model.resolve()), "work": str(work)}
        try:
            answer = from_json(Specialised, worker.call("penstock.specialise:serve", argument, timeout_s=SECONDS))
        except MissingError:
            raise  # the runtime isn't here at all
        except PenstockError as error:
            return Specialised(runtime, (), error.what)
        if answer.refused or not answer.nodes:
            return answer
        before, after = graph.load(model), graph.load(work / "final.onnx")
        if graph.signature(before) != graph.signature(after):
            return Specialised(runtime, answer.nodes, "it has other inputs or outputs afterwards")
        graph.tidy(after)
        after.metadata_props[KEY] = runtime
        graph.save(after, model)
    return answer


def serve(argument: Json) -> Json:
    """Run ONNX Runtime's optimizer to its fixpoint: the worker's side."""
    from penstock.backends import onnxruntime as backend
    from penstock.rewriting.run import count

    asked = cast("dict[str, str]", argument)
    source, work = Path(asked["model"]), Path(asked["work"])
    nodes = [count(graph.load(source))]
    for number in range(MOST_RUNS):
        into = work / f"{number}.onnx"
        try:
            backend.fuse_offline(source, into)
            nodes.append(count(graph.load(into)))
        except InputError as error:
            return to_json(Specialised("onnxruntime", tuple(nodes[1:]), error.what))
        store.copy_file(into, work / "final.onnx")
        source = into
        if nodes[-1] == nodes[-2]:
            break
    return to_json(Specialised("onnxruntime", tuple(nodes[1:]), ""))
