"""Far: a session whose runtime lives in a Python of its own, driven over a pipe.

Runtimes clash: two wheels of ONNX Runtime overwrite each other, another brings a library of the same name. Such a one
has an environment of its own (:mod:`penstock.environment`), and its backend two sides in one file: ``load`` starts that
environment's Python with :class:`FarSession`, which calls the file's other function there. Of this package that Python
needs nothing but what the file imports: it is found by its path, not by its neighbours.

A crash there, or a run that doesn't end, is an error of this one session.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, cast

from penstock import frames, graph, kept, worker
from penstock.backends import NodeTime
from penstock.errors import InputError, MissingError, PenstockError
from penstock.jsonable import Json, to_json
from penstock.worker import WorkerCrash, WorkerTimeout

if TYPE_CHECKING:
    import numpy as np

LAST_LINES = 20  # of standard error, kept for a message
LINE_BYTES = 2000
CLOSE_SECONDS = 5.0
# finds this package by its path alone: what lies beside it belongs to another environment
_BOOT = """
import importlib.util as find, sys
home, target = sys.argv[1:3]
spec = find.spec_from_file_location("penstock", home + "/__init__.py", submodule_search_locations=[home])
module = find.module_from_spec(spec)
sys.modules["penstock"] = module
spec.loader.exec_module(module)
from penstock import far
far.serve(target)
"""


class Opened(Protocol):
    """What the far side's function returns: a session as a backend's."""

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run one batch."""

    def actual(self) -> Mapping[str, Json]:
        """Tell what runs."""

    def close(self) -> None:
        """Let go of it."""


class FarSession:
    """The near side: a session like any other, and :meth:`timed` for a clock that stands beside the runtime.

    ``process_id`` is the process that holds the model.
    """

    def __init__(
        self, runtime: str, python: Path, target: str, argument: Json, *, open_seconds: float, run_seconds: float,
        environ: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """Start ``python`` and let ``target`` ("module:function") open a session with ``argument`` there.

        ``runtime`` is what messages call it. Raises what the function raises, ``WorkerTimeout`` or ``WorkerCrash``.
        """
        self._runtime, self._run_seconds = runtime, run_seconds
        self._key = ("far", python, target, *sorted((environ or {}).items()))
        waiting = cast("FarProcess | None", kept.take(self._key))
        if waiting is not None and not waiting.alive():
            waiting.close()
            waiting = None
        self._far: FarProcess | None = waiting or FarProcess(runtime, python, target, environ)
        self.process_id = self._far.process_id
        try:
            self._ask({"do": "open", "argument": argument}, (), open_seconds)
        except BaseException:
            self.close()
            raise

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run one batch; the arrays go over the pipe. See :class:`penstock.backends.Session`."""
        return self._ask({"do": "run", "names": [*feeds]}, [*feeds.values()], self._run_seconds)[1]

    def timed(self, feeds: Mapping[str, np.ndarray], calls: int) -> list[int]:
        """Run so many times there, and return how many nanoseconds each took without the way there and back."""
        told, _ = self._ask({"do": "time", "names": [*feeds], "calls": calls}, [*feeds.values()],
                            self._run_seconds * max(calls, 1))  # fmt: skip
        return cast("list[int]", told)

    def nodes(self, feeds: Mapping[str, np.ndarray], runs: int) -> list[NodeTime]:
        """Time the nodes there; none where the far side has no times of them."""
        told, _ = self._ask({"do": "nodes", "names": [*feeds], "calls": runs}, [*feeds.values()],
                            self._run_seconds * (runs + 2))  # fmt: skip
        return [NodeTime(**cast("dict[str, Any]", one)) for one in cast("list[Json]", told)]

    def actual(self) -> Mapping[str, Json]:
        """Tell what the far side tells."""
        return cast("dict[str, Json]", self._ask({"do": "actual"}, (), self._run_seconds)[0])

    def close(self) -> None:
        """End the process, and those that it started, or keep it for the next (:mod:`penstock.kept`); twice is once."""
        process, self._far = self._far, None
        if process is not None and not (process.emptied() and kept.give(self._key, process)):
            process.close()

    def _ask(self, told: Json, arrays: Sequence[np.ndarray], seconds: float) -> tuple[Json, list[np.ndarray]]:
        if self._far is None:
            raise WorkerCrash("worker-crash", f"{self._runtime} is gone: it was closed")
        return self._far.ask(told, arrays, seconds)


class FarProcess:
    """A Python that opens one session after the other; one that died, or was stopped, stays gone."""

    def __init__(self, runtime: str, python: Path, target: str, environ: Mapping[str, str] | None) -> None:
        self._runtime, self._gone, self._late = runtime, "", False
        # another environment is left alone; this one's packages may be the user's own, or on PYTHONPATH
        apart = "-P" if str(python) == sys.executable else "-I"
        command = [str(python), apart, "-c", _BOOT, str(Path(__file__).parent), target]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
                env={**os.environ, **(environ or {})},
            )  # fmt: skip
        except OSError as error:
            what = f"the Python of {runtime} can't be started: {error.strerror}"
            raise MissingError("environment-missing", what, where=str(python),
                               do="penstock env list shows the environments that are there") from error  # fmt: skip
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    @property
    def process_id(self) -> int:
        """The process that holds the model."""
        return self._process.pid

    def alive(self) -> bool:
        """Whether the process is there and was not given up."""
        return self._process.poll() is None and not self._gone

    def emptied(self) -> bool:
        """Let go of the session there; whether the process is fit for another."""
        if not self.alive():
            return False
        with contextlib.suppress(PenstockError):
            self.ask({"do": "close"}, (), CLOSE_SECONDS)
        return not self._gone

    def close(self) -> None:
        """End the process, and those that it started; twice is once."""
        if self.alive():
            with contextlib.suppress(OSError, ValueError):
                cast("IO[bytes]", self._process.stdin).close()  # there is nothing more to come
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(CLOSE_SECONDS)
        self._kill()
        self._gone = self._gone or "it was closed"
        self._listener.join(timeout=CLOSE_SECONDS)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            with contextlib.suppress(OSError, ValueError):
                cast("IO[bytes]", pipe).close()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _listen(self) -> None:
        for line in iter(lambda: cast("IO[bytes]", self._process.stderr).readline(LINE_BYTES), b""):
            if text := line.decode(errors="replace").rstrip():
                self._lines.append(text)

    def ask(self, told: Json, arrays: Sequence[np.ndarray], seconds: float) -> tuple[Json, list[np.ndarray]]:
        """Send a request and read its answer; the process is killed where that takes longer than ``seconds``."""
        if self._gone:
            raise WorkerCrash("worker-crash", f"{self._runtime} is gone: {self._gone}")
        watch = threading.Timer(seconds, self._stop)
        watch.daemon = True
        watch.start()
        try:
            for piece in frames.packed(told, arrays):
                cast("IO[bytes]", self._process.stdin).write(piece)
            cast("IO[bytes]", self._process.stdin).flush()
            answer, found = frames.unpacked(self._read)
        except (OSError, EOFError, ValueError) as error:
            raise self._ended(seconds) from error
        except BaseException:  # Ctrl-C: the answer to this request would be taken for that to the next
            self._gone = "its work was interrupted"
            self._kill()
            raise
        finally:
            watch.cancel()
        reply = cast("dict[str, Json]", answer)
        if "error" in reply:
            raise worker.rebuilt(cast("dict[str, Json]", reply["error"]))
        if "fault" in reply:
            raise InputError("run-failed", f"{self._runtime} can't run the model: {reply['fault']}")
        return reply.get("result"), found

    def _read(self, count: int) -> bytes:
        data = cast("IO[bytes]", self._process.stdout).read(count)
        if len(data) < count:
            raise EOFError
        return data

    def _stop(self) -> None:
        self._late = True
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _ended(self, seconds: float) -> InputError:
        """Say why the process gives no answer."""
        self._kill()
        self._listener.join(timeout=CLOSE_SECONDS)
        if self._late:
            self._gone = f"it took more than {seconds:g} s and was stopped"
            do = "run this model on another backend; if it is only slow, raise [check] session_seconds"
            return WorkerTimeout("worker-timeout", f"{self._runtime}: {self._gone}", do=do)
        code = self._process.returncode
        how = f"was ended by {worker.signal_name(-code)}" if code < 0 else f"ended with code {code} and no answer"
        self._gone = f"its process {how}"
        tail = "; its last words: " + " | ".join([*self._lines][-3:]) if self._lines else ""
        do = "run this model on another backend"
        return WorkerCrash("worker-crash", f"{self._runtime}: {self._gone}{tail}", do=do)


# -- the far side ------------------------------------------------------------------------------------------------------


def serve(target: str) -> None:
    """Answer requests on standard input until there are none."""
    worker.die_with_parent()
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a runtime prints isn't an answer
    source = sys.stdin.buffer
    session: Opened | None = None
    while True:
        try:
            told, arrays = frames.unpacked(lambda count: _exactly(source, count))
        except EOFError:
            break
        asked = cast("dict[str, Json]", told)
        try:
            if asked["do"] == "open":
                module, _, name = target.partition(":")
                session = getattr(importlib.import_module(module), name)(asked["argument"])
                reply: dict[str, Json] = {"result": None}
                found: Sequence[np.ndarray] = ()
            elif asked["do"] == "close":
                held, session = session, None
                if held is not None:
                    held.close()
                reply, found = {"result": None}, ()
            else:
                assert session is not None
                result, found = _done(session, asked, arrays)
                reply = {"result": result}
            pieces = frames.packed(reply, found)
        except PenstockError as error:
            pieces = frames.packed({"error": {**worker.packed(error)}})
        except Exception as error:  # a runtime's own
            traceback.print_exc()
            pieces = frames.packed({"fault": f"{type(error).__name__}: {graph.first_line(error)}"})
        for piece in pieces:
            out.write(piece)
        out.flush()
    with contextlib.suppress(Exception):
        kept.empty()
    os._exit(0)  # a runtime that dies or hangs while it tidies up has nothing to tell any more


def _exactly(source: IO[bytes], count: int) -> bytes:
    data = source.read(count)
    if len(data) < count:
        raise EOFError
    return data


def _done(
    session: Opened, asked: dict[str, Json], arrays: list[np.ndarray]
) -> tuple[Json, Sequence[np.ndarray]]:  # fmt: skip
    if asked["do"] == "actual":
        return dict(session.actual()), ()
    feeds = dict(zip(cast("list[str]", asked["names"]), arrays, strict=True))
    if asked["do"] == "time":
        spent: list[Json] = [*timed(lambda: session.run(feeds), int(cast(int, asked["calls"])))]
        return spent, ()
    if asked["do"] == "nodes":
        times = getattr(session, "nodes", None)
        found = [] if times is None else times(feeds, int(cast(int, asked["calls"])))
        return to_json(found), ()
    return None, session.run(feeds)


def timed(run: Callable[[], object], calls: int) -> list[int]:
    """Time each of so many calls, in nanoseconds."""
    from penstock.timing.rounds import collector_off

    spent = []
    with collector_off():
        for _ in range(calls):
            began = time.perf_counter_ns()
            run()
            spent.append(time.perf_counter_ns() - began)
    return spent
