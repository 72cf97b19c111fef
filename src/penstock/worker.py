"""Run a function in a process of its own, with limits on time and memory, that can be killed.

The parent runs ``python -m penstock.worker``, writes one JSON request to its standard input and reads one JSON answer
from its standard output. In the child, file descriptor 1 is given to standard error before anything else runs, so that
a library that prints doesn't spoil the answer. Resident memory is watched from outside: a limit on the address space
breaks runtimes, which reserve far more than they use.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from typing import IO, cast

from penstock import deferred, errors, precheck
from penstock.errors import InputError, PenstockError
from penstock.jsonable import Json, from_json, to_json

POLL_S = 0.01
STDERR_LINES = 20
STDERR_LINE_BYTES = 2000


class WorkerTimeout(InputError):  # noqa: N818 (named for what happened)
    """The function took longer than it was allowed, and was killed."""


class WorkerMemory(InputError):  # noqa: N818
    """The function held more memory than it was allowed, and was killed."""


class WorkerCrash(InputError):  # noqa: N818
    """The process died, or the function raised what isn't a ``PenstockError``."""


def call(target: str, argument: Json, *, timeout_s: float, memory_bytes: int | None = None) -> Json:
    """Call ``target`` ("module:function") with one argument in a new process, and return its answer.

    Raises ``WorkerTimeout`` after ``timeout_s`` seconds, ``WorkerMemory`` when the process holds more than
    ``memory_bytes`` of resident memory (Linux; looked at every 10 ms, so a fast leak overshoots), ``WorkerCrash`` when
    it dies; a ``PenstockError`` raised by the function comes back as the same class. Whatever happens, the process
    and those it started are gone afterwards.
    """
    command = [sys.executable, "-P", "-m", "penstock.worker"]  # -P: a file in the current folder is no module of ours
    request = json.dumps(
        {"target": target, "argument": to_json(argument), "limits": to_json(precheck.settings())}
    ).encode()
    answer: list[bytes] = []
    last_lines: deque[str] = deque(maxlen=STDERR_LINES)
    threads: list[threading.Thread] = []
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        threads += [
            threading.Thread(target=_send, args=(process.stdin, request), daemon=True),
            threading.Thread(target=lambda: answer.append(cast("IO[bytes]", process.stdout).read()), daemon=True),
            threading.Thread(target=_keep_last, args=(process.stderr, last_lines), daemon=True),
        ]
        for thread in threads:
            thread.start()
        _watch(process, target, timeout_s, memory_bytes)
    finally:
        _kill(process)
        for thread in threads:
            thread.join(timeout=5.0)
        for pipe in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(OSError, ValueError):
                cast("IO[bytes]", pipe).close()
    return _open(b"".join(answer), process.returncode, target, list(last_lines))


def _watch(process: subprocess.Popen[bytes], target: str, timeout_s: float, memory_bytes: int | None) -> None:
    """Wait until the process has ended but is not yet reaped, so that its group's number is still its own."""
    deadline = time.monotonic() + timeout_s
    while not _ended(process):
        if time.monotonic() > deadline:
            raise WorkerTimeout(
                "worker-timeout",
                f"the work took more than {timeout_s:g} s and was stopped",
                where=target,
                do="allow it more time, or suspect the model: a loop without an end looks like this",
            )
        held = memory(process.pid)["peak"] if memory_bytes is not None else None
        if memory_bytes is not None and held is not None and held > memory_bytes:
            raise WorkerMemory(
                "worker-memory",
                f"the work held {held / 1e6:.0f} MB of memory, {memory_bytes / 1e6:.0f} MB are allowed",
                where=target,
                do="allow it more memory, or suspect the model: a few bytes can ask for gigabytes",
            )
        time.sleep(POLL_S)


def _ended(process: subprocess.Popen[bytes]) -> bool:
    if not hasattr(os, "waitid"):
        return process.poll() is not None
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def memory(pid: int | str = "self") -> dict[str, int | None]:
    """Return the resident memory of a process now and at its peak, in bytes; ``None`` where Linux doesn't tell."""
    found: dict[str, int | None] = {"now": None, "peak": None}
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:  # noqa: PTH123
        for line in file:
            if line.startswith("VmRSS:"):
                found["now"] = int(line.split()[1]) * 1024
            elif line.startswith("VmHWM:"):
                found["peak"] = int(line.split()[1]) * 1024
    return found


def _send(pipe: IO[bytes] | None, request: bytes) -> None:
    with contextlib.suppress(OSError, ValueError), cast("IO[bytes]", pipe) as file:  # it may die before it has read all
        file.write(request)


def _keep_last(pipe: IO[bytes] | None, lines: deque[str]) -> None:
    for line in iter(lambda: cast("IO[bytes]", pipe).readline(STDERR_LINE_BYTES), b""):
        if text := line.decode(errors="replace").rstrip():
            lines.append(text)


def _open(answer: bytes, code: int, target: str, last_lines: list[str]) -> Json:
    """Return the function's result, or raise what the answer says."""
    try:
        reply = json.loads(answer)
    except ValueError:
        reply = None
    if not isinstance(reply, dict) and code == -signal.SIGALRM:
        what, do = "a step of the work took longer than it may and was stopped", "allow it more time"
        raise WorkerTimeout("worker-timeout", what, where=target, do=do)
    if not isinstance(reply, dict):
        how = f"was ended by {signal_name(-code)}" if code < 0 else f"ended with code {code} and no answer"
        tail = "; its last words: " + " | ".join(last_lines[-5:]) if last_lines else ""
        do = "the system may have run out of memory" if code == -signal.SIGKILL else "run with -v, or report the model"
        raise WorkerCrash("worker-crash", f"the process {how}{tail}", where=target, do=do)
    if "error" in reply:
        raise rebuilt(reply["error"])
    if "fault" in reply:
        raise WorkerCrash("worker-fault", str(reply["fault"]), where=target, do="run with -v, or report the model")
    return cast(Json, reply["result"])


def signal_name(number: int) -> str:
    """Return what a signal is called."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def packed(error: PenstockError) -> dict[str, Json]:
    """Return an error as JSON that :func:`rebuilt` makes one of again."""
    classes: list[Json] = [kind.__name__ for kind in type(error).__mro__]
    return {**error.to_json(), "classes": classes}


def rebuilt(facts: dict[str, Json]) -> PenstockError:
    """Build the error anew as the nearest of its classes that is known here."""
    known = {name: kind for name, kind in {**vars(errors), **globals()}.items() if isinstance(kind, type)}
    names = [str(name) for name in cast("list[Json]", facts["classes"]) if name in known]
    kind = cast("type[PenstockError]", known[names[0]])
    return kind(str(facts["id"]), str(facts["what"]), where=str(facts["where"]), do=str(facts["do"]))


def alarm(seconds: float) -> None:
    """In a worker: end this process unless the work goes on within ``seconds``; 0 calls the alarm off.

    The signal ends the process wherever it is, inside a runtime too. Elsewhere than on POSIX nothing happens.
    """
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)


def die_with_parent() -> None:
    """In a child: ask Linux to end this process when its parent is killed without a chance to do so."""
    if sys.platform == "linux":
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG


def main() -> None:
    """Serve one request: the child's side."""
    die_with_parent()
    deferred.install()
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    request = json.loads(sys.stdin.buffer.read())
    reply: dict[str, Json]
    try:
        module, _, name = request["target"].partition(":")
        with precheck.limits(from_json(precheck.CheckSettings, request["limits"])):
            result = getattr(importlib.import_module(module), name)(request["argument"])
        reply = {"result": to_json(result)}
    except PenstockError as error:
        reply = {"error": packed(error)}
    except BaseException as error:
        traceback.print_exc()
        reply = {"fault": f"{type(error).__name__}: {error}"}
    out.write(json.dumps(reply).encode())
    out.flush()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(0)  # the answer is given: a runtime that dies or hangs while it tidies up must not lose it


if __name__ == "__main__":
    main()
