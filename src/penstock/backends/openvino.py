"""OpenVINO on the CPU; computes in float32 unless the deployment hints otherwise."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from penstock import graph, worker
from penstock.backends import HALVES, Loadable
from penstock.deployment import Deployment, Role
from penstock.errors import InputError, missing_extra
from penstock.graph import first_line
from penstock.jsonable import Json
from penstock.variant import Format

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

# importing OpenVINO reports to its makers over the network when this package is there; without it, it takes a stub
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None is how Python marks what is not there

ROLE: Role = "candidate"
FORMATS: tuple[Format, ...] = ("onnx",)
IMPORT_SECONDS = 60.0
DYNAMIC = "dynamic_quantization_group_size"  # inputs that share a scale where activations are rounded; "0": none are
NO_RULE = "-- No conversion rule found for operations:"  # how its report on operators puts it
RULE_FAILED = "-- Conversion is failed for:"
DEFAULT_HINT = "f32"  # its own default on CPUs with bf16 units is bf16, which changes the results
AS_WRITTEN = "dynamic"  # of 16-bit variants: f16 would take what was left in fp32 for its range to 16 bits too
_TOLD = ("layerType", "runtimePrecision")
_NAMES = {"bf16": "bf16", "f16": "fp16", "f32": "fp32", "f64": "fp64", "i8": "int8", "u8": "int8"}
# layers of a compiled model that compute nothing
_IDLE = frozenset({"Const", "Input", "Output", "Parameter", "Reorder", "Result"})


def available() -> str:
    """Return "" when OpenVINO imports here."""
    if problem := _first_import():
        return f"openvino doesn't import: {problem}"
    try:
        import openvino  # noqa: F401  # imported to see whether it loads
    except ImportError:
        return str(missing_extra("openvino", "openvino", "the backend openvino").do)
    except Exception as error:  # a broken wheel raises more than ImportError
        return f"openvino doesn't import: {first_line(error)}"
    return ""


@functools.cache
def _first_import() -> str:
    """Import it in a process of its own: native code for another CPU ends that one, and not this; "" where it doesn't.

    What the import raises is no end; the caller gets it too, when it imports the package itself.
    """
    if "openvino" in sys.modules or importlib.util.find_spec("openvino") is None:
        return ""
    try:
        worker.call("penstock.backends.openvino:serve_import", None, timeout_s=IMPORT_SECONDS)
    except worker.WorkerTimeout:
        return f"that takes more than {IMPORT_SECONDS:g} s"
    except worker.WorkerCrash as error:
        return error.what if error.id == "worker-crash" else ""
    return ""


def serve_import(_: Json) -> bool:
    """Import OpenVINO: the worker's side of a first import."""
    import openvino  # noqa: F401  # imported to see whether it loads

    return True


def facts() -> Mapping[str, Json]:
    """Return the version and the devices found."""
    import openvino

    core = openvino.Core()
    return {"version": openvino.__version__.split("-")[0], "devices": list(core.available_devices)}


def ways(model: ir.Model) -> Mapping[str, Mapping[str, str]]:
    """Return two ways where weights alone are integers: activations in float, and as this runtime would have it.

    Its own way is to round activations to int8, in groups of 32, whatever precision is hinted.
    """
    if not graph.weight_only(model, nbits=True):
        return {"": {}}
    return {"": {DYNAMIC: "0"}, "int8-activations": {DYNAMIC: "32"}}


def load(model: Loadable, deployment: Deployment) -> OpenVinoSession:
    """Compile the model for the CPU with the precision hint and the number of threads asked for."""
    try:
        import openvino
        from openvino import properties
    except ImportError as error:
        raise missing_extra("openvino", "openvino", f"the deployment {deployment.name}") from error
    core = openvino.Core()
    hint = AS_WRITTEN if deployment.precision in HALVES else DEFAULT_HINT
    config = {
        properties.hint.inference_precision(): deployment.precision_hint or hint,
        properties.inference_num_threads(): deployment.threads,
        properties.hint.performance_mode(): "LATENCY",
        properties.num_streams(): 1,
        properties.hint.enable_cpu_pinning(): False,
    }
    if (group := deployment.options.get(DYNAMIC)) is not None:
        if not group.isdecimal():
            raise InputError("bad-option", f"{DYNAMIC} is a whole number, not {group!r}")
        config[properties.hint.dynamic_quantization_group_size()] = int(group)
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
    """Return what of OpenVINO's message says something: the first lines name its own source files.

    Of a report on operators, that is which ones it can't convert, and the last line of each one's own message.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if reported := _operators(lines):
        return reported
    told = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    for index, line in enumerate(told[:-1]):
        if line.endswith(":"):  # a heading: what it announces stands under it
            told[index] = f"{line} {told[index + 1]}"
    return (told or lines or [type(error).__name__])[0][:300]


def _operators(lines: list[str]) -> str:
    """Return what a report on unconverted operators says of them, "" where there is no such report."""
    found: list[str] = []
    reasons: dict[str, str] = {}  # operator → the last line of its message
    of = ""
    for line in lines:
        if line.endswith("with a message:"):
            of = line.removeprefix("-- ").removesuffix("with a message:").strip()
        elif line == "Summary:":
            of = ""
        elif line.startswith(NO_RULE):
            found.append(f"it has no rule for {line.removeprefix(NO_RULE).strip()}")
        elif line.startswith(RULE_FAILED):
            names = [name.strip() for name in line.removeprefix(RULE_FAILED).split(",")]
            found += [f"{name}: {reasons[name][:200]}" if name in reasons else f"{name} fails" for name in names]
        elif of:
            reasons[of] = line
    return "; ".join(found)[:600]


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
        told: dict[str, Json] = {"functions": "inlined: this runtime reads none"} if self._inlined else {}
        if DYNAMIC in self._deployment.options:
            told[DYNAMIC] = int(get(DYNAMIC.upper()))
        told |= {
            "device": ",".join(get("EXECUTION_DEVICES")),
            "precision": str(get("INFERENCE_PRECISION_HINT")).replace("<Type: '", "").replace("'>", ""),
            "threads": int(get("INFERENCE_NUM_THREADS")),
            "integers": "64-bit integers are computed in 32 bits",
        }
        return told | self._computes_in()

    def _computes_in(self) -> dict[str, Json]:
        """Tell how many layers of the compiled model compute in which type, and how many convert between types."""
        layers: Counter[str] = Counter()
        for layer in self._compiled.get_runtime_model().get_ops():
            told = layer.get_rt_info()
            kind, precision = (told[key].astype(str) if key in told else "" for key in _TOLD)
            if kind == "Convert":
                layers["Convert"] += 1
            elif kind not in _IDLE:
                layers[_NAMES.get(precision, "")] += 1
        counted: dict[str, Json] = {name: layers[name] for name in sorted({*_NAMES.values()} & layers.keys())}
        return {"computes_in": counted, "casts": layers["Convert"]}

    def close(self) -> None:
        """Drop the request and the compiled model."""
        self._request = None
        self._compiled = None
