"""OpenVINO on the CPU; computes in float32 unless the deployment hints otherwise."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from penstock import graph
from penstock.backends import Loadable
from penstock.deployment import Deployment, Role
from penstock.errors import InputError, missing_extra
from penstock.graph import first_line
from penstock.jsonable import Json
from penstock.variant import Format

if TYPE_CHECKING:
    import numpy as np

# importing OpenVINO reports to its makers over the network when this package is there; without it, it takes a stub
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None is how Python marks what is not there

ROLE: Role = "candidate"
FORMATS: tuple[Format, ...] = ("onnx",)
DEFAULT_HINT = "f32"  # its own default on CPUs with bf16 units is bf16, which changes the results


def available() -> str:
    """Return "" when OpenVINO imports here."""
    try:
        import openvino  # noqa: F401  # imported to see whether it loads
    except ImportError:
        return str(missing_extra("openvino", "openvino", "the backend openvino").do)
    except Exception as error:  # a broken wheel raises more than ImportError
        return f"openvino doesn't import: {first_line(error)}"
    return ""


def facts() -> Mapping[str, Json]:
    """Return the version and the devices found."""
    import openvino

    core = openvino.Core()
    return {"version": openvino.__version__.split("-")[0], "devices": list(core.available_devices)}


def load(model: Loadable, deployment: Deployment) -> OpenVinoSession:
    """Compile the model for the CPU with the precision hint and the number of threads asked for."""
    try:
        import openvino
        from openvino import properties
    except ImportError as error:
        raise missing_extra("openvino", "openvino", f"the deployment {deployment.name}") from error
    core = openvino.Core()
    config = {
        properties.hint.inference_precision(): deployment.precision_hint or DEFAULT_HINT,
        properties.inference_num_threads(): deployment.threads,
        properties.hint.performance_mode(): "LATENCY",
        properties.num_streams(): 1,
        properties.hint.enable_cpu_pinning(): False,
    }
    inlined = False
    try:
        try:
            compiled = core.compile_model(core.read_model(str(model.path)), deployment.device.upper(), config)
        except Exception:
            data = _without_functions(model)  # this runtime reads no functions of a model's own
            if data is None:
                raise
            compiled = core.compile_model(core.read_model(data), deployment.device.upper(), config)
            inlined = True
    except Exception as error:  # the runtime raises RuntimeError for all causes
        raise InputError(
            "runtime-refuses", f"OpenVINO can't compile the model: {_cause(error)}", where=str(model.path),
            do="run this model on another backend; `penstock list backends` shows them",
        ) from error  # fmt: skip
    return OpenVinoSession(compiled, deployment, inlined)


def _without_functions(model: Loadable) -> bytes | None:
    """Return the model with its functions inlined, ``None`` where it has none."""
    import onnx_ir as ir

    assert model.path is not None
    loaded = graph.load(model.path)
    if not graph.inline(loaded):
        return None
    ir.external_data.load_to_model(loaded)
    return bytes(ir.to_proto(loaded).SerializeToString())


def _cause(error: Exception) -> str:
    """Return the line of OpenVINO's message that says something: the first ones name its own source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    for index, line in enumerate(told[:-1]):
        if line.endswith(":"):  # a heading: what it announces stands under it
            told[index] = f"{line} {told[index + 1]}"
    return (told or lines or [type(error).__name__])[0][:300]


class OpenVinoSession:
    """A compiled OpenVINO model with one infer request."""

    def __init__(self, compiled: Any, deployment: Deployment, inlined: bool = False) -> None:
        self._compiled = compiled
        self._inlined = inlined
        self._request = compiled.create_infer_request()
        self._deployment = deployment
        # a port may have several names, and the model's own is among them
        self._ports = {name: port for port in compiled.inputs for name in port.get_names()}

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run one batch; inputs are shared with the runtime, outputs are copied."""
        import numpy as np

        if not set(feeds) <= set(self._ports) or len(feeds) != len(self._compiled.inputs):
            # the request would run on whatever an input held before
            wanted, given = ", ".join(self._ports), ", ".join(feeds)
            raise InputError("run-failed", f"the model wants the inputs {wanted}; it was given {given}")
        try:
            results = self._request.infer({self._ports[name]: array for name, array in feeds.items()}, True)
        except Exception as error:  # as at loading
            raise InputError("run-failed", f"OpenVINO can't run the model: {_cause(error)}") from error
        return [np.array(results[port]) for port in self._compiled.outputs]

    def actual(self) -> Mapping[str, Json]:
        """Return what the compiled model says of itself: device, precision, threads."""
        get = self._compiled.get_property
        functions = {"functions": "inlined: this runtime reads none"} if self._inlined else {}
        return functions | {
            "device": ",".join(get("EXECUTION_DEVICES")),
            "precision": str(get("INFERENCE_PRECISION_HINT")).replace("<Type: '", "").replace("'>", ""),
            "threads": int(get("INFERENCE_NUM_THREADS")),
            "integers": "64-bit integers are computed in 32 bits",
        }

    def close(self) -> None:
        """Drop the request and the compiled model."""
        self._request = None
        self._compiled = None
