"""OpenVINO on the CPU; computes in float32 unless the deployment hints otherwise."""

from __future__ import annotations

import functools
import importlib.util
import statistics
import sys
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from penstock import graph, worker
from penstock.backends import HALVES, Loadable, NodeTime, _bits
from penstock.backends._openvino_messages import cause
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
OPTIONS: dict[str, tuple[str, ...]] = {DYNAMIC: ()}
DEFAULT_HINT = "f32"  # its own default on CPUs with bf16 units is bf16, which changes the results
AS_WRITTEN = "dynamic"  # of 16-bit variants: f16 would take what was left in fp32 for its range to 16 bits too
_TOLD = ("layerType", "runtimePrecision")
_NAMES = {"bf16": "bf16", "f16": "fp16", "f32": "fp32", "f64": "fp64", "i8": "int8", "u8": "int8"}
# types that it hands out as the bits of another, by its names and ml_dtypes'
_APART = {"bf16": "bfloat16", "f8e4m3": "float8_e4m3fn", "f8e5m2": "float8_e5m2", "f8e8m0": "float8_e8m0fnu",
          "f4e2m1": "float4_e2m1fn", "i4": "int4", "u4": "uint4", "u2": "uint2"}  # fmt: skip
# layers of a compiled model that compute nothing
_WEIGHTED = frozenset({"Convolution", "Deconvolution", "FullyConnected", "MatMul"})
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


def load(model: Loadable, deployment: Deployment, *, counting: bool = False) -> OpenVinoSession:
    """Compile the model for the CPU with the precision hint and the number of threads asked for.

    ``counting`` lets the runtime count what each node takes.
    """
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
    if counting:
        config[properties.enable_profiling()] = True
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
            "runtime-refuses", f"OpenVINO can't compile the model: {cause(error)}", where=str(model.path),
            do="run this model on another backend; `penstock list backends` shows them",
        ) from error  # fmt: skip
    return OpenVinoSession(compiled, deployment, model, inlined)


def _without_functions(model: Loadable) -> bytes | None:
    """Return the model with its functions inlined, ``None`` where it has none."""
    import onnx_ir as ir

    assert model.path is not None
    loaded = graph.load(model.path)
    if not graph.inline(loaded):
        return None
    ir.external_data.load_to_model(loaded)
    return bytes(ir.to_proto(loaded).SerializeToString())


def _dtype(port: Any) -> np.dtype[Any] | None:
    """Return the type of a port where numpy has none, and the runtime hands out the bits as another; else ``None``."""
    name = _APART.get(port.get_element_type().get_type_name())
    if name is None:
        return None
    import ml_dtypes
    import numpy as np

    found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return found


class OpenVinoSession:
    """A compiled OpenVINO model with one infer request."""

    def __init__(self, compiled: Any, deployment: Deployment, model: Loadable, inlined: bool = False) -> None:
        self._compiled = compiled
        self._model = model
        self._inlined = inlined
        self._request = compiled.create_infer_request()
        self._deployment = deployment
        # a port may have several names, and the model's own is among them
        self._ports = {name: port for port in compiled.inputs for name in port.get_names()}
        self._unread: set[str] = set()  # inputs of the model that it has none of: nothing reads them
        kinds = {port: _dtype(port) for port in (*compiled.inputs, *compiled.outputs)}
        self._kinds = {port: kind for port, kind in kinds.items() if kind is not None}

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run one batch; inputs are shared with the runtime, outputs are copied."""
        import numpy as np

        if self._unread:
            feeds = {name: array for name, array in feeds.items() if name not in self._unread}
        if not set(feeds) <= set(self._ports) or len(feeds) != len(self._compiled.inputs):
            feeds = self._known(feeds)
        try:
            given = {self._ports[name]: array for name, array in feeds.items()}
            if self._kinds:
                given = {port: self._given(port, array) for port, array in given.items()}
            results = self._request.infer(given, True)
            if self._kinds:
                return [self._taken(port, results[port]) for port in self._compiled.outputs]
        except Exception as error:  # as at loading
            raise InputError("run-failed", f"OpenVINO can't run the model: {cause(error)}") from error
        return [np.array(results[port]) for port in self._compiled.outputs]

    def _known(self, feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Find out which input is which: one that nothing reads is dropped, one that is an output goes by its name.

        Raises ``InputError`` for feeds that aren't the model's: it would run on whatever an input held before.
        """
        assert self._model.path is not None
        model = graph.load(self._model.path, weights=False).graph
        names = [str(one.name) for one in model.inputs if not one.is_initializer()]
        if set(feeds) != set(names):
            wanted, given = ", ".join(names), ", ".join(feeds)
            raise InputError("run-failed", f"the model wants the inputs {wanted}; it was given {given}")
        made = {value.name: value for node in model for value in node.outputs}
        for port in self._compiled.inputs:
            known = port.get_names()
            if known & set(names):
                continue
            value = next((made[name] for name in known if name in made), None)
            while value is not None and (node := value.producer()) is not None:  # what it leaves out has one input
                value = node.inputs[0] if node.inputs else None
            if value is None or value.name not in names:
                what = f"OpenVINO has an input {', '.join(known)}, and it can't be told which of the model's that is"
                raise InputError("run-failed", what, do="run this model on another backend")
            self._ports[str(value.name)] = port
        self._unread = set(names) - set(self._ports)
        return {name: array for name, array in feeds.items() if name not in self._unread}

    def _given(self, port: Any, array: np.ndarray) -> Any:
        """Return what the runtime takes for an array of a type that numpy has none of."""
        if port not in self._kinds:
            return array
        import numpy as np
        import openvino

        made = openvino.Tensor(port.get_element_type(), openvino.Shape([*array.shape]))
        if array.size:
            made.data.reshape(-1).view(np.uint8)[:] = _bits.bytes_of(array)
        return made

    def _taken(self, port: Any, found: np.ndarray) -> np.ndarray:
        if port not in self._kinds:
            return found.copy()
        import numpy as np

        shape = tuple(self._request.get_tensor(port).shape)
        return _bits.array_of(np.ascontiguousarray(found).reshape(-1).view(np.uint8), self._kinds[port], shape)

    def nodes(self, feeds: Mapping[str, np.ndarray], runs: int) -> list[NodeTime]:
        """Time the nodes of a second session, which counts."""
        session = load(self._model, self._deployment, counting=True)
        spent: dict[tuple[str, str, str], list[float]] = {}
        try:
            session.run(feeds)
            for _ in range(runs):
                session.run(feeds)
                for one in session.counted():
                    key = one.node_name, one.node_type, one.exec_type
                    spent.setdefault(key, []).append(one.real_time.total_seconds() * 1e3)
        finally:
            session.close()
        return [NodeTime(*key, statistics.median(times)) for key, times in spent.items() if any(times)]

    def counted(self) -> list[Any]:
        """Return what the runtime counted in the last run, a record for each node."""
        return list(self._request.get_profiling_info())

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
        weighted: Counter[str] = Counter()
        for layer in self._compiled.get_runtime_model().get_ops():
            told = layer.get_rt_info()
            kind, precision = (told[key].astype(str) if key in told else "" for key in _TOLD)
            if kind == "Convert":
                layers["Convert"] += 1
            elif kind not in _IDLE:
                layers[_NAMES.get(precision, "")] += 1
                weighted[_NAMES.get(precision, "")] += kind in _WEIGHTED
        counted: dict[str, Json] = {name: layers[name] for name in sorted({*_NAMES.values()} & layers.keys())}
        of_weights: dict[str, Json] = {name: weighted[name] for name in sorted({*_NAMES.values()} & {*+weighted})}
        return {"computes_in": counted, "weighted_in": of_weights, "casts": layers["Convert"]}

    def close(self) -> None:
        """Drop the request and the compiled model."""
        self._request = None
        self._compiled = None
