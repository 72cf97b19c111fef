"""ONNX Runtime with OpenVINO as its provider, in an environment of its own: its wheel overwrites the plain one's."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import cast

from penstock import asked, environment, graph, precheck
from penstock.backends import Loadable, _inputs
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
BY_DEFAULT = False  # beside OpenVINO itself it is another way to the same kernels
ENVIRONMENT = "onnxruntime-openvino"
PROVIDER = "OpenVINOExecutionProvider"


def available() -> str:
    """Return "" where its environment is there."""
    return environment.problem(ENVIRONMENT)


def facts() -> Mapping[str, Json]:
    """Return the version, and where it runs."""
    found = environment.needed(ENVIRONMENT, "the backend onnxruntime-openvino")
    return {"version": found.packages["onnxruntime-openvino"], "environment": str(found.folder)}


def load(model: Loadable, deployment: Deployment) -> DistantSession:
    """Open the model in its environment. Raises ``InputError`` where the provider takes none of its nodes."""
    if deployment.device != "cpu":
        raise MissingError("no-device", f"this backend runs on the CPU, not on {deployment.device!r}")
    found = environment.needed(ENVIRONMENT, f"the deployment {deployment.name}")
    assert model.path is not None
    seconds = precheck.settings().session_seconds
    sizes: list[Json] = [*asked.of_sizes(graph.load(model.path, weights=False))]
    argument: Json = {"model": str(model.path.resolve()), "threads": deployment.threads, "sizes": sizes}
    far = FarSession("ONNX Runtime with OpenVINO", found.python, "penstock.backends.onnxruntime_openvino:open_there",
                     argument, open_seconds=PATIENCE * seconds, run_seconds=seconds,
                     environ={"ORT_DISABLE_TELEMETRY": "1"})  # fmt: skip
    return DistantSession(_inputs.signature(model.path), far)


# -- in its environment ------------------------------------------------------------------------------------------------


def open_there(argument: Json) -> OpenVinoSession:
    """Open the session: the far side."""
    given = cast("dict[str, Json]", argument)
    return OpenVinoSession(str(given["model"]), int(cast(int, given["threads"])), cast("list[str]", given["sizes"]))


class OpenVinoSession(ProviderSession):
    """A session whose nodes OpenVINO took, all or some; the rest is ONNX Runtime's own."""

    def __init__(self, path: str, threads: int, sizes: Collection[str]) -> None:
        given = {"device_type": "CPU", "num_of_threads": str(threads), "precision": "FP32"}
        instead = "run this model on the backend openvino, or on onnxruntime"
        super().__init__("ONNX Runtime with OpenVINO", path, threads, [(PROVIDER, given)], instead, sizes,
                         ENVIRONMENT)  # fmt: skip

    def actual(self) -> dict[str, Json]:
        """Tell which provider has how many nodes."""
        return {**super().actual(), "device": "cpu"}
