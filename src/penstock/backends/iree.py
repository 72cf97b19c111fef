"""IREE on the CPU: compiles the model ahead of time, for this machine, in an environment of its own."""

from __future__ import annotations

import io
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from penstock import environment, graph, machine, precheck, store
from penstock.backends import Loadable, NodeTime, _inputs
from penstock.backends._distant import DistantSession
from penstock.backends._importing import standard
from penstock.deployment import Deployment, Role
from penstock.errors import InputError, MissingError
from penstock.far import FarSession
from penstock.jsonable import Json
from penstock.rehearsal import PATIENCE
from penstock.variant import Format

if TYPE_CHECKING:
    import numpy as np

    from penstock.environment import Environment

ROLE: Role = "candidate"
FORMATS: tuple[Format, ...] = ("onnx",)
BY_DEFAULT = False  # it compiles for seconds to minutes
ENVIRONMENT = "iree"
FLAGS = (
    "--iree-input-type=onnx", "--iree-hal-target-device=local", "--iree-hal-local-target-device-backends=llvm-cpu",
    "--iree-llvmcpu-target-cpu=host", "--iree-opt-level=O3",
)  # fmt: skip
MODULE = "model.vmfb"
SLOW_SECONDS = 5.0  # of a run: one that takes longer isn't run once more to see its types
# how the compiler calls what it makes: main_graph$async_dispatch_1_conv_Dx32x32x32x3x3x3_i8xi8xi32
_DISPATCH = re.compile(r"(dispatch_\d+_([a-z_]+?)(?:_[D\dx]+)?(?:_((?:[a-z]+\d+)(?:x[a-z]+\d+)*))?)$")
_FLOATS = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "f64": "float64"}
_PRODUCTS = ("conv", "matmul", "matvec", "vecmat", "batch_mat", "batch_vec", "contract", "mmt", "depthwise")
_OPERATOR = re.compile(r'name = "onnx\.([^"]+)"')


def available() -> str:
    """Return "" where its environment is there."""
    return environment.problem(ENVIRONMENT)


def facts() -> Mapping[str, Json]:
    """Return the version, and where it runs."""
    found = environment.needed(ENVIRONMENT, "the backend iree")
    return {"version": found.packages["iree-base-runtime"], "compiler": found.packages["iree-base-compiler"],
            "flags": [*FLAGS], "environment": str(found.folder)}  # fmt: skip


def load(model: Loadable, deployment: Deployment) -> DistantSession:
    """Compile the model, or take what was compiled before, and open it with so many threads.

    Raises ``InputError`` with the operator that the compiler doesn't know.
    """
    if deployment.device != "cpu":
        raise MissingError("backend-missing", f"iree has no device {deployment.device!r} here", do="use device cpu")
    found = environment.needed(ENVIRONMENT, f"the deployment {deployment.name}")
    assert model.path is not None
    from penstock.quantization import written

    layers = sum(written.on_integers(model.path)) if deployment.precision == "int8" else 0
    argument: Json = {
        "module": str(compiled(model.path, found)), "threads": deployment.threads, "layers": layers,
        "narrow": graph.has_narrow_floats(model.path),
    }  # fmt: skip
    seconds = precheck.settings().session_seconds
    far = FarSession("IREE", found.python, "penstock.backends.iree:open_there", argument, open_seconds=seconds,
                     run_seconds=seconds, environ={"OPENBLAS_NUM_THREADS": "1"})  # fmt: skip
    return DistantSession(_inputs.signature(model.path), far)


def compiled(path: Path, found: Environment) -> Path:
    """Return the compiled module of a model file, from the cache where it was compiled before."""
    cache = store.Cache(store.default_cache())
    with store.scratch() as work:
        source = work / "source.onnx"
        graph.save(standard(path, "IREE"), source)
        parts: list[Json] = [store.file_digest(one) for one in sorted(work.iterdir())]
        parts += [found.packages["iree-base-compiler"], [*FLAGS], machine.instruction_set()]
        key = store.digest_of(["iree", *parts])
        if cache.get(key) is None:
            cache.put(key, lambda into: _compile(source, into / MODULE, found, path))
    return cache.folder(key) / "files" / MODULE


def _compile(source: Path, into: Path, found: Environment, path: Path) -> store.Made:
    bin = found.python.parent
    between = source.with_suffix(".mlir")
    _run([str(bin / "iree-import-onnx"), str(source), "-o", str(between)], path, "import")
    _run([str(bin / "iree-compile"), str(between), *FLAGS, "-o", str(into)], path, "compile")
    return store.Made({})


def _run(command: list[str], path: Path, verb: str) -> None:
    seconds = PATIENCE * precheck.settings().session_seconds
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        what = f"IREE took more than {seconds:g} s to {verb} the model and was stopped"
        raise InputError("runtime-refuses", what, where=str(path),
                         do="raise [check] session_seconds, or use another backend") from error  # fmt: skip
    except OSError as error:
        what = f"the environment {ENVIRONMENT!r} is damaged: {error}"
        do = f"penstock env remove {ENVIRONMENT}, then: penstock env add {ENVIRONMENT}"
        raise MissingError("environment-missing", what, do=do) from error
    if done.returncode:
        raise InputError("runtime-refuses", f"IREE can't {verb} the model: {_reason(done.stderr)}", where=str(path),
                         do="run this model on another backend")  # fmt: skip


def _reason(said: str) -> str:
    """Say what the compiler minds: the operator that it names first, or its first error."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if "failed to legalize" in said and (found := _OPERATOR.search(said)):
        return f"it has no rule for {found[1]}, or not for what it is given here"
    told = next((line for line in lines if "error:" in line), lines[-1] if lines else "no reason was given")
    return told.partition("error:")[2].strip()[:300] or told[:300]


# -- in its environment ------------------------------------------------------------------------------------------------


def open_there(argument: Json) -> IreeModule:
    """Open the compiled module: the far side."""
    asked = cast("dict[str, Json]", argument)
    threads, layers = (int(cast(int, asked[key])) for key in ("threads", "layers"))
    return IreeModule(str(asked["module"]), threads, layers, narrow=bool(asked["narrow"]))


class IreeModule:
    """A compiled module with its function; one number of threads for each process, which is why it has its own."""

    def __init__(self, module: str, threads: int, layers: int, *, narrow: bool) -> None:
        import iree.runtime as runtime

        self._module, self._threads, self._layers, self._narrow = module, threads, layers, narrow
        self._last: Mapping[str, np.ndarray] | None = None
        self._driver = "local-sync" if threads == 1 else "local-task"
        if threads > 1:
            runtime.flags.parse_flags(f"--task_topology_group_count={threads}")
        self._config = runtime.Config(device=runtime.get_device(f"{self._driver}://", cache=False))
        held = runtime.VmModule.mmap(self._config.vm_instance, module)
        name = next(one for one in held.function_names if f"{one}$async" in held.function_names)
        self._name, self._function = name, runtime.load_vm_module(held, self._config)[name]

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run one batch."""
        import numpy as np

        began = time.monotonic()
        found = self._function(*feeds.values())
        made = [np.array(one) for one in (found if isinstance(found, tuple) else (found,))]
        self._last = feeds if time.monotonic() - began < SLOW_SECONDS else None
        return made

    def actual(self) -> Mapping[str, Json]:
        """Tell the driver, the threads, the most memory that it held, and the types that its kernels are named by."""
        names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
        workers = sum(name.startswith("iree-worker-") for name in names)
        held = self._config.device.allocator.statistics
        told: dict[str, Json] = {
            "device": "cpu", "driver": self._driver, "threads": workers if self._driver == "local-task" else 1,
            "precision": "as compiled", "peak_bytes": int(held.get("device_bytes_peak", 0)),
        }  # fmt: skip
        try:
            return told | (self._types() if self._last is not None else {})
        except Exception as error:  # what it can't tell is no reason to do without its numbers
            return told | {"problem": f"{type(error).__name__}: {graph.first_line(error)}"}

    def _types(self) -> dict[str, Json]:
        """Return the type of floats, and how many of the model's layers run on integers.

        A pool is called a conv by the compiler: what isn't on integers is what is left of the model's own layers.
        """
        kinds = [
            (found[2], found[3] or "") for key, _ in self._profiled(cast("Mapping[str, np.ndarray]", self._last), 1)
            if (found := _DISPATCH.search(key))
        ]  # fmt: skip
        floats = {_FLOATS[part] for _, kind in kinds for part in kind.split("x") if part in _FLOATS}
        told: dict[str, Json] = {"floats": [*sorted(floats)]}
        if len(floats) == 1 and not self._narrow:
            told["precision"] = next(iter(floats))
        if kinds and self._layers:
            products = [kind for operator, kind in kinds if operator.startswith(_PRODUCTS)]
            whole = min(sum(kind.startswith("i8xi8x") for kind in products), self._layers)
            counted = {"int8": whole, "fp32": self._layers - whole}
            told["weighted_in"] = {**{name: count for name, count in counted.items() if count}}
        return told

    def nodes(self, feeds: Mapping[str, np.ndarray], runs: int) -> list[NodeTime]:
        """Time what the compiler made of the nodes, by its own profile, in a process of the tool that takes it."""
        events = self._profiled(feeds, runs + 1)
        each = len(events) // (runs + 1)
        spent: dict[str, list[float]] = {}
        for run in range(1, runs + 1):
            mine: dict[str, float] = {}
            for key, ms in events[run * each : (run + 1) * each]:
                mine[key] = mine.get(key, 0.0) + ms
            for key, ms in mine.items():
                spent.setdefault(key, []).append(ms)
        found = []
        for key, times in spent.items():
            named = _DISPATCH.search(key)
            name, operator = (named[1], named[2]) if named else (key, "")
            found.append(NodeTime(name, operator, "llvm-cpu", statistics.median(times)))
        return found

    def _profiled(self, feeds: Mapping[str, np.ndarray], runs: int) -> list[tuple[str, float]]:
        """Run the module so often in another process; return each kernel's name and milliseconds, in order.

        Nothing where a type of the inputs isn't one that numpy's files have.
        """
        import numpy as np

        tools = Path(sys.executable).parent
        with store.scratch() as folder:
            bundle, given = folder / "profile", []
            for at, array in enumerate(feeds.values()):
                path, held = folder / f"{at}.npy", io.BytesIO()
                np.lib.format.write_array(held, array, allow_pickle=False)
                store.write_bytes(path, held.getvalue())
                given.append(f"--input=@{path}")
            _said([
                str(tools / "iree-benchmark-module"), f"--module={self._module}", f"--function={self._name}", *given,
                f"--device={self._driver}", f"--task_topology_group_count={self._threads}",
                "--device_profiling_mode=host-execution,executable-metadata", f"--device_profiling_output={bundle}",
                f"--benchmark_min_time={runs}x",
            ])  # fmt: skip
            lines = _said([str(tools / "iree-profile"), "dispatch", "--format=jsonl", "--dispatch_events", str(bundle)])
        events = [cast("dict[str, Any]", json.loads(line)) for line in lines if '"host_dispatch_event"' in line]
        return [(str(event["key"]), event["duration_ns"] / 1e6) for event in events]

    def close(self) -> None:
        """Drop the function."""
        self._function = self._last = None


def _said(command: Sequence[str]) -> list[str]:
    """Return the lines that a tool of the environment prints; none where it fails or isn't there."""
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return []
