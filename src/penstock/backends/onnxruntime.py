"""ONNX Runtime on the CPU, in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock import asked, graph
from penstock.backends import HALVES, Loadable, NodeTime, _ort_values, _profile
from penstock.deployment import Deployment, Role
from penstock.errors import InputError, MissingError
from penstock.graph import first_line
from penstock.jsonable import Json
from penstock.timing import pinning
from penstock.variant import Format

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

ROLE: Role = "candidate"
FORMATS: tuple[Format, ...] = ("onnx",)
LOADS_LIBRARIES = True
PROVIDER = "CPUExecutionProvider"
# how exactly a product is computed that this runtime makes of DequantizeLinear and MatMul: "1" in float32, "4" (its own
# choice, where nothing is asked for) with activations rounded to int8; "2" and "3", half floats, are "1" on this CPU
ACCURACY = "qdq_matmulnbits_accuracy_level"
OPTIONS = {
    "optimization": ("all", "extended", "basic", "disabled"), "spinning": ("on", "off"),
    ACCURACY: ("0", "1", "2", "3", "4"),
}  # fmt: skip
_LEVELS = ("disabled", "basic", "extended", "all")
_FLOATS = {"bfloat16": "bf16", "float16": "fp16", "float": "fp32", "double": "fp64"}  # as a profile names them

# operators of the runtime that multiply, on integers and in float


def available() -> str:
    """Return "" when ONNX Runtime imports here."""
    try:
        import onnxruntime  # noqa: F401  # imported to see whether it loads
    except Exception as error:  # a broken wheel raises more than ImportError
        return f"onnxruntime doesn't import: {first_line(error)} (pip install onnxruntime)"
    return ""


def facts() -> Mapping[str, Json]:
    """Return the version and the providers that the build contains (not: that can run here)."""
    import onnxruntime

    return {"version": onnxruntime.__version__, "providers_in_build": onnxruntime.get_available_providers()}


def ways(model: ir.Model) -> Mapping[str, Mapping[str, str]]:
    """Return two ways where weights alone are integers: activations in float, and as this runtime would have it."""
    if not graph.weight_only(model, nbits=False):
        return {"": {}}
    return {"": {ACCURACY: "1"}, "int8-activations": {ACCURACY: "4"}}


def _imported() -> Any:
    """Return the module. Raises ``MissingError`` where it doesn't import."""
    if problem := available():
        raise MissingError("no-backend", problem, do="pip install onnxruntime")
    import onnxruntime

    return onnxruntime


def load(model: Loadable, deployment: Deployment) -> OrtSession:
    """Create a session. The option ``optimization`` is the session's level: disabled, basic, extended or all.

    The option ``qdq_matmulnbits_accuracy_level``, 0 to 4, is for weights in blocks; see :func:`ways`.
    """
    ort = _imported()

    if deployment.device != "cpu":
        raise MissingError("no-device", f"this backend runs on the CPU, not on {deployment.device!r}")
    # 4: fatal only; what goes wrong arrives as an exception, and its echo on stderr helps nobody
    ort.set_default_logger_severity(4)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = deployment.threads
    options.inter_op_num_threads = 1
    level = deployment.options.get("optimization", "all")
    if level not in _LEVELS:
        raise InputError("bad-option", f"optimization is one of {', '.join(_LEVELS)}, not {level!r}")
    options.graph_optimization_level = {
        "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
        "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
        "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    }[level]
    if deployment.options.get("spinning") == "off":
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if (accuracy := deployment.options.get(ACCURACY)) is not None:
        if accuracy not in ("0", "1", "2", "3", "4"):
            raise InputError("bad-option", f"{ACCURACY} is 0 to 4, not {accuracy!r}")
        options.add_session_config_entry(f"session.{ACCURACY}", accuracy)
    for library in model.libraries:
        try:
            options.register_custom_ops_library(library)
        except Exception as error:  # the runtime raises many types; dlopen's own message is among them
            what = f"ONNX Runtime can't load the library of custom operators: {first_line(error)}"
            do = "give one that was built for this ONNX Runtime and this machine"
            raise InputError("bad-library", what, where=library, do=do) from error
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")

    def profiled(prefix: Path) -> Any:
        options.enable_profiling, options.profile_file_prefix = True, str(prefix)
        return ort.InferenceSession(str(model.path), options, providers=[PROVIDER])

    before = pinning.threads()
    try:
        session = ort.InferenceSession(str(model.path), options, providers=[PROVIDER])
    except Exception as error:  # the runtime raises many types, all about this model
        raise InputError(
            "runtime-refuses", f"ONNX Runtime can't load the model: {first_line(error)}", where=str(model.path),
            do="look for the operator or the opset that it names; `penstock inspect` lists both",
        ) from error  # fmt: skip
    return OrtSession(session, deployment, profiled, pinning.runtimes_own(before))


class OrtSession:
    """A loaded ONNX Runtime session."""

    def __init__(
        self, session: Any, deployment: Deployment, profiled: Callable[[Path], Any], threads: int | None
    ) -> None:  # fmt: skip
        self._session, self._threads = session, threads
        self._deployment = deployment
        self._profiled = profiled  # makes a second session, which writes down what it runs
        self._last: Mapping[str, np.ndarray] | None = None
        self._inputs = [value.name for value in session.get_inputs()]
        self._outputs = [value.name for value in session.get_outputs()]
        self._apart, self._once = _ort_values.needed(session), _ort_values.runner(session)
        self._bound: tuple[Mapping[str, np.ndarray], Any] | None = None

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run one batch."""
        self._last = feeds
        if self._deployment.io_binding and not self._apart:
            return self._run_bound(feeds)
        try:
            outputs = self._once(self._session, feeds)
        except Exception as error:  # as at loading
            raise InputError("run-failed", f"ONNX Runtime can't run the model: {first_line(error)}") from error
        return outputs

    def _run_bound(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        try:
            if self._bound is None or self._bound[0] is not feeds:  # bound once, for as long as the feeds are the same
                made = self._session.io_binding()
                for name in self._inputs:
                    made.bind_cpu_input(name, feeds[name])
                for name in self._outputs:
                    made.bind_output(name)
                self._bound = (feeds, made)
            binding = self._bound[1]
            self._session.run_with_iobinding(binding)
        except KeyError as error:
            raise InputError("run-failed", f"the model's input {error} was not given") from error
        except Exception as error:  # as at loading
            raise InputError("run-failed", f"ONNX Runtime can't run the model: {first_line(error)}") from error
        bound: list[np.ndarray] = binding.copy_outputs_to_cpu()
        return bound

    def actual(self) -> Mapping[str, Json]:
        """Return how many nodes each provider really got, from the session's own assignment record."""
        parts = self._session.get_provider_graph_assignment_info()
        nodes = ((part.ep_name, node.name, node.op_type) for part in parts for node in part.get_nodes())
        level = self._deployment.options.get(ACCURACY)
        told: dict[str, Json] = {} if level is None else {ACCURACY: int(level)}
        told |= {
            "device": "cpu",
            "precision": "as written",
            **asked.placed(nodes, PROVIDER, ()),
            **({} if self._threads is None else {"threads": self._threads}),
            "io_binding": self._deployment.io_binding,
            "optimization": self._deployment.options.get("optimization", "all"),
        }
        try:
            return told | self._computes_in()
        except Exception as error:  # of a second session: what it can't tell is no reason to do without the numbers
            return told | {"problem": f"{type(error).__name__}: {first_line(error)}"}

    def _computes_in(self) -> dict[str, Json]:
        """Tell of 16-bit variants how many kernels ran in which type, and how many Casts, from a profile of one run.

        Where it has no kernel for a type, the runtime puts Casts around one in float32, and only stores 16 bits. Of
        int8 it tells how many of the layers that multiply ran on integers.
        """
        if self._deployment.precision not in (*HALVES, "int8") or self._last is None:
            return {}
        last = self._last
        events = [event for event in _profile.events(self._profiled, lambda session: self._once(session, last), 1)
                  if _profile.is_of_node(event)]  # fmt: skip
        if self._deployment.precision == "int8":
            return {"weighted_in": _profile.weighted_in(events)}
        kinds = [_kind(event) for event in events]
        counted: dict[str, Json] = {name: kinds.count(name) for name in sorted({*_FLOATS.values()} & {*kinds})}
        return {"computes_in": counted, "casts": kinds.count("Cast")}

    def nodes(self, feeds: Mapping[str, np.ndarray], runs: int) -> list[NodeTime]:
        """Time the nodes of a second session, which is profiled."""
        return _profile.times(self._profiled, lambda session: self._once(session, feeds), runs)

    def close(self) -> None:
        """Drop the session."""
        self._bound = self._last = None
        self._session = None


def _kind(event: Mapping[str, Any]) -> str:
    """Return the type that a kernel of a profile computes in: the narrowest float it reads, else makes; "" for none."""
    told = event.get("args", {})
    if told.get("op_name") == "Cast":
        return "Cast"
    for part in ("input_type_shape", "output_type_shape"):
        types = {name for entry in told.get(part, ()) for name in entry}
        if found := next((short for name, short in _FLOATS.items() if name in types), ""):
            return found
    return ""


def fuse_offline(model: Path, into: Path) -> None:
    """Let ONNX Runtime rewrite a model with its own fusions (level extended, which is for any CPU) and save it.

    The result holds operators of ``com.microsoft`` and is for this runtime alone. Raises ``InputError``, or
    ``MissingError`` where it can't run here.
    """
    ort = _imported()

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(into)
    try:
        ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime raises many types, all about this model
        what = f"ONNX Runtime can't rewrite the model: {first_line(error)}"
        raise InputError("runtime-refuses", what, where=str(model), do="leave --for ort out") from error
