"""ONNX Runtime on one of NVIDIA's GPUs, with its CUDA provider, in an environment of its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import cast

from penstock import asked, backend_options, environment, graph, precheck
from penstock.backends import Loadable, _inputs, _nvidia
from penstock.backends._distant import DistantSession
from penstock.backends._provider import ProviderSession
from penstock.deployment import Deployment, Role
from penstock.errors import MissingError
from penstock.far import FarSession
from penstock.jsonable import Json
from penstock.rehearsal import PATIENCE
from penstock.variant import Format

ROLE: Role = "candidate"
FORMATS: tuple[Format, ...] = ("onnx",)
DEVICE = "gpu"
BY_DEFAULT = False  # it is for who deploys on such a machine
ENVIRONMENT = _nvidia.ENVIRONMENT
TITLE = "ONNX Runtime with CUDA"
PROVIDER = "CUDAExecutionProvider"
OPTIONS = {"tf32": ("off", "on"), "convolutions": ("exhaustive", "heuristic", "default")}  # the first is the default


def available() -> str:
    """Return "" where a GPU and its environment are there."""
    return _nvidia.problem()


def facts() -> Mapping[str, Json]:
    """Return the version, where it runs, and the GPU."""
    return _nvidia.facts("onnxruntime-cuda")


def load(model: Loadable, deployment: Deployment) -> DistantSession:
    """Open the model on the GPU. Raises ``MissingError`` without one, ``InputError`` where CUDA takes no node of it.

    The option ``tf32`` lets products of float32 round their factors to 19 bits, ``convolutions`` is how the provider
    looks for the algorithm of each. Arrays go to the GPU and back in each run.
    """
    chosen = backend_options.chosen(deployment, OPTIONS)
    found = needed(deployment, "onnxruntime-cuda")
    assert model.path is not None
    given: dict[str, Json] = {
        "device_id": "0", "use_tf32": "1" if chosen["tf32"] == "on" else "0",
        "cudnn_conv_algo_search": chosen["convolutions"].upper(),
    }  # fmt: skip
    sizes: list[Json] = [*asked.of_sizes(graph.load(model.path, weights=False))]
    argument: Json = {
        "model": str(model.path.resolve()), "threads": deployment.threads, "options": given, "sizes": sizes,
    }  # fmt: skip
    seconds = precheck.settings().session_seconds
    far = FarSession(TITLE, found.python, "penstock.backends.onnxruntime_cuda:open_there", argument,
                     open_seconds=PATIENCE * seconds, run_seconds=seconds,
                     environ=_nvidia.environ(found, exact=chosen["tf32"] == "off"))  # fmt: skip
    return DistantSession(_inputs.signature(model.path), far)


def needed(deployment: Deployment, backend: str) -> environment.Environment:
    """Return the environment. Raises ``MissingError`` where it or a GPU isn't there."""
    if deployment.device != "gpu":
        raise MissingError("no-device", f"{backend} has no device {deployment.device!r}", do="use device gpu")
    if problem := _nvidia.problem():
        raise MissingError("backend-missing", f"the backend {backend!r} can't run here", do=problem)
    return environment.needed(_nvidia.ENVIRONMENT, f"the deployment {deployment.name}")


# -- in its environment ------------------------------------------------------------------------------------------------


def open_there(argument: Json) -> CudaSession:
    """Open the session: the far side."""
    told = cast("dict[str, Json]", argument)
    given, sizes = cast("dict[str, str]", told["options"]), cast("list[str]", told["sizes"])
    return CudaSession(str(told["model"]), int(cast(int, told["threads"])), given, sizes)


class CudaSession(ProviderSession):
    """A session on the GPU; what its provider has no kernel for, and sizes alone, is ONNX Runtime's on the CPU."""

    def __init__(self, path: str, threads: int, given: Mapping[str, str], sizes: Collection[str]) -> None:
        instead = "run this model on the backend onnxruntime"
        super().__init__(TITLE, path, threads, [(PROVIDER, given)], instead, sizes,
                         _nvidia.ENVIRONMENT)  # fmt: skip
        self._given = given

    def actual(self) -> dict[str, Json]:
        """Tell which provider has how many nodes."""
        return {**super().actual(), "device": "gpu", "options": {**self._given}}
