"""Rehearsal: a third party's backend or pass first does its work in a process of its own.

One that raises is caught where it is called. One that ends its process (``os._exit``, a fault in native code) or never
comes back would take the whole build along; here it is a reason to refuse one deployment, or to leave out one pass.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from penstock import handover, precheck, registry, store, worker
from penstock.backends import Backend, Loadable
from penstock.deployment import Deployment
from penstock.errors import InputError, PenstockError
from penstock.jsonable import Json, from_json, to_json

if TYPE_CHECKING:
    import numpy as np

PATIENCE = 10  # times the limit of a trial's session: a runtime may compile for minutes


def rehearse(model: Loadable, deployment: Deployment, runs: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Load a deployment and run it in a process of its own; each of ``runs`` maps input names to arrays.

    It runs as many of them as it does within the limit of a trial's session, the first one in any case.

    Raises ``InputError`` where that process died or took too long. What the backend raises is left to the real run.
    """
    seconds = PATIENCE * precheck.settings().session_seconds
    with store.scratch() as work:
        argument: dict[str, Json] = {"path": str(model.path or ""), "source": model.source, "weights": model.weights}
        argument |= {"libraries": [*model.libraries], "deployment": to_json(deployment)}
        argument |= {"feeds": handover.save(runs, work), "seconds": seconds / PATIENCE}
        try:
            worker.call("penstock.rehearsal:serve", argument, timeout_s=seconds)
        except worker.WorkerTimeout as error:
            what = f"the backend {deployment.backend!r} took more than {seconds:g} s to load the model and run it"
            do = "run this model on another backend; if it is only slow, raise [check] session_seconds"
            raise InputError("runtime-refuses", what, where=deployment.name, do=do) from error
        except worker.WorkerCrash as error:
            what = f"the backend {deployment.backend!r} took its process down: {error.what}"
            do = "run this model on another backend, or update the plug-in"
            raise InputError("runtime-refuses", what, where=deployment.name, do=do) from error


def serve(argument: Json) -> bool:
    """Load and run: the worker's side. Return whether it went well."""
    asked = cast("dict[str, Json]", argument)
    deployment = from_json(Deployment, asked["deployment"])
    path, libraries = str(asked["path"]), cast("list[str]", asked["libraries"])
    model = Loadable(Path(path) if path else None, str(asked["source"]), str(asked["weights"]), tuple(libraries))
    began = time.monotonic()
    try:
        backend = cast(Backend, registry.load("backends", deployment.backend))
        backend.facts()
        session = backend.load(model, deployment)
        for feeds in handover.Saved(asked["feeds"]):
            session.run(feeds)
            if time.monotonic() - began > float(cast(float, asked["seconds"])):
                break
        session.close()
    except Exception:  # told where the build itself calls it
        return False
    return True


def rehearse_passes(model: Path, names: Sequence[str]) -> dict[str, str]:
    """Run each of these passes alone on the model, in a process of its own; return why which can't be let near it.

    In a process that is such a rehearsal already, there is nothing to find out.
    """
    if os.environ.get(registry.INSIDE):
        return {}
    found = {}
    seconds = PATIENCE * precheck.settings().session_seconds
    for name in names:
        argument: dict[str, Json] = {"model": str(model.resolve()), "pass": name}
        try:
            worker.call("penstock.rehearsal:serve_pass", argument, timeout_s=seconds)
        except worker.WorkerTimeout:
            found[name] = f"it took more than {seconds:g} s and was stopped"
        except worker.WorkerCrash as error:
            if error.id == "worker-crash":  # what it raises is told where it is called
                found[name] = f"it took its process down: {error.what}"
        except PenstockError:  # the model's own fault, or a pass that doesn't load
            continue
    return found


def serve_pass(argument: Json) -> bool:
    """Run one pass: the worker's side."""
    from penstock.stages.optimize import OptimizeSettings, optimize

    os.environ[registry.INSIDE] = "1"
    asked = cast("dict[str, str]", argument)
    with store.scratch() as work:
        optimize(Path(asked["model"]), OptimizeSettings(passes=(asked["pass"],), proof=False), work)
    return True
