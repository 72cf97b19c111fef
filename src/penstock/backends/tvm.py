"""Apache TVM on the CPU: compiles the model without tuning, in an environment of its own."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from penstock import environment, graph, precheck, store
from penstock.backends import Loadable, _inputs
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
        argument: Json = {"model": str(work / "source.onnx"), "threads": deployment.threads}
        far = FarSession("TVM", found.python, "penstock.backends.tvm:open_there", argument, open_seconds=seconds,
                         run_seconds=seconds, environ={"TVM_NUM_THREADS": str(deployment.threads)})  # fmt: skip
    return DistantSession(_inputs.signature(model.path), far)


# -- in its environment ------------------------------------------------------------------------------------------------


def open_there(argument: Json) -> TvmModule:
    """Compile and open: the far side."""
    asked = cast("dict[str, Json]", argument)
    return TvmModule(str(asked["model"]), int(cast(int, asked["threads"])))


class TvmModule:
    """A compiled module in TVM's virtual machine."""

    def __init__(self, path: str, threads: int) -> None:
        import onnx
        import tvm
        from tvm import relax
        from tvm.relax.frontend.onnx import from_onnx

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

        found = self._machine["main"](*[tvm.runtime.tensor(array) for array in feeds.values()])
        held = [found] if isinstance(found, tvm.runtime.Tensor) else list(found)
        return [one.numpy() for one in held]

    def actual(self) -> Mapping[str, Json]:
        """Tell the target and the threads of the pool; what it computes in, it doesn't tell."""
        import tvm

        return {
            "device": "cpu", "target": str(self._target), "precision": "as compiled",
            "threads": int(tvm.get_global_func("runtime.NumThreads")()), "pid": os.getpid(),
        }  # fmt: skip

    def close(self) -> None:
        """Drop the module."""
        self._machine = None


def _refused(why: str) -> InputError:
    return InputError("runtime-refuses", f"TVM can't compile the model: {why[:400]}",
                      do="run this model on another backend")  # fmt: skip
