"""ONNX Runtime with OpenVINO as its provider, in an environment of its own: its wheel overwrites the plain one's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from penstock import environment, precheck
from penstock.backends import Loadable, _inputs
from penstock.backends._distant import DistantSession
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
    argument: Json = {"model": str(model.path.resolve()), "threads": deployment.threads}
    far = FarSession("ONNX Runtime with OpenVINO", found.python, "penstock.backends.onnxruntime_openvino:open_there",
                     argument, open_seconds=PATIENCE * seconds, run_seconds=seconds,
                     environ={"ORT_DISABLE_TELEMETRY": "1"})  # fmt: skip
    return DistantSession(_inputs.signature(model.path), far)


# -- in its environment ------------------------------------------------------------------------------------------------


def open_there(argument: Json) -> ProviderSession:
    """Open the session: the far side."""
    asked = cast("dict[str, Json]", argument)
    return ProviderSession(str(asked["model"]), int(cast(int, asked["threads"])))


class ProviderSession:
    """A session whose nodes the provider took, all or some; the rest is ONNX Runtime's own."""

    def __init__(self, path: str, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        given = {"device_type": "CPU", "num_of_threads": str(threads), "precision": "FP32"}
        try:
            self._session: Any = onnxruntime.InferenceSession(path, options, providers=[(PROVIDER, given)])
        except Exception as error:  # the runtime raises many types, all about this model
            told = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise InputError("runtime-refuses", f"ONNX Runtime with OpenVINO can't load the model: {told}",
                             do="run this model on the backend openvino") from error  # fmt: skip
        self._threads = threads
        self._placed = self._placement()
        if not self._placed.get(PROVIDER):
            what = "OpenVINO took none of the model's nodes: ONNX Runtime would run it alone"
            raise InputError("runtime-refuses", what, do="run this model on the backend openvino, or on onnxruntime")

    def _placement(self) -> dict[str, int]:
        """Count the nodes by provider, as the session recorded it when it was made."""
        counted: Counter[str] = Counter()
        for part in self._session.get_provider_graph_assignment_info():
            counted[str(part.ep_name)] += len(part.get_nodes())
        return dict(counted)

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run one batch."""
        try:
            found: list[np.ndarray] = self._session.run(None, dict(feeds))
        except Exception as error:  # as at loading
            told = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise InputError("run-failed", f"ONNX Runtime with OpenVINO can't run the model: {told}") from error
        return found

    def actual(self) -> Mapping[str, Json]:
        """Tell which provider has how many nodes, and the threads asked for."""
        placed: dict[str, Json] = {**self._placed}
        return {"device": "cpu", "threads": self._threads, "precision": "f32", "nodes_by_provider": placed}

    def close(self) -> None:
        """Drop the session."""
        self._session = None
