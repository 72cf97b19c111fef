"""The memory of one deployment, taken in a process of its own: in a shared one, runtimes hide each other's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from penstock import worker
from penstock.backends import Backend, Loadable
from penstock.deployment import Deployment
from penstock.errors import PenstockError
from penstock.jsonable import Json, from_json, to_json
from penstock.timing.figures import Memory
from penstock.timing.rounds import reason

if TYPE_CHECKING:
    import numpy as np


def footprint(
    deployment: Deployment, model: Loadable, feeds: Mapping[str, np.ndarray], *, timeout_s: float
) -> Memory:  # fmt: skip
    """Load and run a deployment once in a process of its own; return its memory, or the reason why there is none.

    The inputs are zeros of the shapes and dtypes of ``feeds``: memory doesn't depend on the values.
    """
    argument: Json = {
        "deployment": to_json(deployment),
        "path": None if model.path is None else str(model.path),
        "source": model.source,
        "weights": model.weights,
        "libraries": list(model.libraries),
        "feeds": {name: {"dtype": array.dtype.str, "shape": list(array.shape)} for name, array in feeds.items()},
    }
    try:
        found = worker.call("penstock.timing.footprint:measure", argument, timeout_s=timeout_s)
        return from_json(Memory, found)
    except PenstockError as error:
        return Memory(reason=reason(error))


def measure(argument: Json) -> Json:
    """Do the child's part: import the runtime, load, run once, and tell the resident memory after each."""
    import numpy as np

    from penstock import registry

    asked = cast("dict[str, Json]", argument)
    deployment = from_json(Deployment, asked["deployment"])
    path = None if asked["path"] is None else Path(str(asked["path"]))
    libraries = tuple(cast("list[str]", asked["libraries"]))
    model = Loadable(path, str(asked["source"]), str(asked["weights"]), libraries)
    feeds = {
        name: np.zeros(cast("list[int]", spec["shape"]), dtype=str(spec["dtype"]))
        for name, spec in cast("dict[str, dict[str, Json]]", asked["feeds"]).items()
    }
    backend = cast(Backend, registry.load("backends", deployment.backend))
    backend.facts()  # imports the runtime, whose own size isn't the model's
    imported_mb = _resident_mb("now")
    session = backend.load(model, deployment)
    where: int | str = getattr(session, "process_id", "self")
    if where != "self":
        imported_mb = None  # the runtime is in another process, which has the model from its start
    loaded_mb = _resident_mb("now", where)
    session.run(feeds)
    found = Memory(imported_mb, loaded_mb, _resident_mb("now", where), _resident_mb("peak", where))
    if where != "self":
        session.close()
    return to_json(found)


def _resident_mb(which: str, process: int | str = "self") -> float | None:
    value = worker.memory(process)[which]
    return None if value is None else value / 1e6
