"""The providers for NVIDIA's GPUs without one: what ONNX Runtime is told there, by one that only listens."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from penstock import asked as asked_module
from penstock import cli, environment, registry, store
from penstock.backends import Loadable, _nvidia
from penstock.deployment import Deployment
from penstock.errors import InputError, MissingError, PenstockError

LISTENER = """
import ctypes, json, os
from pathlib import Path

HERE = Path(__file__).parent
class _Node:
    def __init__(self, name, op_type="MatMul"):
        self.name, self.op_type = name, op_type
class _Part:
    def __init__(self, name, nodes):
        self.ep_name, self._nodes = name, nodes
    def get_nodes(self):
        return self._nodes
class _Value:
    def __init__(self, name, kind):
        self.name, self.type = name, kind
class OrtValue:
    @staticmethod
    def ortvalue_from_numpy(array):
        return array
class _Half:
    # the value 1 in bfloat16, twice
    held = ctypes.create_string_buffer(bytes([0x80, 0x3F, 0x80, 0x3F]), 4)
    def is_tensor(self):
        return True
    def data_type(self):
        return "tensor(bfloat16)"
    def element_type(self):
        return 16
    def shape(self):
        return [2]
    def tensor_size_in_bytes(self):
        return 4
    def data_ptr(self):
        return ctypes.addressof(self.held)
def get_available_providers():
    return [] if (HERE / "how").read_text() == "unbuilt" else [
        "CUDAExecutionProvider", "TensorrtExecutionProvider", "CPUExecutionProvider"]
class SessionOptions:
    def add_session_config_entry(self, name, value):
        pass
class InferenceSession:
    def __init__(self, path, options, providers, enable_fallback=1):
        self.fallback = enable_fallback
        told = {"providers": providers, "threads": options.intra_op_num_threads,
                "tf32": os.environ.get("NVIDIA_TF32_OVERRIDE"), "path": os.environ["LD_LIBRARY_PATH"]}
        (HERE / "told.json").write_text(json.dumps(told))
        self.how = (HERE / "how").read_text()
        self.first = providers[0][0]
        for name, given in providers:
            if "trt_engine_cache_path" in given:
                (Path(given["trt_engine_cache_path"]) / "one.engine").write_bytes(b"")
    def get_inputs(self):
        return [_Value("x", "tensor(float)")]
    def get_outputs(self):
        return [_Value("y", (HERE / "makes").read_text())]
    def get_providers(self):
        return [] if self.how == "unloaded" else [self.first]
    def get_provider_graph_assignment_info(self):
        mine = [] if self.how in ("unloaded", "untaken") else [_Node("a"), _Node("b")]
        return [_Part(self.first, mine), _Part("CPUExecutionProvider", [_Node("c", "MemcpyToHost")])]
    def run(self, names, feeds):
        if self.how == "fails" and not self.fallback:  # else the next provider would do it
            raise RuntimeError("no engine for this size")
        if self.how == "lists":
            return [[2 * array] for array in feeds.values()]
        return [2 * array for array in feeds.values()]
    def run_with_ort_values(self, names, feeds):
        return [_Half()]
"""
Told = Callable[[], dict[str, Any]]


@pytest.fixture
def listening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Told:
    """An environment whose ONNX Runtime writes down what it is told; there is a GPU as far as anybody asks."""
    monkeypatch.setenv("PENSTOCK_ENVIRONMENTS", str(tmp_path / "environments"))
    monkeypatch.setattr(_nvidia, "devices", lambda: 1)
    folder = tmp_path / "environments" / _nvidia.ENVIRONMENT
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / "numpy.pth").write_text(str(Path(np.__file__).parents[1]))  # behind what lies here
    (packages / "onnxruntime" / "capi").mkdir(parents=True)
    (packages / "onnxruntime" / "__init__.py").write_text(LISTENER)
    (packages / "onnxruntime" / "how").write_text("well")
    (packages / "onnxruntime" / "makes").write_text("tensor(float)")
    (packages / "onnxruntime" / "capi" / "libonnxruntime_providers_tensorrt.so").write_bytes(b"\0libnvinfer.so.10\0")
    (packages / "tensorrt_libs").mkdir()
    (packages / "tensorrt_libs" / "libnvinfer.so.10").write_bytes(b"")
    digest = store.file_digest(environment.PINNED / f"{_nvidia.ENVIRONMENT}.txt")
    told = {"requirements": digest, "packages": {"onnxruntime-gpu": "1.31.1"}}
    (folder / environment.WHOLE).write_text(json.dumps(told))
    return lambda: json.loads((packages / "onnxruntime" / "told.json").read_text())


def of(name: str, how: str = "") -> Any:
    if how:
        packages = next((environment.home() / _nvidia.ENVIRONMENT).glob("lib/python*/site-packages"))
        (packages / "onnxruntime" / "how").write_text(how)
    return registry.load("backends", name)


def asked(name: str, precision: Any = "fp32", **options: str) -> Deployment:
    given = {key.replace("_", "-"): value for key, value in options.items()}
    return Deployment(f"m@{name}", "m", "", precision, name, device="gpu", options=given)


@pytest.fixture
def model(tiny: ModuleType, tmp_path: Path) -> Loadable:
    return Loadable(tiny.save(tiny.mlp(), tmp_path / "m.onnx"))


def test_cuda_computes_in_float32_unless_asked(listening: Told, model: Loadable) -> None:
    cuda = of("onnxruntime-cuda")
    assert cuda.available() == ""
    session = cuda.load(model, asked("onnxruntime-cuda"))
    x = np.ones((2, 6), np.float32)
    assert np.array_equal(session.run({"x": x})[0], 2 * x)
    actual = session.actual()
    assert actual["device"] == "gpu" and actual["nodes_by_provider"] == {
        "CUDAExecutionProvider": 2, "CPUExecutionProvider": 1,
    }  # fmt: skip
    assert asked_module.fallback(asked("onnxruntime-cuda"), actual) == ""
    session.close()
    ((name, given),) = listening()["providers"]
    assert name == "CUDAExecutionProvider" and given["use_tf32"] == "0" and listening()["tf32"] == "0"
    assert "tensorrt_libs" in listening()["path"]
    cuda.load(model, asked("onnxruntime-cuda", tf32="on")).close()
    assert listening()["providers"][0][1]["use_tf32"] == "1" and listening()["tf32"] is None


@pytest.mark.parametrize("name", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
@pytest.mark.parametrize(
    ("how", "said", "kind"),
    [
        ("unbuilt", "has no ", MissingError),
        ("unloaded", "couldn't be loaded", MissingError),
        ("untaken", "took none", InputError),
    ],
)
def test_nothing_falls_back_in_silence(
    name: str, how: str, said: str, kind: type[PenstockError], listening: Told, model: Loadable
) -> None:
    with pytest.raises(kind, match=said) as error:
        of(name, how).load(model, asked(name))
    assert error.value.id == ("runtime-refuses" if kind is InputError else "backend-missing")
    assert kind is InputError or f"penstock env add {_nvidia.ENVIRONMENT}" in error.value.do


@pytest.mark.parametrize("name", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_what_a_provider_can_t_run_isn_t_run_by_another(name: str, listening: Told, model: Loadable) -> None:
    session = of(name, "fails").load(model, asked(name))
    with pytest.raises(InputError, match="no engine for this size"):
        session.run({"x": np.ones((2, 6), np.float32)})
    session.close()


def test_a_list_of_tensors_is_an_error_of_its_own(listening: Told, model: Loadable) -> None:
    session = of("onnxruntime-cuda", "lists").load(model, asked("onnxruntime-cuda"))
    with pytest.raises(InputError, match="an output of the model is a list"):
        session.run({"x": np.ones((2, 6), np.float32)})
    assert session.actual()["device"] == "gpu"  # its process goes on
    session.close()


def test_types_that_numpy_has_none_of_come_back_as_they_are(listening: Told, model: Loadable) -> None:
    packages = next((environment.home() / _nvidia.ENVIRONMENT).glob("lib/python*/site-packages"))
    (packages / "onnxruntime" / "makes").write_text("tensor(bfloat16)")
    session = of("onnxruntime-cuda").load(model, asked("onnxruntime-cuda"))
    (found,) = session.run({"x": np.ones((2, 6), np.float32)})
    assert found.dtype.name == "bfloat16" and found.astype(np.float32).tolist() == [1, 1]
    session.close()


def test_engines_are_kept_by_model_and_settings(listening: Told, model: Loadable, tiny: ModuleType) -> None:
    def folder(of_model: Loadable, **more: Any) -> str:
        session = of("onnxruntime-tensorrt").load(of_model, asked("onnxruntime-tensorrt", **more))
        assert session.actual()["engines"] == ["one.engine"]
        session.close()
        given = listening()["providers"][0][1]
        assert given["trt_engine_cache_enable"] == "1" and Path(given["trt_engine_cache_path"]).is_dir()
        return str(given["trt_engine_cache_path"])

    first = folder(model)
    assert [name for name, _ in listening()["providers"]] == ["TensorrtExecutionProvider", "CUDAExecutionProvider"]
    assert model.path is not None
    other = Loadable(tiny.save(tiny.conv(), model.path.with_name("other.onnx")))
    assert folder(model) == first
    outside = tiny.with_external(tiny.mlp(), model.path.with_name("outside.onnx"))
    weights = outside.with_name("w.data")
    found = [folder(other), folder(Loadable(outside)), folder(model, tf32="on"), folder(model, fp16="on")]
    weights.write_bytes(bytes(reversed(weights.read_bytes())))
    assert len({first, *found, folder(Loadable(outside))}) == 6
    folder(model, fp16="on")
    given = listening()["providers"][0][1]
    assert given["trt_fp16_enable"] == "1" and given["trt_int8_enable"] == "0"


@pytest.mark.parametrize(
    ("precision", "half", "integers"), [("fp32", "0", "0"), ("fp16", "1", "0"), ("int8", "0", "1")]
)
def test_a_variant_computes_in_what_it_holds(
    precision: str, half: str, integers: str, listening: Told, model: Loadable
) -> None:
    of("onnxruntime-tensorrt").load(model, asked("onnxruntime-tensorrt", precision)).close()
    given = listening()["providers"][0][1]
    assert (given["trt_fp16_enable"], given["trt_int8_enable"]) == (half, integers)
    assert "trt_int8_calibration_table_name" not in given


@pytest.mark.parametrize(
    ("begins", "native"), [(b"TRT-101100-EntropyCalibration2\nx: 3c010a14\n", "1"), (b"\x18\0\0", "0")]
)
def test_a_calibration_table_lies_beside_the_engines(
    begins: bytes, native: str, listening: Told, model: Loadable, tmp_path: Path
) -> None:
    table = tmp_path / "ranges.table"
    table.write_bytes(begins)
    of("onnxruntime-tensorrt").load(model, asked("onnxruntime-tensorrt", calibration_table=str(table))).close()
    given = listening()["providers"][0][1]
    assert given["trt_int8_enable"] == "1" and given["trt_int8_use_native_calibration_table"] == native
    lies = Path(given["trt_engine_cache_path"]) / given["trt_int8_calibration_table_name"]
    assert lies.read_bytes() == begins
    with pytest.raises(InputError, match="only one"):
        of("onnxruntime-tensorrt").load(model, asked("onnxruntime-tensorrt", "int8", calibration_table=str(table)))
    table.write_bytes(b"")
    with pytest.raises(InputError, match="is empty"):
        of("onnxruntime-tensorrt").load(model, asked("onnxruntime-tensorrt", calibration_table=str(table)))
    table.unlink()
    with pytest.raises(InputError, match="No such file"):
        of("onnxruntime-tensorrt").load(model, asked("onnxruntime-tensorrt", calibration_table=str(table)))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("onnxruntime-cuda", {"tf32": "maybe"}, "tf32 is one of off, on"),
        ("onnxruntime-cuda", {"fp16": "on"}, "it has tf32, convolutions"),
        ("onnxruntime-tensorrt", {"convolutions": "default"}, "it has fp16, tf32, calibration-table"),
    ],
)
def test_a_wrong_option(name: str, options: dict[str, str], said: str, listening: Told, model: Loadable) -> None:
    with pytest.raises(InputError) as error:
        of(name).load(model, asked(name, **options))
    assert said in f"{error.value.what}; {error.value.do}"
    with pytest.raises(MissingError, match="no device 'cpu'"):
        of(name).load(model, Deployment("m", "m", "", "fp32", name))


def test_tensorrt_isnt_there(listening: Told, model: Loadable) -> None:
    packages = next((environment.home() / _nvidia.ENVIRONMENT).glob("lib/python*/site-packages"))
    (packages / "tensorrt_libs" / "libnvinfer.so.10").unlink()
    assert "pip install 'tensorrt-cu13==10.*'" in of("onnxruntime-tensorrt").available()
    with pytest.raises(MissingError) as error:
        of("onnxruntime-tensorrt").load(model, asked("onnxruntime-tensorrt"))
    assert "it needs libnvinfer.so.10" in str(error.value.do)
    assert of("onnxruntime-cuda").available() == ""


@pytest.mark.parametrize("name", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
@pytest.mark.parametrize(
    ("found", "said"),
    [("there is no driver here (libcuda.so.1)", "there is no driver here"), (0, "finds none"), (1, "")],
)
def test_who_asks_for_it_without_one_is_told_why(
    name: str, found: int | str, said: str, model: Loadable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(_nvidia, "devices", lambda: found)
    monkeypatch.setenv("PENSTOCK_ENVIRONMENTS", str(tmp_path / "none"))
    told = of(name).available()
    assert said in told and told.endswith("penstock env add onnxruntime-gpu")
    words = ["verify", str(model.path), "--against", str(model.path), "--backends", name]
    assert cli.run(words) == 3
    assert "penstock env add onnxruntime-gpu" in capsys.readouterr().err


def test_no_gpu_is_found_where_there_is_none() -> None:
    """Of this machine itself: what it says is a reason or a number, and a number where the system lists GPUs."""
    found = _nvidia.devices()
    if Path("/proc/driver/nvidia/gpus").is_dir():
        assert found == len([*Path("/proc/driver/nvidia/gpus").iterdir()])
    else:
        assert found == 0 or (isinstance(found, str) and "driver" in found)
