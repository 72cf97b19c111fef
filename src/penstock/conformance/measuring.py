"""Run the suite on a backend: several processes beside each other, each test an error of its own at worst."""

from __future__ import annotations

import contextlib
import datetime as dt
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, cast

from penstock import kept, registry, store
from penstock.conformance import suite
from penstock.conformance.measured import Coverage, summed
from penstock.conformance.suite import Result
from penstock.errors import MissingError, PenstockError, UsageError
from penstock.far import FarSession
from penstock.jsonable import Json
from penstock.stages.verify import VerifySettings
from penstock.worker import WorkerCrash, WorkerTimeout

if TYPE_CHECKING:
    from penstock.backends import Backend

# what isn't measured by these tests, and why
LEFT_OUT = {
    "torch": "it runs modules of its framework, not .onnx files",
    "torch-compile": "it runs modules of its framework, not .onnx files",
}
OPTIONS: dict[str, dict[str, str]] = {"onnxruntime-webgpu": {"adapter": "software"}}  # is looked for last, otherwise
# why nothing was measured of others, as long as nothing was
UNMEASURED = {
    "onnxruntime-tensorrt": "TensorRT's library isn't in the registry that everything else comes from",
}
# the tests' bounds are for float32: of the largest value, what verify lets a runtime be off that computes in less
RELATIVE = {"openvino-bf16": VerifySettings().bf16_relative}
SECONDS = 120.0  # of one test; the first one of a process makes the suite before
TRIES = 2
THERE = "penstock.conformance.measuring:open_there"
Told = Callable[[int, int], None]


def measure(name: str, *, jobs: int = 1, only: Sequence[str] = (), told: Told = lambda done, of: None) -> Coverage:
    """Run all tests, or those of these names, and return what came of them.

    Raises ``UsageError`` for a backend that isn't measured, ``MissingError`` where it can't run here.
    """
    if name in LEFT_OUT:
        raise UsageError("bad-option", f"{name} isn't measured by node tests: {LEFT_OUT[name]}")
    backend = cast("Backend", registry.load("backends", name))
    if problem := backend.available():
        raise MissingError("backend-missing", f"{name} can't run here: {problem}")
    cases = [(at, case) for at, case in enumerate(suite.cases()) if not only or case.name in only]
    done: dict[str, Result] = {}

    def one(pair: tuple[int, suite.Case]) -> None:
        at, case = pair
        done[case.name] = _apart(name, at)
        told(len(done), len(cases))

    with ThreadPoolExecutor(jobs) as pool, kept.keeping():  # whose threads started what is kept
        for _ in pool.map(one, cases):
            pass
    facts = {
        key: value for key, value in backend.facts().items() if key in ("version", "browser_version", "compiler", "gpu")
    }
    operators = summed({case.name: case.operator for _, case in cases}, done)
    today = dt.date.today().isoformat()
    system = f"{platform.system()} {platform.machine()}"
    return Coverage(name, facts, suite.version(), today, system, operators)


def _apart(name: str, at: int) -> Result:
    """Run one test in another process, which goes on to the next unless this one kills it."""
    argument: Json = {"backend": name, "case": at}
    ended = Result("crashed")
    for _ in range(TRIES):  # a process that another test has damaged is no fault of this one
        try:
            session = FarSession("the test", Path(sys.executable), THERE, argument, open_seconds=SECONDS,
                                 run_seconds=SECONDS)  # fmt: skip
            try:
                answer = cast("Mapping[str, str]", session.actual())
            finally:
                session.close()
        except WorkerTimeout as error:
            return Result("hung", str(error.what))
        except WorkerCrash as error:
            ended = Result("crashed", str(error.what).removeprefix("the test: "))
        except PenstockError as error:
            return Result("failed", str(error.what))
        else:
            return Result(cast("suite.Kind", answer["kind"]), answer["reason"])
    return ended


# -- in the other process ----------------------------------------------------------------------------------------------

_STAYING = contextlib.ExitStack()  # what the backends' own processes are kept by, until this one ends


def open_there(argument: Json) -> Tested:
    """Run one test: the far side."""
    asked = cast("dict[str, Json]", argument)
    if not kept.wanted():
        _STAYING.enter_context(kept.keeping())
    name = str(asked["backend"])
    case = suite.cases()[int(cast(int, asked["case"]))]
    with store.scratch() as work:
        backend, relative = registry.load("backends", name), RELATIVE.get(name, 0.0)
        return Tested(suite.run(case, backend, name, work, OPTIONS.get(name), relative=relative))


class Tested:
    """A test that was run: what FarSession asks for of a session."""

    def __init__(self, result: Result) -> None:
        self._result = result

    def run(self, feeds: Mapping[str, object]) -> list[object]:
        """There is nothing more to run."""
        return []

    def actual(self) -> Mapping[str, Json]:
        """Tell what came of it."""
        return {"kind": self._result.kind, "reason": self._result.reason}

    def close(self) -> None:
        """There is nothing to let go of."""
