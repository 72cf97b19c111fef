"""TensorFlow Lite for Microcontrollers, its reference kernels on this machine: what a board computes, not how fast."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from penstock import environment, precheck
from penstock.backends import Loadable, _inputs
from penstock.backends._distant import DistantSession
from penstock.deployment import Deployment, Role
from penstock.errors import InputError
from penstock.far import FarSession
from penstock.jsonable import Json
from penstock.rehearsal import PATIENCE
from penstock.variant import Format

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

ROLE: Role = "candidate"
FORMATS: tuple[Format, ...] = ("onnx",)
BY_DEFAULT = False  # reference kernels: some forty times slower than LiteRT
ROUNDS_ITS_OWN_WAY = True  # gated on steps of the output's grid
ENVIRONMENT = "tflite-micro"
ARENA, LEAST_ARENA = 10, 8 << 20  # bytes for each of the file's, and in any case
ELSEWHERE = "run this model on another backend"
_LACKING = re.compile(r"Didn't find op for builtin opcode '(\w+)'")
_FAILED = re.compile(r"Node (\w+) \(number \d+\) failed to (?:prepare|invoke)")


def available() -> str:
    """Return "" where its environment is there."""
    return environment.problem(ENVIRONMENT)


def facts() -> Mapping[str, Json]:
    """Return the version, and where it runs."""
    found = environment.needed(ENVIRONMENT, "the backend tflite-micro")
    return {"version": found.packages.get("tflite-micro") or found.packages.get("tflite_micro", ""),
            "environment": str(found.folder)}  # fmt: skip


def load(model: Loadable, deployment: Deployment) -> MicroSession:
    """Write the model as TFLite and open an interpreter in its environment.

    Raises ``InputError`` with the nodes that TFLite has no operator for, or the operator that this runtime hasn't.
    """
    assert model.path is not None
    return MicroSession(model.path, deployment)


class MicroSession(DistantSession):
    """The near side: it writes a file for each size that comes in, and hands it over first."""

    def __init__(self, path: Path, deployment: Deployment) -> None:
        found = environment.needed(ENVIRONMENT, f"the deployment {deployment.name}")
        seconds = precheck.settings().session_seconds
        signature = _inputs.signature(path)
        far = FarSession("tflite-micro", found.python, "penstock.backends.tflite_micro:open_there", None,
                         open_seconds=seconds, run_seconds=PATIENCE * seconds)  # fmt: skip
        super().__init__(signature, far)
        self._path, self._open = path, _inputs.open_axes(signature)
        self._known: set[str] = set()
        self._types: dict[str, Json] = {}
        try:
            if not self._open:
                self._ready(_inputs.Given({}, signature.fixed_batch or 1, {}))
        except BaseException:
            self.close()
            raise

    def _ready(self, given: _inputs.Given) -> str:
        key = repr((given.batch, sorted((name, given.sizes[name]) for name in self._open if name in given.sizes)))
        if key not in self._known:
            import numpy as np

            from penstock.tflite.writing import written

            done = written(self._path, batch=given.batch, sizes=given.sizes)
            self._far.run({"key": np.array([key], dtype=object), "file": np.frombuffer(done.data, np.uint8)})
            self._known.add(key)
            self._types = {"weighted_in": done.facts["weighted_in"]}
        return key

    def actual(self) -> Mapping[str, Json]:
        """Tell what its far side tells, and the types of the file: there is one kernel for each, and no other way."""
        return {**super().actual(), **self._types}

    def _given(self, feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        import numpy as np

        given = _inputs.given(self._signature, feeds)
        return {"key": np.array([self._ready(given)], dtype=object)} | {
            str(place): array for place, array in enumerate(given.arrays.values())
        }


# -- in its environment ------------------------------------------------------------------------------------------------


def open_there(_: Json) -> MicroInterpreters:
    """Return the far side."""
    return MicroInterpreters()


class MicroInterpreters:
    """Interpreters by the sizes that they are made for. A request holds a file to open, or inputs by position."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[Any, int]] = {}
        self._said = _Said()

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Open the file, or run."""
        key = str(feeds["key"][0])
        if "file" in feeds:
            self._made[key] = self._opened(feeds["file"].tobytes())
            return []
        interpreter, outputs = self._made[key]
        with self._said:
            try:
                for place in range(len(feeds) - 1):
                    interpreter.set_input(feeds[str(place)], place)
                interpreter.invoke()
                return [interpreter.get_output(place) for place in range(outputs)]
            except Exception as error:  # its reason is printed, not raised
                what = f"tflite-micro can't run the model: {self._said.reason(error)}"
                raise InputError("run-failed", what, do=ELSEWHERE) from error

    def _opened(self, data: bytes) -> tuple[Any, int]:
        from tflite_micro import runtime

        with self._said:
            try:
                made = runtime.Interpreter.from_bytes(data, arena_size=max(LEAST_ARENA, ARENA * len(data)))
            except Exception as error:  # as above
                what = f"tflite-micro can't load the model: {self._said.reason(error)}"
                raise InputError("runtime-refuses", what, do=ELSEWHERE) from error
        return made, len(runtime.convert_bytearray_to_object(data).subgraphs[0].outputs)

    def actual(self) -> Mapping[str, Json]:
        """Tell what is so of all that it runs."""
        return {"device": "cpu", "threads": 1, "precision": "as written", "kernels": "reference"}

    def close(self) -> None:
        """Drop the interpreters."""
        self._made.clear()


class _Said:
    """What native code prints on standard error while the block lasts."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  (kept for the process's life)
        self._kept = os.dup(2)

    def __enter__(self) -> None:
        os.ftruncate(self._file.fileno(), 0)
        os.lseek(self._file.fileno(), 0, os.SEEK_SET)
        os.dup2(self._file.fileno(), 2)

    def __exit__(self, *_: object) -> None:
        os.dup2(self._kept, 2)

    def reason(self, error: Exception) -> str:
        """Say which operator it minds, and what for."""
        size = os.fstat(self._file.fileno()).st_size
        text = os.pread(self._file.fileno(), size, 0).decode(errors="replace")
        if lacking := _LACKING.search(text):
            return f"it has no operator {lacking[1]}"
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        for before, line in zip(["", *lines], lines, strict=False):
            if failed := _FAILED.match(line):
                return f"{failed[1]}: {before}"[:300].rstrip(": ")
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
