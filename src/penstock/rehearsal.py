"""Rehearsal: a third party's backend first loads and runs a deployment in a process of its own.

A backend that raises is caught where it is called. One that ends its process (``os._exit``, a fault in native code) or
never comes back would take the whole build along; here it is a reason to refuse one deployment.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from penstock import precheck, store, worker
from penstock.backends import Backend, Loadable
from penstock.deployment import Deployment
from penstock.errors import InputError
from penstock.jsonable import Json, from_json, to_json

if TYPE_CHECKING:
    import numpy as np

PATIENCE = 10  # times the limit of a trial's session: a runtime may compile for minutes


def rehearse(model: Loadable, deployment: Deployment, feeds: Mapping[str, np.ndarray]) -> None:
    """Load a deployment and run one batch in a process of its own; ``feeds`` maps input names to arrays.

    Raises ``InputError`` where that process died or took too long. What the backend raises is left to the real run.
    """
    from penstock.golden import pack

    seconds = PATIENCE * precheck.settings().session_seconds
    with store.scratch() as work:
        store.write_bytes(work / "feeds.npz", pack({str(i): array for i, array in enumerate(feeds.values())}))
        argument: dict[str, Json] = {"path": str(model.path or ""), "source": model.source, "weights": model.weights}
        argument |= {"libraries": [*model.libraries], "deployment": to_json(deployment)}
        argument |= {"feeds": str(work / "feeds.npz"), "names": [*feeds]}
        try:
            worker.call("penstock.rehearsal:serve", argument, timeout_s=seconds)
        except worker.WorkerTimeout as error:
            what = f"the backend {deployment.backend!r} took more than {seconds:g} s to load the model and run"
            do = "run this model on another backend; if it is only slow, raise [check] session_seconds"
            raise InputError("runtime-refuses", what, where=deployment.name, do=do) from error
        except worker.WorkerCrash as error:
            what = f"the backend {deployment.backend!r} took its process down: {error.what}"
            do = "run this model on another backend, or update the plug-in"
            raise InputError("runtime-refuses", what, where=deployment.name, do=do) from error


def serve(argument: Json) -> bool:
    """Load and run: the worker's side. Return whether it went well."""
    import numpy as np

    from penstock import registry

    asked = cast("dict[str, Json]", argument)
    deployment = from_json(Deployment, asked["deployment"])
    path, libraries = str(asked["path"]), cast("list[str]", asked["libraries"])
    model = Loadable(Path(path) if path else None, str(asked["source"]), str(asked["weights"]), tuple(libraries))
    with np.load(Path(str(asked["feeds"])), allow_pickle=False) as data:
        feeds = {name: data[str(i)] for i, name in enumerate(cast("list[str]", asked["names"]))}
    try:
        backend = cast(Backend, registry.load("backends", deployment.backend))
        backend.facts()
        session = backend.load(model, deployment)
        session.run(feeds)
        session.close()
    except Exception:  # told where the build itself calls it
        return False
    return True
