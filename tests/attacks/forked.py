"""Run penstock's commands on hostile files, each in a process of its own that is measured from outside.

Importing takes a second, so one server imports everything and forks for each command. A fork's time, peak memory and
exit code come from wait4; what it prints goes to two files. No limit of the system's is
set: what a command takes is its own.
"""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SECONDS = 10.0
RESIDENT_BYTES = 1_000_000_000
MOST_BYTES = 4 << 30  # a bomb that does go off is stopped here, before it takes the machine with it
TRIES = 3  # of a command that was a little slow: others that use the same memory and caches slow it down as well
MODULES = (
    "onnx", "onnx.checker", "onnx.reference", "onnx.reference.ops._op_list", "onnx.shape_inference", "onnx_ir",
    "onnxscript.optimizer", "onnxscript.rewriter", "onnxscript.version_converter", "penstock.api", "penstock.cli.check",
    "penstock.cli.inspect", "penstock.cli.optimize", "penstock.cli._inspection", "rich.console", "rich.table",
)  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How one command ended. ``code`` is negative for a signal; ``seconds`` are by the clock, the busy ones its own."""

    arguments: list[str]
    code: int
    seconds: float
    busy_seconds: float
    peak_bytes: int
    stdout: str
    stderr: str

    @property
    def text(self) -> str:
        return self.stdout + self.stderr


class Server:
    """The process that forks; talked to in lines of JSON."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process = process
        self._folder = folder

    def run(self, *arguments: str, seconds: float = 3 * SECONDS) -> Ended:
        assert self._process.stdin is not None and self._process.stdout is not None
        request = {"arguments": arguments, "folder": str(self._folder), "seconds": seconds}
        for _ in range(TRIES):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            reply = json.loads(self._process.stdout.readline())
            if reply["seconds"] <= SECONDS or reply["seconds"] > 2 * SECONDS:
                break  # it was quick enough, or would not be the next time either
        out, err = (
            (self._folder / name).read_bytes().decode("utf-8", "backslashreplace") for name in ("stdout", "stderr")
        )
        return Ended(
            [*arguments], reply["code"], reply["seconds"], reply["busy_seconds"], reply["peak_bytes"], out, err
        )


@contextlib.contextmanager
def server(folder: Path) -> Iterator[Server]:
    """Start the server with caches below ``folder``; it is gone at the end of the block."""
    folder.mkdir(parents=True, exist_ok=True)
    env = {key: value for key, value in os.environ.items() if not key.startswith("PENSTOCK_")}
    env |= {"HOME": str(folder), "PENSTOCK_CACHE": str(folder / "cache"), "TMPDIR": str(folder), "COLUMNS": "120"}
    env |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    )
    try:
        yield Server(process, folder)
    finally:
        process.kill()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        process.wait()


def _child(arguments: list[str], folder: str) -> None:
    """Run one command as the command line does, and end."""
    code = 70
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.chdir(folder)
        for number, name in ((1, "stdout"), (2, "stderr")):
            opened = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(opened, number)
            os.close(opened)
        from penstock import cli

        code = cli.run(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _fork(request: dict) -> dict:
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _child(request["arguments"], request["folder"])
    killed, queued = False, 0.0
    while True:
        queued = max(queued, _queued(pid))
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            break
        if not killed and (time.monotonic() - began - queued > request["seconds"] or _resident(pid) > MOST_BYTES):
            os.kill(pid, signal.SIGKILL)
            killed = True
        time.sleep(0.005)
    return {
        "code": os.waitstatus_to_exitcode(status),
        # the clock's time, without that in which it could have run and others did: on a quiet machine there is none
        "seconds": time.monotonic() - began - queued,
        "busy_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
    }


def _queued(pid: int) -> float:
    """Return how long a process has waited for a processor, in seconds; 0 where Linux doesn't tell."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    return 0.0


def _resident(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    return 0


def main() -> None:
    import importlib

    for name in MODULES:
        importlib.import_module(name)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        out.write(json.dumps(_fork(json.loads(line))) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
