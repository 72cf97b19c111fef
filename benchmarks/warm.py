"""Processes that stay warm: asked by a line of JSON, killed when they hang, begun anew after they died."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TIMEOUT_S = 120.0


class Warm:
    """One such process. An answer is a dictionary; ``error`` in it says what went wrong."""

    def __init__(self, command: Sequence[str], log: Path, timeout_s: float = TIMEOUT_S) -> None:
        self.command, self.log, self.timeout_s = [*command], log, timeout_s
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and wait for the answer."""
        process = self._alive()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            line = self._line(process)
        except BrokenPipeError:
            line = b""
        if line is None:
            self.close()
            return {"error": f"it took more than {self.timeout_s:g} s"}
        if not line:
            code = process.wait()
            self.close()
            return {"error": f"it crashed with {signal.Signals(-code).name}" if code < 0 else f"it ended with {code}"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process and all that it started."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                with contextlib.suppress(OSError):
                    pipe.close()  # type: ignore[union-attr]  # both are pipes
            self.process = None

    def _alive(self) -> subprocess.Popen[bytes]:
        if self.process is None or self.process.poll() is not None:
            self.close()
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True,
                    env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
                )  # fmt: skip
        return self.process

    def _line(self, process: subprocess.Popen[bytes]) -> bytes | None:
        """Return one line, nothing where the process ended, ``None`` after the time was up."""
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], self.timeout_s)
        return process.stdout.readline() if ready else None
