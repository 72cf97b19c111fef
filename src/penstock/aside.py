"""Aside: a session of a runtime that lives in this Python, opened in a process of its own.

Native code may end its process, a user's module may call ``os._exit``, a run may never end. Whoever opens many
deployments one after the other opens them aside: what happens to one is then an error of that one alone. Runtimes with
an environment of their own, and browsers, are in another process anyway.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from penstock import kept, precheck, registry
from penstock.backends import Loadable, Session
from penstock.deployment import Deployment
from penstock.errors import InputError
from penstock.far import FarSession
from penstock.jsonable import Json, from_json, to_json
from penstock.measures import Runnable
from penstock.rehearsal import PATIENCE

if TYPE_CHECKING:
    import numpy as np

_TARGET = "penstock.aside:open_there"


def opened(runnable: Runnable, *, run_seconds: float | None = None) -> Session:
    """Load a deployment in a process of its own; a run may take ``run_seconds``, or as long as loading it.

    Raises what :meth:`penstock.measures.Runnable.open` raises, ``WorkerCrash`` where the process dies, and
    ``WorkerTimeout`` where loading takes longer than a rehearsal may; a run raises the same.
    """
    backend = registry.load("backends", runnable.deployment.backend)
    if getattr(backend, "ENVIRONMENT", ""):
        return runnable.open()
    seconds = PATIENCE * precheck.settings().session_seconds
    model = runnable.model
    argument: dict[str, Json] = {"path": str(model.path or ""), "source": model.source, "weights": model.weights}
    argument |= {"libraries": [*model.libraries], "dynamic_batch": runnable.dynamic_batch}
    argument |= {"deployment": to_json(runnable.deployment), "limits": to_json(precheck.settings())}
    argument |= {"modules": [*sys.path]}  # a user's own module finds there what it finds here
    return FarSession(runnable.deployment.backend, Path(sys.executable), _TARGET, argument, open_seconds=seconds,
                      run_seconds=run_seconds or seconds, environ={registry.INSIDE: "1"})  # fmt: skip


@contextlib.contextmanager
def one_process() -> Iterator[None]:
    """Let sessions that are opened one after the other share a process, for as long as it does nothing wrong."""

    def ours(key: Hashable) -> bool:
        return isinstance(key, tuple) and _TARGET in key

    with kept.keeping(ours):
        yield


# -- in the process apart ----------------------------------------------------------------------------------------------


def open_there(argument: Json) -> _Held:
    """Load it: the far side."""
    asked = cast("dict[str, Json]", argument)
    sys.path[:] = cast("list[str]", asked["modules"])
    path, libraries = str(asked["path"]), cast("list[str]", asked["libraries"])
    model = Loadable(Path(path) if path else None, str(asked["source"]), str(asked["weights"]), tuple(libraries))
    runnable = Runnable(from_json(Deployment, asked["deployment"]), model, bool(asked["dynamic_batch"]))
    return _Held(runnable, from_json(precheck.CheckSettings, asked["limits"]))


class _Held:
    """A session under the limits of the process that asked for it."""

    def __init__(self, runnable: Runnable, limits: precheck.CheckSettings) -> None:
        self._limits, self._name = limits, runnable.deployment.backend
        with precheck.limits(limits):
            self._session = runnable.open()

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run one batch."""
        with precheck.limits(self._limits):
            found = self._session.run(feeds)
        if others := [type(one).__name__ for one in found if not hasattr(one, "dtype")]:
            what = f"{self._name}: an output of the model is a {others[0]}, and only tensors go to another process"
            raise InputError("run-failed", what)
        return found

    def actual(self) -> Mapping[str, Json]:
        """Tell what runs."""
        with precheck.limits(self._limits):
            return self._session.actual()

    def close(self) -> None:
        """Drop the session."""
        self._session.close()
