"""Apache TVM on the CPU: compiles the model without tuning, in an environment of its own."""

from __future__ import annotations

import contextlib
import io
import os
import re
import statistics
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from penstock import environment, graph, precheck, store
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

ROLE: Role = "candidate"
FORMATS: tuple[Format, ...] = ("onnx",)
BY_DEFAULT = False  # untuned, it is dozens of times slower than the others
ENVIRONMENT = "tvm"
SLOW_SECONDS = 5.0  # of a run: one that takes longer isn't run once more to see its types
_LAYER = re.compile(
    r"^(?:fused_)?(?:.*_)?(conv\dd_transpose|conv\dd|matmul|dense)\d*(?:_|$)"
)  # how functions are named
_CONVERTING = re.compile(r"Error converting operator (\w+)")


def available() -> str:
    """Return "" where its environment is there."""
    return environment.problem(ENVIRONMENT)


def facts() -> Mapping[str, Json]:
    """Return the version, and where it runs."""
    found = environment.needed(ENVIRONMENT, "the backend tvm")
    return {"version": found.packages["apache-tvm"], "tuned": False, "environment": str(found.folder)}


def load(model: Loadable, deployment: Deployment) -> DistantSession:
    """Compile the model in its environment. Raises ``InputError`` with the operators that it doesn't know."""
    if deployment.device != "cpu":
        raise MissingError("backend-missing", f"tvm has no device {deployment.device!r} here", do="use device cpu")
    found = environment.needed(ENVIRONMENT, f"the deployment {deployment.name}")
    assert model.path is not None
    seconds = PATIENCE * precheck.settings().session_seconds
    with store.scratch() as work:
        graph.save(standard(model.path, "TVM"), work / "source.onnx")
        argument: Json = {"model": str(work / "source.onnx"), "threads": deployment.threads,
                          "narrow": graph.has_narrow_floats(model.path)}  # fmt: skip
        far = FarSession("TVM", found.python, "penstock.backends.tvm:open_there", argument, open_seconds=seconds,
                         run_seconds=seconds, environ={"TVM_NUM_THREADS": str(deployment.threads)})  # fmt: skip
    return DistantSession(_inputs.signature(model.path), far)


# -- in its environment ------------------------------------------------------------------------------------------------


def open_there(argument: Json) -> TvmModule:
    """Compile and open: the far side."""
    asked = cast("dict[str, Json]", argument)
    return TvmModule(str(asked["model"]), int(cast(int, asked["threads"])), narrow=bool(asked["narrow"]))


class _Called(NamedTuple):
    """A compiled function that was called: its name, the types of its tensors, and how long it took."""

    name: str
    types: tuple[str, ...]
    ms: float


class TvmModule:
    """A compiled module in TVM's virtual machine."""

    def __init__(self, path: str, threads: int, *, narrow: bool) -> None:
        import onnx
        import tvm
        from tvm import relax
        from tvm.relax.frontend.onnx import from_onnx

        self._last: Mapping[str, np.ndarray] | None = None
        self._narrow = narrow
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said):  # the only place where it names the operator
                module = from_onnx(onnx.load(path))
        except NotImplementedError as error:  # its OpNotImplemented names all of them
            names = str(error).strip().splitlines()[-1].partition("ONNX:")[2].strip() or str(error)
            raise _refused(f"it has no {names}") from error
        except Exception as error:  # it raises many types, all about this model
            found = _CONVERTING.search(said.getvalue())
            told = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise _refused(f"{found[1]}: {told}" if found else told) from error
        processor = tvm.get_global_func("target.llvm_get_system_cpu")()
        self._target = tvm.target.Target({"kind": "llvm", "mcpu": processor, "num-cores": threads})
        try:
            built = tvm.compile(module, target=self._target, relax_pipeline=relax.get_default_pipeline(self._target))
            self._machine = relax.VirtualMachine(built, tvm.cpu())
        except Exception as error:  # as above
            raise _refused((str(error).strip().splitlines() or [type(error).__name__])[-1]) from error

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run one batch."""
        import tvm

        began = time.monotonic()
        found = self._machine["main"](*[tvm.runtime.tensor(array) for array in feeds.values()])
        self._last = feeds if time.monotonic() - began < SLOW_SECONDS else None
        held = [found] if isinstance(found, tvm.runtime.Tensor) else list(found)
        return [one.numpy() for one in held]

    def actual(self) -> Mapping[str, Json]:
        """Tell the target, the threads of the pool, and the types of the tensors that its functions are called with."""
        import tvm

        told: dict[str, Json] = {
            "device": "cpu", "target": str(self._target), "precision": "as compiled",
            "threads": int(tvm.get_global_func("runtime.NumThreads")()), "pid": os.getpid(),
        }  # fmt: skip
        try:
            return told | (self._types() if self._last is not None else {})
        except Exception as error:  # what it can't tell is no reason to do without its numbers
            return told | {"problem": f"{type(error).__name__}: {graph.first_line(error)}"}

    def _types(self) -> dict[str, Json]:
        """Return the narrowest type of floats, and in which types the functions of layers compute."""
        called = self._called(cast("Mapping[str, np.ndarray]", self._last))
        kinds = {kind for one in called for kind in one.types}
        told: dict[str, Json] = {}
        floats = sorted(kind for kind in kinds if "float" in kind)
        told["floats"] = [*floats]
        if len(floats) == 1 and not self._narrow:
            told["precision"] = floats[0]
        layers = [one.types[0] for one in called if _LAYER.search(one.name) and one.types]
        counted = {"int8": sum(kind in ("int8", "uint8") for kind in layers)}
        counted["fp32"] = len(layers) - counted["int8"]
        return told | {"weighted_in": {**{name: count for name, count in counted.items() if count}}}

    def nodes(self, feeds: Mapping[str, np.ndarray], runs: int) -> list[NodeTime]:
        """Time what the compiler made of the nodes, a function each, by the machine's own hook around each call."""
        self._called(feeds)
        spent: dict[str, list[float]] = {}
        for _ in range(runs):
            mine: dict[str, float] = {}
            for one in self._called(feeds):
                mine[one.name] = mine.get(one.name, 0.0) + one.ms
            for name, ms in mine.items():
                spent.setdefault(name, []).append(ms)
        return [
            NodeTime(name, found[1] if (found := _LAYER.search(name)) else "", "llvm", statistics.median(times))
            for name, times in spent.items()
        ]

    def _called(self, feeds: Mapping[str, np.ndarray]) -> list[_Called]:
        """Run one batch and note each function that the model was compiled to; the machine's own are left out."""
        import tvm

        found: list[_Called] = []
        begun: list[int] = []

        def seen(function: object, name: str, before: bool, result: object, *given: Any) -> int:
            if before:
                begun.append(time.perf_counter_ns())
            else:
                ms = (time.perf_counter_ns() - begun.pop()) / 1e6
                types = tuple(str(one.dtype) for one in given if isinstance(one, tvm.runtime.Tensor))
                found.append(_Called(str(name), types, ms))
            return 0

        arrays = [tvm.runtime.tensor(array) for array in feeds.values()]
        self._machine.set_instrument(seen)
        try:
            self._machine["main"](*arrays)
        finally:
            self._machine.set_instrument(_unseen)
        return [one for one in found if not one.name.startswith(("vm.", "shape_func", "runtime."))]

    def close(self) -> None:
        """Drop the module."""
        self._machine = self._last = None


def _unseen(*_: object) -> int:
    """Look at nothing: what takes the hook's place again."""
    return 0


def _refused(why: str) -> InputError:
    return InputError("runtime-refuses", f"TVM can't compile the model: {why[:400]}",
                      do="run this model on another backend")  # fmt: skip
