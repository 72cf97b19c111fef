"""ONNX Runtime on one of NVIDIA's GPUs, with TensorRT's engines, which are built once and kept."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import cast

from penstock import asked, backend_options, environment, graph, precheck, store
from penstock.backends import Loadable, _inputs, _nvidia
from penstock.backends._distant import DistantSession
from penstock.backends._provider import ProviderSession
from penstock.backends.onnxruntime_cuda import PROVIDER as CUDA
from penstock.backends.onnxruntime_cuda import needed
from penstock.deployment import Deployment, Role
from penstock.environment import Environment
from penstock.errors import InputError, MissingError
from penstock.far import FarSession
from penstock.jsonable import Json
from penstock.rehearsal import PATIENCE
from penstock.variant import Format

ROLE: Role = "candidate"
FORMATS: tuple[Format, ...] = ("onnx",)
DEVICE = "gpu"
BY_DEFAULT = False  # it builds engines for minutes
ENVIRONMENT = _nvidia.ENVIRONMENT
TITLE = "ONNX Runtime with TensorRT"
PROVIDER = "TensorrtExecutionProvider"
# the first value is the default; of a 16-bit or an integer variant TensorRT is let compute in what it holds anyway
OPTIONS: dict[str, tuple[str, ...]] = {"fp16": ("off", "on"), "tf32": ("off", "on"), "calibration-table": ()}
ENGINES = "engines"  # a folder of the environment: they are of no use to another version
NATIVE = b"TRT-"  # what TensorRT's own tables begin with; ONNX Runtime's are flatbuffers
_LIBRARY = re.compile(rb"libnvinfer\.so\.\d+")


def available() -> str:
    """Return "" where a GPU, the environment and TensorRT's library are there."""
    return _nvidia.problem() or _library(environment.find(_nvidia.ENVIRONMENT))


def _library(found: Environment) -> str:
    """Return "" where TensorRT's library that this ONNX Runtime was built for can be loaded, else what installs it."""
    wanted = next((name for file in found.folder.glob("lib/python*/site-packages/onnxruntime/capi/*tensorrt*.so")
                   for name in _LIBRARY.findall(file.read_bytes())), b"").decode()  # fmt: skip
    if not wanted:
        return "this build of ONNX Runtime has no TensorRT provider"
    for folder in _nvidia.libraries(found):
        if (folder / wanted).is_file():
            return ""
    try:
        ctypes.CDLL(wanted)
    except OSError:
        major = wanted.rpartition(".")[2]
        return f"{found.python} -m pip install 'tensorrt-cu13=={major}.*'  # it needs {wanted}"
    return ""


def facts() -> Mapping[str, Json]:
    """Return the version, where it runs, and the GPU."""
    return _nvidia.facts("onnxruntime-tensorrt")


def load(model: Loadable, deployment: Deployment) -> DistantSession:
    """Open the model on the GPU; its engines are built, which takes minutes, or taken from where they were kept.

    The option ``fp16`` lets float layers compute in 16 bits, ``tf32`` in 19. ``calibration-table`` is a file with the
    ranges of a float model's tensors, TensorRT's own or what ONNX Runtime's calibrator writes: its layers are int8
    then. A model that holds its own scales, QuantizeLinear, must have none.

    Raises ``MissingError`` without a GPU or TensorRT, ``InputError`` where TensorRT takes none of the nodes.
    """
    chosen = backend_options.chosen(deployment, OPTIONS)
    found = needed(deployment, "onnxruntime-tensorrt")
    if problem := _library(found):
        raise MissingError("backend-missing", "the backend 'onnxruntime-tensorrt' can't run here", do=problem)
    assert model.path is not None
    table = Path(chosen["calibration-table"]) if chosen["calibration-table"] else None
    given = provider_options(model.path, deployment, chosen, table, found)
    sizes: list[Json] = [*asked.of_sizes(graph.load(model.path, weights=False))]
    argument: Json = {
        "model": str(model.path.resolve()), "threads": deployment.threads, "options": {**given}, "sizes": sizes,
    }  # fmt: skip
    seconds = PATIENCE * precheck.settings().session_seconds
    far = FarSession(TITLE, found.python, "penstock.backends.onnxruntime_tensorrt:open_there", argument,
                     open_seconds=seconds, run_seconds=seconds,  # engines of a new size are built in its first run
                     environ=_nvidia.environ(found, exact=chosen["tf32"] == "off"))  # fmt: skip
    return DistantSession(_inputs.signature(model.path), far)


def provider_options(
    path: Path, deployment: Deployment, chosen: Mapping[str, str], table: Path | None, found: Environment
) -> dict[str, str]:
    """Return what the provider is told, and put the table where it looks for it. Raises ``InputError``."""
    integers = deployment.precision in ("int8", "mixed")
    if table is not None and integers:
        what = "a calibration table is for float models: this one holds its own scales, and TensorRT takes only one"
        raise InputError("bad-option", what, where=str(table), do="leave calibration-table out")
    data = b""
    if table is not None:
        try:
            data = table.read_bytes()
        except OSError as error:
            what = f"the calibration table can't be read: {error.strerror}"
            raise InputError("bad-option", what, where=str(table)) from error
        if not data:
            raise InputError("bad-option", "the calibration table is empty", where=str(table))
    half = chosen["fp16"] == "on" or deployment.precision == "fp16"
    digests: list[Json] = [store.file_digest(one) for one in (path, *_beside(path))]
    parts: list[Json] = [digests, half, integers, chosen["tf32"], store.digest_of([data.hex()]), dict(found.packages)]
    folder = found.folder / ENGINES / store.digest_of(parts)[:16]
    told: dict[str, Json] = {"model": digests[0], "fp16": half, "int8": integers or bool(data), "tf32": chosen["tf32"]}
    store.write_json(folder / "of.json", told)  # whoever finds engines there knows what they are of
    given = {
        "device_id": "0", "trt_engine_cache_enable": "1", "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1", "trt_timing_cache_path": str(folder),
        "trt_fp16_enable": "1" if half else "0", "trt_int8_enable": "1" if integers or data else "0",
    }  # fmt: skip
    if table is not None:
        store.write_bytes(folder / table.name, data)  # the provider looks for it beside the engines
        given["trt_int8_calibration_table_name"] = table.name
        given["trt_int8_use_native_calibration_table"] = "1" if data.startswith(NATIVE) else "0"
    return given


def _beside(path: Path) -> list[Path]:
    """Return the files that hold a model's weights: with other ones in them, the engines are others."""
    import onnx_ir as ir

    held = (value.const_value for one in graph.load(path).graphs() for value in one.initializers.values())
    names = {str(tensor.location) for tensor in held if isinstance(tensor, ir.ExternalTensor)}
    return [path.parent / name for name in sorted(names)]


# -- in its environment ------------------------------------------------------------------------------------------------


def open_there(argument: Json) -> TensorRtSession:
    """Open the session: the far side."""
    told = cast("dict[str, Json]", argument)
    given, sizes = cast("dict[str, str]", told["options"]), cast("list[str]", told["sizes"])
    return TensorRtSession(str(told["model"]), int(cast(int, told["threads"])), given, sizes)


class TensorRtSession(ProviderSession):
    """A session of engines; what TensorRT doesn't take is CUDA's, and what CUDA doesn't, the CPU's."""

    def __init__(self, path: str, threads: int, given: Mapping[str, str], sizes: Collection[str]) -> None:
        cuda = {"device_id": given["device_id"], "use_tf32": "0"}
        providers = [(PROVIDER, given), (CUDA, cuda)]
        super().__init__(TITLE, path, threads, providers, "run this model on the backend onnxruntime-cuda", sizes,
                         _nvidia.ENVIRONMENT)  # fmt: skip
        self._given = given

    def actual(self) -> dict[str, Json]:
        """Tell which provider has how many nodes, and the engines that are kept."""
        kept = sorted(path.name for path in Path(self._given["trt_engine_cache_path"]).glob("*.engine"))
        names: list[Json] = [*kept]
        return {**super().actual(), "device": "gpu", "options": {**self._given}, "engines": names}
