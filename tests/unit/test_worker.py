"""The worker against functions that loop, eat memory, crash, print and answer at length."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from penstock import worker
from penstock.errors import InputError, MissingError, PenstockError, UsageError
from penstock.jsonable import Json

LONG_S = 60.0
FUNCTIONS = """
import ctypes, os, subprocess, sys, time
from penstock.errors import InputError, MissingError

class OwnError(InputError):
    pass

def echo(x): return x
def loop(x):
    while True: pass
def eat(x):
    held = []
    while True:
        held.append(bytearray(b"x" * 10_000_000)); time.sleep(0.002)
def abort(x): os.abort()
def segfault(x): ctypes.string_at(0)
def leave(x): os._exit(3)
def leave_politely(x): sys.exit(0)
def wrong(x): raise KeyError("some key")
def own(x): raise OwnError("own-id", "what happened", where="here", do="that")
def missing(x): raise MissingError("not-there", "it is missing")
def noisy(x):
    print("to stdout"); os.write(1, b"to descriptor 1\\n"); sys.stdout.flush(); print("to stderr", file=sys.stderr)
    return x
def huge(x): return "y" * x
def chatty(x):
    for i in range(20000): print("line", i, file=sys.stderr)
    os.abort()
def unserialisable_float(x): return [float("nan"), float("inf")]
def orphan(path):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    open(path, "w").write(str(child.pid))
    return child.pid
def hang_at_exit(x):
    import threading
    threading.Thread(target=time.sleep, args=(600,)).start()
    return "done"
def pid_then_loop(path):
    with open(path + ".part", "w") as file: file.write(str(os.getpid()))
    os.rename(path + ".part", path)
    while True: time.sleep(0.01)
"""


@pytest.fixture(autouse=True)
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "worker_targets.py").write_text(FUNCTIONS, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])))


def call(name: str, argument: Json = None, timeout_s: float = LONG_S, memory_bytes: int | None = None) -> Json:
    return worker.call(f"worker_targets:{name}", argument, timeout_s=timeout_s, memory_bytes=memory_bytes)


def gone(pid: int) -> bool:
    """Whether a process ends soon: dead, or a zombie that its new parent will reap."""
    for _ in range(500):
        try:
            if Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


def test_answers_with_what_the_function_returns() -> None:
    value: Json = {"a": [1, 2.5, None, True, "é\ud800"], "b": {}}
    assert call("echo", value) == value
    assert call("unserialisable_float") == ["nan", "inf"]


def test_stdout_is_left_to_libraries() -> None:
    assert call("noisy", 1) == 1


def test_long_requests_and_answers() -> None:
    assert call("huge", 5_000_000) == "y" * 5_000_000
    assert call("echo", "z" * 5_000_000) == "z" * 5_000_000


def test_a_loop_is_stopped() -> None:
    with pytest.raises(worker.WorkerTimeout, match=r"more than 1 s") as caught:
        call("loop", timeout_s=1.0)
    assert caught.value.id == "worker-timeout"
    assert caught.value.where == "worker_targets:loop"


@pytest.mark.skipif(sys.platform != "linux", reason="memory is watched on Linux")
def test_a_memory_bomb_is_stopped() -> None:
    with pytest.raises(worker.WorkerMemory, match=r"200 MB are allowed") as caught:
        call("eat", memory_bytes=200_000_000)
    assert caught.value.id == "worker-memory"


@pytest.mark.parametrize(
    ("name", "words"),
    [("abort", "SIGABRT"), ("segfault", "SIGSEGV"), ("leave", "code 3"), ("leave_politely", "SystemExit")],
)
def test_a_crash_is_named(name: str, words: str) -> None:
    with pytest.raises(worker.WorkerCrash, match=words):
        call(name)


def test_the_last_words_of_a_crash_are_kept() -> None:
    with pytest.raises(worker.WorkerCrash, match="line 19999"):
        call("chatty")


def test_other_exceptions_are_crashes() -> None:
    with pytest.raises(worker.WorkerCrash, match="KeyError: 'some key'") as caught:
        call("wrong")
    assert caught.value.id == "worker-fault"
    with pytest.raises(worker.WorkerCrash, match="AttributeError"):
        call("no_such_function")


@pytest.mark.parametrize(("name", "kind", "lines"), [
    ("own", InputError, ["what happened", "  where: here", "  do:    that"]),
    ("missing", MissingError, ["it is missing"]),
])  # fmt: skip
def test_our_errors_come_back(name: str, kind: type[PenstockError], lines: list[str]) -> None:
    with pytest.raises(PenstockError) as caught:
        call(name)
    assert type(caught.value) is kind
    assert caught.value.lines() == lines


def test_no_process_is_left(tmp_path: Path) -> None:
    pid = call("orphan", str(tmp_path / "pid"))
    assert isinstance(pid, int)
    assert gone(pid)


def test_the_answer_counts_whatever_happens_at_exit() -> None:
    assert call("hang_at_exit") == "done"


def test_interrupting_the_parent_ends_the_child(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = (
        "import signal\n"
        "from penstock import worker\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in a shell's background ignores it
        f"worker.call('worker_targets:pid_then_loop', {str(pid_file)!r}, timeout_s={LONG_S})\n"
    )
    for sent in (signal.SIGINT, signal.SIGKILL):
        parent = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
        try:
            for _ in range(3000):
                if pid_file.exists():
                    break
                time.sleep(0.01)
            pid = int(pid_file.read_text(encoding="ascii"))
            parent.send_signal(sent)
            assert parent.wait(timeout=LONG_S) != 0
            assert gone(pid) or (sent == signal.SIGKILL and sys.platform != "linux")
        finally:
            with contextlib.suppress(ProcessLookupError):
                parent.kill()
            parent.wait()
            pid_file.unlink(missing_ok=True)


def test_a_file_in_the_current_folder_is_no_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trap = tmp_path / "trap"
    trap.mkdir()
    (trap / "json.py").write_text("raise SystemExit('the trap')", encoding="utf-8")
    monkeypatch.chdir(trap)
    assert call("echo", 1) == 1


def test_memory_of_this_process() -> None:
    found = worker.memory()
    if sys.platform == "linux":
        assert found["now"] is not None
        assert found["peak"] is not None
        assert 0 < found["now"] <= found["peak"]
    assert worker.memory(2**31 - 1) == {"now": None, "peak": None}


def test_errors_are_rebuilt_as_the_nearest_class() -> None:
    facts: dict[str, Json] = {"id": "i", "what": "w", "where": "", "do": "", "classes": ["Unknown", "UsageError"]}
    assert type(worker.rebuilt(facts)) is UsageError
