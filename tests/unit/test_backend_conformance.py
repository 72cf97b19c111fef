"""What every backend has to do, whichever runtime it is; a backend that skips something says why here."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from penstock import calibration, registry
from penstock.backends import Loadable
from penstock.deployment import Deployment
from penstock.errors import InputError
from penstock.stages.quantize import QuantizeSettings, quantize

ONNX_ONLY = "it runs modules of its framework, not .onnx files; its own tests are below and in test_torch_frontend"
SKIPS: dict[str, dict[str, str]] = {
    "torch": dict.fromkeys(
        ("conv", "mlp", "several", "gather", "fixed", "scalar input", "broken", "wrong input"), ONNX_ONLY
    ),
}
SKIPS["torch-compile"] = SKIPS["torch"]
SKIPS["openvino"] = {"wide integers": "its CPU plugin computes int64 in 32 bits; the gate verify sees what comes of it"}
SKIPS["openvino-bf16"] = SKIPS["onnxruntime-openvino"] = SKIPS["openvino"]
SKIPS["tflite-micro"] = dict.fromkeys(
    ("gather", "scalar input", "several", "wrong input"), "its kernels take no int64, which ONNX's indices are"
)
TOLERANCES = {"openvino-bf16": 2e-2}  # of the largest value
NAMES = registry.names("backends")
RNG = np.random.default_rng(0)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    backend: Any = registry.load("backends", request.param)
    if problem := backend.available():
        unasked = getattr(backend, "BY_DEFAULT", True)  # whose want makes a run incomplete
        pytest.skip(problem if unasked else f"{request.param}: {problem}")
    return request.param


def skip(name: str, what: str) -> None:
    if reason := SKIPS.get(name, {}).get(what):
        pytest.skip(f"{name}: {reason}")


def load(name: str, path: Path, **more: Any) -> Any:
    backend: Any = registry.load("backends", name)
    return backend.load(Loadable(path), Deployment(f"m@{name}", "m", "", "fp32", name, **more))


def close_to(got: list[np.ndarray], want: list[np.ndarray], name: str = "") -> None:
    assert [(a.shape, a.dtype) for a in got] == [(b.shape, b.dtype) for b in want]
    for a, b in zip(got, want, strict=True):
        assert isinstance(a, np.ndarray)
        if b.dtype.kind == "f":
            assert np.abs(a - b).max() <= TOLERANCES.get(name, 1e-5) * max(float(np.abs(b).max()), 1e-30)
        else:
            assert np.array_equal(a, b)


def feeds_of(kind: str, batch: int) -> dict[str, np.ndarray]:
    def floats(*shape: int) -> np.ndarray:
        return RNG.normal(size=(batch, *shape)).astype(np.float32)

    return {
        "conv": lambda: {"x": floats(3, 8, 8)},
        "mlp": lambda: {"x": floats(6)},
        "gather": lambda: {"ids": RNG.integers(0, 11, (batch, 4))},
        "several": lambda: {"a": floats(4), "b": floats(4)},
    }[kind]()


def test_the_protocol_is_complete(name: str) -> None:
    backend: Any = registry.load("backends", name)
    assert backend.ROLE in ("candidate", "baseline", "oracle")
    assert set(backend.FORMATS) <= {"onnx", "torch"} and backend.FORMATS
    assert json.loads(json.dumps(dict(backend.facts())))["version"]
    assert "onnx" in backend.FORMATS or SKIPS[name], "who runs no .onnx says so above"


@pytest.mark.parametrize("kind", ["conv", "mlp", "several", "gather"])
def test_it_computes_what_the_reference_evaluator_computes(
    name: str, kind: str, tiny: ModuleType, tmp_path: Path
) -> None:
    """At several batch sizes of one session, outputs in the model's order, integers and 0-d outputs too."""
    skip(name, kind)
    model = getattr(tiny, kind)()
    session = load(name, tiny.save(model, tmp_path / "m.onnx"))
    for batch in (1, 5, 2):
        feeds = feeds_of(kind, batch)
        close_to(session.run(feeds), tiny.oracle(model, feeds), name)
    session.close()


def test_feeds_go_by_name(name: str, tiny: ModuleType, tmp_path: Path) -> None:
    skip(name, "several")
    model = tiny.several()
    session = load(name, tiny.save(model, tmp_path / "m.onnx"))
    feeds = feeds_of("several", 3)
    turned = dict(reversed(list(feeds.items())))
    close_to(session.run(turned), tiny.oracle(model, feeds), name)


def test_a_fixed_batch(name: str, tiny: ModuleType, tmp_path: Path) -> None:
    skip(name, "fixed")
    model = tiny.conv(batch=2)
    session = load(name, tiny.save(model, tmp_path / "m.onnx"))
    feeds = feeds_of("conv", 2)
    close_to(session.run(feeds), tiny.oracle(model, feeds), name)


def test_a_scalar_and_an_integer_input(name: str, tiny: ModuleType, tmp_path: Path) -> None:
    skip(name, "scalar input")
    nodes = [
        helper.make_node("Cast", ["n"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "f"], ["y"]),
        helper.make_node("Add", ["n", "n"], ["m"]),
    ]
    io = {
        "x": (TensorProto.FLOAT, ["b", 2]),
        "n": (TensorProto.INT64, []),
        "y": (TensorProto.FLOAT, ["b", 2]),
        "m": (TensorProto.INT64, []),
    }
    info = [helper.make_tensor_value_info(key, *spec) for key, spec in io.items()]
    imports = [helper.make_opsetid("", 17)]
    model = helper.make_model(helper.make_graph(nodes, "g", info[:2], info[2:]), opset_imports=imports, ir_version=8)
    session = load(name, tiny.save(model, tmp_path / "m.onnx"))
    wide = "wide integers" not in SKIPS.get(name, {})
    feeds = {"x": np.array([[1.5, -2.0]], np.float32), "n": np.array(2**40 + 1 if wide else 2**24 + 1, np.int64)}
    close_to(session.run(feeds), tiny.oracle(model, feeds), name)


def test_an_answer_stays_when_the_next_is_computed(name: str, tiny: ModuleType, tmp_path: Path) -> None:
    """Runtimes reuse their buffers; what was returned must not change under the caller's hands."""
    skip(name, "mlp")
    model = tiny.mlp()
    session = load(name, tiny.save(model, tmp_path / "m.onnx"))
    first = feeds_of("mlp", 3)
    got = session.run(first)
    session.run({"x": first["x"] * 100})
    close_to(got, tiny.oracle(model, first), name)


def test_the_feeds_are_not_changed(name: str, tiny: ModuleType, tmp_path: Path) -> None:
    skip(name, "mlp")
    session = load(name, tiny.save(tiny.mlp(), tmp_path / "m.onnx"))
    feeds = feeds_of("mlp", 3)
    before = feeds["x"].copy()
    session.run(feeds)
    assert np.array_equal(feeds["x"], before)


def test_external_data_is_read(name: str, tiny: ModuleType, tmp_path: Path) -> None:
    skip(name, "mlp")
    feeds = feeds_of("mlp", 2)
    want = tiny.oracle(tiny.mlp(), feeds)
    session = load(name, tiny.with_external(tiny.mlp(), tmp_path / "m.onnx"))
    close_to(session.run(feeds), want, name)


def broken(tiny: ModuleType, how: str) -> bytes:
    model = tiny.mlp()
    if how == "unknown operator":
        model.graph.node[0].op_type = "NoSuchOperator"
    elif how == "unknown domain":
        model.graph.node[0].domain = "com.example"
        model.opset_import.append(helper.make_opsetid("com.example", 1))
    elif how == "cut off":
        return model.SerializeToString()[:-100]
    elif how == "no file":
        return b""
    return model.SerializeToString()


@pytest.mark.parametrize("how", ["unknown operator", "unknown domain", "cut off", "no file"])
def test_a_broken_model_is_an_input_error(name: str, how: str, tiny: ModuleType, tmp_path: Path) -> None:
    """At loading; the reference evaluator may find an unknown operator only when it gets there."""
    skip(name, "broken")
    path = tmp_path / "m.onnx"
    if data := broken(tiny, how):
        path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        load(name, path).run(feeds_of("mlp", 1))
    assert caught.value.what and "\n" not in caught.value.what


@pytest.mark.parametrize("wrong", ["name", "shape", "missing"])
def test_a_wrong_input_is_an_input_error_and_the_session_lives_on(
    name: str, wrong: str, tiny: ModuleType, tmp_path: Path
) -> None:
    skip(name, "wrong input")
    model = tiny.several()
    session = load(name, tiny.save(model, tmp_path / "m.onnx"))
    good = feeds_of("several", 2)
    bad = {
        "name": {"a": good["a"], "nobody": good["b"]},
        "shape": {"a": good["a"], "b": good["b"][:, :3]},
        "missing": {"a": good["a"]},
    }[wrong]
    with pytest.raises(InputError):
        session.run(bad)
    close_to(session.run(good), tiny.oracle(model, good), name)


def test_it_tells_what_really_runs(name: str, tiny: ModuleType, tmp_path: Path) -> None:
    skip(name, "mlp")
    session = load(name, tiny.save(tiny.mlp(), tmp_path / "m.onnx"))
    session.run(feeds_of("mlp", 1))
    actual = json.loads(json.dumps(dict(session.actual())))
    assert actual["device"].lower() == "cpu"
    if name not in ("reference", "onnxruntime-openvino"):  # which have no threads of their own to count
        assert actual["threads"] == 1


SILENT = {  # of what a node takes
    "reference": "onnx's evaluator has no clock", "tflite-micro": "its Python package has no profiler",
    "litert": "the interpreter's Python face has no profiler",
    "onnxruntime-webgpu": "its profile has what it takes to hand a node to the GPU",
}  # fmt: skip


def test_the_times_of_its_nodes_are_the_runtimes_own(name: str, tiny: ModuleType, tmp_path: Path) -> None:
    skip(name, "conv")
    session = load(name, tiny.save(tiny.conv(), tmp_path / "m.onnx"))
    feeds = feeds_of("conv", 4)
    session.run(feeds)
    found = session.nodes(feeds, 3) if hasattr(session, "nodes") else []
    session.close()
    assert bool(found) != (name in SILENT), found
    if found:
        assert all(one.name and one.ms >= 0 for one in found) and 0 < sum(one.ms for one in found) < 1000
        assert len({one.name for one in found}) == len(found)


# how the two layers of the tiny net are computed, a Conv and a Gemm
ON_INTEGERS = {
    "onnxruntime": {"int8": 2}, "onnxruntime-web": {"int8": 2}, "onnxruntime-webgpu": {"fp32": 2},
    "litert": {"int8": 2}, "openvino": {"int8": 2}, "tflite-micro": {"int8": 2},
    "tvm": {"fp32": 2}, "iree": {"int8": 2},
}  # fmt: skip


def test_it_tells_in_which_type_the_layers_of_int8_are_computed(name: str, tiny: ModuleType, tmp_path: Path) -> None:
    if name not in ON_INTEGERS:
        pytest.skip(f"{name}: it doesn't tell")
    made, x = tmp_path / "int8.onnx", RNG.normal(size=(64, 3, 8, 8)).astype(np.float32)
    source = tiny.save(tiny.conv(), tmp_path / "m.onnx")
    quantize(source, calibration.of_list([{"x": x}]), QuantizeSettings(consumer="integer-only"), made)
    backend: Any = registry.load("backends", name)
    session = backend.load(Loadable(made), Deployment(f"m@{name}", "m", "", "int8", name))
    session.run({"x": x[:2]})
    told = session.actual()
    session.close()
    assert told["weighted_in"] == ON_INTEGERS[name], told


def test_closing_twice_is_harmless(name: str, tiny: ModuleType, tmp_path: Path) -> None:
    skip(name, "mlp")
    session = load(name, tiny.save(tiny.mlp(), tmp_path / "m.onnx"))
    session.close()
    session.close()


# --- what only some have


@pytest.mark.parametrize("level", ["disabled", "basic", "extended", "all"])
@pytest.mark.parametrize("bound", [False, True])
def test_onnxruntime_levels_and_bindings_agree(level: str, bound: bool, tiny: ModuleType, tmp_path: Path) -> None:
    model = tiny.conv()
    path = tiny.save(model, tmp_path / "m.onnx")
    session = load("onnxruntime", path, options={"optimization": level}, io_binding=bound)
    feeds = feeds_of("conv", 3)
    close_to(session.run(feeds), tiny.oracle(model, feeds))
    actual = session.actual()
    assert actual["optimization"] == level and actual["io_binding"] is bound
    assert sum(actual["nodes_by_provider"].values()) > 0 and set(actual["nodes_by_provider"]) == {
        "CPUExecutionProvider"
    }


def test_onnxruntime_refuses_unknown_options_and_devices(tiny: ModuleType, tmp_path: Path) -> None:
    from penstock.errors import MissingError

    path = tiny.save(tiny.mlp(), tmp_path / "m.onnx")
    with pytest.raises(InputError, match="disabled, basic, extended, all"):
        load("onnxruntime", path, options={"optimization": "most"})
    with pytest.raises(MissingError, match="'cuda'"):
        load("onnxruntime", path, device="cuda")


def test_a_bound_run_with_wrong_inputs_is_an_input_error(tiny: ModuleType, tmp_path: Path) -> None:
    session = load("onnxruntime", tiny.save(tiny.several(), tmp_path / "m.onnx"), io_binding=True)
    with pytest.raises(InputError):
        session.run({"a": np.zeros((1, 4), np.float32)})


def test_openvino_computes_in_float32_unless_asked(tiny: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    path = tiny.save(tiny.conv(), tmp_path / "m.onnx")
    assert (
        "float32" in load("openvino", path).actual()["precision"]
        or "f32" in load("openvino", path).actual()["precision"]
    )
    with pytest.raises(InputError):
        load("openvino", path, precision_hint="f33")


@pytest.mark.torch
def test_torch_runs_the_source_and_lists_what_it_skips(tmp_path: Path) -> None:
    assert SKIPS["torch"] and all(SKIPS["torch"].values())
    source = tmp_path / "conformance_net.py"
    source.write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def forward(self, b, a):\n"
        "        z = 2 * b - a\n"
        "        return {'z': z, 'arg': z.argmax(1), 'sum': z.sum()}\n"
    )
    backend: Any = registry.load("backends", "torch")
    session = backend.load(
        Loadable(None, f"{source}:Net"), Deployment("source", "source", "", "fp32", "torch", role="baseline")
    )
    b, a = np.arange(8, dtype=np.float32).reshape(2, 4), np.ones((2, 4), np.float32)
    z, arg, total = session.run({"b": b, "a": a})
    assert np.array_equal(z, 2 * b - a) and arg.tolist() == [3, 3] and total.shape == () and total == (2 * b - a).sum()
    assert json.loads(json.dumps(dict(session.actual())))["device"] == "cpu"
    with pytest.raises(InputError, match="can't run on this input"):
        session.run({"b": b, "a": np.ones((3, 3), np.float32)})
    session.close()
    session.close()
    with pytest.raises(InputError):
        backend.load(Loadable(None, f"{source}:Nobody"), Deployment("s", "s", "", "fp32", "torch"))


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of itself
def test_torch_compile_agrees_with_eager_and_tells_its_graphs(tmp_path: Path) -> None:
    (tmp_path / "compiled_net.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return (x * 3 - 1).relu().sum(1)\n"
    )
    backend: Any = registry.load("backends", "torch-compile")
    if problem := backend.available():
        pytest.skip(f"torch-compile: {problem}")
    source = Loadable(None, f"{tmp_path / 'compiled_net.py'}:Net")
    session = backend.load(source, Deployment("source", "source", "", "fp32", "torch-compile"))
    for batch in (2, 5):
        x = RNG.normal(size=(batch, 6)).astype(np.float32)
        np.testing.assert_allclose(session.run({"x": x})[0], np.maximum(x * 3 - 1, 0).sum(1), rtol=1e-5)
    actual = session.actual()
    assert actual["graphs"] >= 1 and actual["graph_breaks"] == 0 and actual["threads"] == 1
    with pytest.raises(InputError):
        session.run({"x": np.ones((2, 2, 2, 2), np.float64), "y": np.ones(1)})
    session.close()


def test_every_onnx_model_of_the_suite_is_valid(tiny: ModuleType) -> None:
    for kind in ("conv", "mlp", "several", "gather"):
        onnx.checker.check_model(getattr(tiny, kind)(), full_check=True)
