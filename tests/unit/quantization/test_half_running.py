"""What runtimes make of 16-bit models: which types they compute in, by their own account, and what they refuse."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from half_models import converted, decibels, floats, model, reference, seed
from penstock import backends, graph, registry
from penstock.backends import Loadable
from penstock.deployment import Deployment
from penstock.errors import InputError
from penstock.quantization.half import running
from penstock.stages.bench import BenchSettings, Subject, bench
from penstock.stages.quantize import QuantizeSettings, quantize

TEXT = """g (float[n, 3, 8, 8] x) => (float[n, 5] y) {
    c = Conv <pads = [1, 1, 1, 1]> (x, w, b) r = Relu(c) p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
    f = Flatten(p) y = Gemm(f, fc, fb)
}"""


@pytest.fixture(autouse=True)
def seeded() -> None:
    seed(0)


def network() -> onnx.ModelProto:
    return model(TEXT, w=floats(8, 3, 3, 3), b=floats(8), fc=floats(128, 5, scale=0.1), fb=floats(5))


def deployment(backend: str, precision: str) -> Deployment:
    return Deployment(f"v@{backend}", "v", "", precision, backend)  # type: ignore[arg-type]


def opened(backend: str, path: Path, precision: str) -> backends.Session:
    session: backends.Session = registry.load("backends", backend).load(Loadable(path), deployment(backend, precision))  # type: ignore[attr-defined]
    return session


def run(path: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)  # type: ignore[no-any-return]


def test_fp16_in_onnxruntime_and_openvino(tmp_path: Path) -> None:
    """The facts tell what each computes in; ONNX Runtime has no fp16 convolution on a CPU, and adds Casts."""
    source, x = network(), floats(16, 3, 8, 8)
    done = converted(tmp_path, source, [{"x": x}], consumer="ort-cpu")
    told = done.facts["runs_on"]["onnxruntime"]
    assert told["runs"] is True and told["computes_in"]["fp32"] > 0 and "fp16" not in told["computes_in"]
    assert told["sqnr_db"]["y"] > 55
    assert any(note.startswith("ONNX Runtime: it only stores fp16") for note in done.facts["notes"])
    path = tmp_path / "half.onnx"
    path.write_bytes(done.made.SerializeToString())
    want = reference(source, {"x": x})[0]
    assert decibels(run(path, {"x": x})[0], want) == pytest.approx(told["sqnr_db"]["y"], abs=1)
    assert decibels(reference(done.made, {"x": x})[0], want) > 55
    other = done.facts["runs_on"]["openvino"]
    if other["runs"] is None:
        assert "pip install" in other["reason"]
    else:
        assert other["runs"] is True and sum(other["computes_in"].values()) > 0 and other["sqnr_db"]["y"] > 50


def test_bf16_is_stored_where_the_runtime_has_no_kernels(tmp_path: Path) -> None:
    source, x = network(), floats(16, 3, 8, 8)
    done = converted(tmp_path, source, [{"x": x}], "bf16", consumer="ort-cpu")
    told = done.facts["runs_on"]["onnxruntime"]
    assert told["runs"] is True and set(told["computes_in"]) == {"fp32"}
    assert done.facts["nodes_in_16_bits"] == 0
    conv = next(layer for layer in done.layers.values() if layer["op"] == "Conv")
    assert conv["reason"] == "ONNX Runtime has no bfloat16 kernel for Conv on a CPU"
    held = done.held()
    large = [tensor for tensor in held.values() if np.prod(tensor.dims) > 256]
    assert large and all(tensor.data_type == onnx.TensorProto.BFLOAT16 for tensor in large)
    path = tmp_path / "half.onnx"
    path.write_bytes(done.made.SerializeToString())
    assert decibels(run(path, {"x": x})[0], reference(source, {"x": x})[0]) > 35


def test_bf16_in_openvino(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    source, x = network(), floats(16, 3, 8, 8)
    done = converted(tmp_path, source, [{"x": x}], "bf16", consumer="openvino")
    told = done.facts["runs_on"]
    assert done.facts["nodes_in_fp32"] == 0 and told["openvino"]["runs"] is True
    assert told["openvino"]["sqnr_db"]["y"] > 30
    assert told["onnxruntime"]["runs"] is False and "Conv(22)" in told["onnxruntime"]["reason"], "a fact, not a crash"
    assert any(note.startswith("ONNX Runtime doesn't run the result: ") for note in done.facts["notes"])


def test_openvino_computes_what_stays_in_fp32_in_fp32(tmp_path: Path) -> None:
    """Asked for f16 it would compute all in f16; as written, it leaves what overflows alone."""
    pytest.importorskip("openvino")
    source = model("""g (float[n, 8] x) => (float[n, 8] y) {
        a = MatMul(x, w) e = Exp(a) s = Add(e, k) r = Sqrt(s) y = MatMul(r, v)
    }""", w=floats(8, 8), v=floats(8, 8), k=2.0)  # fmt: skip
    x = 2 * floats(32, 8)
    done = converted(tmp_path, source, [{"x": x}], consumer="openvino")
    path = tmp_path / "half.onnx"
    path.write_bytes(done.made.SerializeToString())
    want = reference(source, {"x": x})[0]
    session = opened("openvino", path, "fp16")
    assert decibels(session.run({"x": x})[0], want) > 50
    assert session.actual()["computes_in"].keys() <= {"fp16", "fp32"}  # type: ignore[union-attr]
    if "FP16" in registry.load("backends", "openvino").facts().get("capabilities", ["FP16"]):  # type: ignore[attr-defined]
        one = Deployment("v", "v", "", "fp16", "openvino", precision_hint="f16")
        asked = registry.load("backends", "openvino").load(Loadable(path), one)  # type: ignore[attr-defined]
        assert asked.actual()["precision"] != session.actual()["precision"]


def test_a_float_variant_is_not_profiled(tmp_path: Path) -> None:
    path = tmp_path / "float.onnx"
    path.write_bytes(network().SerializeToString())
    session = opened("onnxruntime", path, "fp32")
    session.run({"x": floats(1, 3, 8, 8)})
    assert "computes_in" not in session.actual()


def test_the_bench_says_what_is_only_stored(tmp_path: Path) -> None:
    source, x = network(), floats(4, 3, 8, 8)
    (tmp_path / "m.onnx").write_bytes(source.SerializeToString())
    quantize(tmp_path / "m.onnx", [{"x": x}], QuantizeSettings(method="fp16"), tmp_path / "half.onnx")
    assert graph.precision(graph.load(tmp_path / "half.onnx")) == "fp16"
    subject = Subject(deployment("onnxruntime", "fp16"), Loadable(tmp_path / "half.onnx"), True)
    short = BenchSettings(warmup_calls=1, min_rounds=2, calls_per_round=1, seconds=0.01, footprint=False, pin=False)
    found = bench([subject], {"x": x[:1]}, None, short)
    assert found.timings[0].actual["computes_in"].keys() == {"fp32"}  # type: ignore[union-attr]
    assert any("v@onnxruntime: it only stores fp16" in caution for caution in found.cautions)


@pytest.mark.parametrize(
    ("precision", "counted", "said"),
    [
        ("fp16", {"fp16": 5, "fp32": 2}, "it computes 5 of its layers in fp16, 2 in fp32"),
        ("bf16", {"fp32": 3}, "it only stores bf16, and computes of its layers 3 in fp32"),
        ("fp16", {"fp16": 5}, ""),
        ("fp32", {"fp32": 5}, ""),
        ("fp16", None, ""),
    ],
)
def test_what_is_said_of_counts(precision: str, counted: dict | None, said: str) -> None:
    assert backends.only_stored(precision, {"computes_in": counted}) == said


def test_a_model_that_kills_the_runtime_is_made_without_what_kills_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime is played: it ends whenever a MaxPool is in fp16, though it takes one that stands alone."""
    calls = []

    def played(path: Path, *_: object) -> dict:
        made = onnx.load(path)
        types = {tensor.name: tensor.type.tensor_type.elem_type for tensor in made.graph.value_info}
        killed = any(
            n.op_type == "MaxPool" and types.get(n.output[0]) == onnx.TensorProto.FLOAT16 for n in made.graph.node
        )
        calls.append(killed)
        return {"onnxruntime": {"runs": not killed, "reason": "the process was ended by SIGSEGV"}}

    monkeypatch.setattr(running, "runs_on", played)
    monkeypatch.setattr(running, "runs", lambda *_: True)
    monkeypatch.setattr(running, "kernelless", lambda *_: {})
    done = converted(tmp_path, network(), [{"x": floats(4, 3, 8, 8)}], consumer="ort-cpu")
    pool = next(layer for layer in done.layers.values() if layer["op"] == "MaxPool")
    assert pool["state"] == "fp32" and "ended by SIGSEGV" in pool["reason"]
    assert calls[0] and not calls[-1] and done.facts["runs_on"]["onnxruntime"]["runs"]


def test_a_runtime_that_does_not_run_the_float_model_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "runs_on", lambda *_: {"onnxruntime": {"runs": False, "reason": "no such thing"}})
    monkeypatch.setattr(running, "runs", lambda *_: False)
    done = converted(tmp_path, network(), [{"x": floats(4, 3, 8, 8)}], consumer="ort-cpu")
    assert done.facts["nodes_in_fp32"] == 0
    assert done.facts["runs_on"]["onnxruntime"]["reason"] == "it doesn't run the float model either: no such thing"


def test_through_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from penstock.cli import run as penstock

    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.onnx").write_bytes(network().SerializeToString())
    np.savez(tmp_path / "x.npz", x=floats(64, 3, 8, 8))
    assert penstock(["quantize", "m.onnx", "--data", "x.npz", "--method", "fp16", "-o", "h.onnx", "--json"]) == 0
    assert '"precision": "fp16"' in capsys.readouterr().out
    assert penstock(["quantize", "h.onnx", "--data", "x.npz", "--method", "fp16", "-o", "again.onnx"]) == 2
    assert not (tmp_path / "again.onnx").exists()


def test_external_weights_go_in(tiny: object, tmp_path: Path) -> None:
    path = tiny.with_external(tiny.mlp(), tmp_path / "in" / "m.onnx")  # type: ignore[attr-defined]
    rows = floats(32, 6)
    quantize(path, [{"x": rows}], QuantizeSettings(method="fp16"), tmp_path / "h.onnx")
    want = tiny.oracle(tiny.mlp(), {"x": rows})[0]  # type: ignore[attr-defined]
    assert decibels(run(tmp_path / "h.onnx", {"x": rows})[0], want) > 55


def test_an_unknown_input_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(network().SerializeToString())
    with pytest.raises(InputError):
        quantize(tmp_path / "m.onnx", [{"z": floats(4, 3, 8, 8)}], QuantizeSettings(method="fp16"), tmp_path / "h.onnx")
