"""Trial: the first session of an unknown model, in a process of its own with limits on time and memory.

A model that loops for ever or asks for more memory than there is ends here as a message, before the same model is
loaded in this process. Only models that come as files are tried: a user's own module runs in the user's own framework.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from penstock import custom_domains, handover, precheck, store, worker
from penstock.errors import InputError
from penstock.jsonable import Json

if TYPE_CHECKING:
    import numpy as np

    from penstock.backends import Session

SIZES = (64, 8, 512, 1, 128, 256)  # tried in this order for every dynamic axis but the batch
MOST_TRIES = 300


def run(model: Path, runs: Sequence[Mapping[str, np.ndarray]], where: str) -> dict[str, Json]:
    """Load the model with the runtime's optimizations off and run each of ``runs``; return seconds and peak memory.

    A model may behave on one sample and never end on two, or on the next one, so ``runs`` should hold a batch of each
    size that this process will run, and the samples themselves where they are few. What they leave out is run
    unguarded. Each run may take as long as a session may. What fails on a later run than the first is left to the
    stage that runs it.

    Raises ``WorkerTimeout``, ``WorkerMemory`` or ``WorkerCrash`` where it had to be stopped or died, ``InputError``
    where the runtime refuses the model or fails on the inputs; ``where`` is what the user called the model.
    """
    held = precheck.settings()
    with store.scratch() as work:
        argument: dict[str, Json] = {"model": str(model.resolve()), "feeds": handover.save(runs, work)}
        argument |= {"seconds": held.session_seconds}
        argument["libraries"] = list(custom_domains.libraries(model))
        try:
            answer = worker.call(
                "penstock.trial:serve", argument,
                timeout_s=held.session_seconds * (len(runs) + 1), memory_bytes=held.session_memory_bytes,
            )  # fmt: skip
        except worker.WorkerTimeout as error:
            what = f"the work took more than {held.session_seconds:g} s and was stopped"
            raise worker.WorkerTimeout(error.id, what, where=where, do=_cure(error)) from error
        except InputError as error:
            raise type(error)(error.id, error.what, where=where, do=_cure(error)) from error
    return cast("dict[str, Json]", answer)


def survive(model: Path, runs: Sequence[Mapping[str, np.ndarray]], where: str) -> None:
    """Raise ``WorkerTimeout``, ``WorkerMemory`` or ``WorkerCrash`` where a run of the model doesn't end well.

    A model that the trial's runtime refuses is left to the runtime that it is meant for.
    """
    try:
        run(model, runs, where)
    except (worker.WorkerTimeout, worker.WorkerMemory, worker.WorkerCrash):
        raise
    except InputError:
        return


def _cure(error: InputError) -> str:
    if isinstance(error, worker.WorkerTimeout):
        return "suspect a loop without an end; if the model is only slow, raise [check] session_seconds"
    if isinstance(error, worker.WorkerMemory):
        return "suspect a few bytes that ask for gigabytes; if the model is only large, raise session_memory_bytes"
    return error.do


def find_sizes(model: Path, seed: int) -> dict[str, int]:
    """Try sizes for the dynamic axes of made-up inputs, in a process of its own; return the first that the model runs.

    Empty where none of them does, or where there is nothing to choose.
    """
    held = precheck.settings()
    argument: dict[str, Json] = {"model": str(model.resolve()), "seed": seed}
    argument["libraries"] = list(custom_domains.libraries(model))
    try:
        answer = worker.call(
            "penstock.trial:serve_sizes", argument,
            timeout_s=held.session_seconds, memory_bytes=held.session_memory_bytes,
        )  # fmt: skip
    except InputError:
        return {}
    return {name: int(cast(int, size)) for name, size in cast("dict[str, Json]", answer).items()}


def _open(asked: dict[str, Json]) -> Session:
    from penstock import registry
    from penstock.backends import Backend, Loadable
    from penstock.deployment import Deployment

    model = Loadable(Path(str(asked["model"])), libraries=tuple(cast("list[str]", asked.get("libraries", []))))
    plain = Deployment("trial", "", "", "fp32", "onnxruntime", options={"optimization": "disabled"})
    return cast(Backend, registry.load("backends", "onnxruntime")).load(model, plain)


def serve(argument: Json) -> dict[str, Json]:
    """Run the model on each of the inputs: the worker's side of :func:`run`."""
    asked = cast("dict[str, Json]", argument)
    seconds, count = float(cast(float, asked["seconds"])), 0
    began = time.perf_counter()
    worker.alarm(seconds)  # from outside only the sum could be watched
    session = _open(asked)
    for feeds in handover.Saved(asked["feeds"]):
        if count:
            worker.alarm(seconds)
        try:
            session.run(feeds)
        except InputError:
            if count == 0:
                raise
        count += 1
    worker.alarm(0)
    session.close()
    return {"seconds": time.perf_counter() - began, "peak_bytes": worker.memory()["peak"], "runs": count}


def serve_sizes(argument: Json) -> dict[str, int]:
    """Try sizes until the model runs: the worker's side of :func:`find_sizes`."""
    from penstock import graph, inputs

    asked = cast("dict[str, Json]", argument)
    loaded = graph.load(Path(str(asked["model"])))
    signature, bounds = graph.signature(loaded), inputs.integer_bounds(loaded)
    axes = inputs.free_axes(signature)
    batch = signature.fixed_batch or 1
    session = _open(asked)
    for chosen in itertools.islice(itertools.product(dict.fromkeys((*SIZES, batch)), repeat=len(axes)), MOST_TRIES):
        sizes = dict(zip(axes, chosen, strict=True))
        feeds = inputs.seeded(signature, batch=batch, seed=int(cast(int, asked["seed"])), sizes=sizes, bounds=bounds)
        try:
            session.run(feeds)
        except InputError:
            continue
        return sizes
    return {}
