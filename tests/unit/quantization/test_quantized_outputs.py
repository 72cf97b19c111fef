"""``--quantize-outputs``: the model's results come from integers, for every consumer and every kind of last layer."""

from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from penstock import calibration
from penstock.metrics import compare
from penstock.stages.quantize import QuantizeSettings, quantize

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(64, 3, 8, 8)).astype(np.float32)
CONSUMERS = ("ort-cpu", "openvino", "integer-only", "tensorrt")
HEAD = "c = Conv<pads = [1, 1, 1, 1]>(x, w1) r = Relu(c)"
POOLED = f"{HEAD} g = GlobalAveragePool(r) f = Flatten(g)"
ROWS = f"{HEAD} s = Reshape(r, sizes) t = Transpose<perm = [0, 2, 1]>(s)"
ENDS = {
    "Conv": f"{HEAD} y = Conv(r, w2)",
    "Conv, Relu": f"{HEAD} c2 = Conv(r, w2) y = Relu(c2)",
    "Conv, Add": f"{HEAD} a = Conv(r, w2) b = Conv(r, w3) y = Add(a, b)",
    "Conv, Flatten": f"{HEAD} a = Conv(r, w2) y = Flatten(a)",
    "Gemm": f"{POOLED} y = Gemm(f, fc, row)",
    "Gemm, Relu": f"{POOLED} l = Gemm(f, fc, row) y = Relu(l)",
    "MatMul": f"{POOLED} y = MatMul(f, fc)",
    "MatMul, row": f"{ROWS} l = MatMul(t, fc) y = Add(l, row)",
    "MatMul, row, Relu": f"{ROWS} l = MatMul(t, fc) a = Add(l, row) y = Relu(a)",
    "MatMul, row, Transpose": f"{ROWS} l = MatMul(t, fc) a = Add(l, row) y = Transpose<perm = [0, 2, 1]>(a)",
}
# what is left of these in float: operators that the consumer's table doesn't move
FLOAT = {("tensorrt", "Conv, Flatten"), ("tensorrt", "MatMul, row, Transpose")}


def floats(*shape: int) -> np.ndarray:
    return (RNG.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def model(end: str) -> onnx.ModelProto:
    shapes = {
        "Conv": "N, 5, 8, 8", "Conv, Relu": "N, 5, 8, 8", "Conv, Add": "N, 5, 8, 8", "Conv, Flatten": "N, 320",
        "MatMul, row": "N, 64, 5", "MatMul, row, Relu": "N, 64, 5", "MatMul, row, Transpose": "N, 5, 64",
    }  # fmt: skip
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        ends (float[N, 3, 8, 8] x) => (float[{shapes.get(end, "N, 5")}] y) {{ {ENDS[end]} }}"""
    made = onnx.parser.parse_model(text)
    held = {
        "w1": floats(8, 3, 3, 3), "w2": floats(5, 8, 1, 1), "w3": floats(5, 8, 1, 1), "fc": floats(8, 5),
        "row": floats(5, 1)[:, 0], "sizes": np.array([0, 8, 64]),
    }  # fmt: skip
    used = {name for node in made.graph.node for name in node.input}
    made.graph.initializer.extend(onnx.numpy_helper.from_array(held[name], name) for name in held if name in used)
    onnx.checker.check_model(made, full_check=True)
    return made


def made(source: onnx.ModelProto, tiny: ModuleType, folder: Path, **settings: object) -> tuple[onnx.ModelProto, dict]:
    given = QuantizeSettings(rounding="nearest", guard=False, **settings)  # type: ignore[arg-type]
    feeds = calibration.of_list([{"x": IMAGES}])
    facts = quantize(tiny.save(source, folder / "m.onnx"), feeds, given, folder / "q.onnx")
    done = onnx.load(folder / "q.onnx")
    onnx.checker.check_model(done, full_check=True)
    return done, dict(facts)


def maker(done: onnx.ModelProto, name: str = "y") -> onnx.NodeProto:
    return next(node for node in done.graph.node if name in node.output)


def sqnr(path: Path, source: onnx.ModelProto, tiny: ModuleType) -> float:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = compare(session.run(None, {"x": IMAGES})[0], tiny.oracle(source, {"x": IMAGES})[0], logits=False).sqnr_db
    assert found is not None
    return found


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("consumer", CONSUMERS)
def test_the_result_comes_from_integers(consumer: str, end: str, tiny: ModuleType, tmp_path: Path) -> None:
    source = model(end)
    done, facts = made(source, tiny, tmp_path, consumer=consumer, quantize_outputs=True)
    if (consumer, end) in FLOAT:
        assert maker(done, maker(done).input[0]).op_type == "DequantizeLinear"
        assert any(f"'y' ({maker(done).op_type})" in note for note in facts["notes"])
    else:
        assert maker(done).op_type == "DequantizeLinear" and facts["outputs_left_in_float"] == []
    assert sqnr(tmp_path / "q.onnx", source, tiny) > 28


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("consumer", ["ort-cpu", "openvino", "tensorrt"])
def test_unless_asked_for_it_is_float(consumer: str, end: str, tiny: ModuleType, tmp_path: Path) -> None:
    done, facts = made(model(end), tiny, tmp_path, consumer=consumer)
    assert maker(done).op_type != "DequantizeLinear" and facts["outputs_left_in_float"] == ["y"]


@pytest.mark.parametrize("end", ENDS)
def test_operators_on_integers_give_it(end: str, tiny: ModuleType, tmp_path: Path) -> None:
    source = model(end)
    done, facts = made(source, tiny, tmp_path, quantize_outputs=True, format="qoperator")
    assert maker(done).op_type == "DequantizeLinear" and facts["outputs_left_in_float"] == []
    held = Counter(node.op_type for node in done.graph.node)
    last = {"Conv": "QLinearConv", "Gemm": "QGemm", "MatMul": "QLinearMatMul"}[end.split(",")[0]]
    assert held["MatMulIntegerToFloat" if "row" in end else last]
    assert not {"Conv", "Gemm", "MatMul", "Add"} & {*held}
    assert sqnr(tmp_path / "q.onnx", source, tiny) > 28


def test_a_result_in_the_middle_comes_from_integers_too(tiny: ModuleType, tmp_path: Path) -> None:
    source = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        two (float[N, 3, 8, 8] x) => (float[N, 5] y, float[N, 6] h)
        { f = GlobalAveragePool(x) g = Flatten(f) h = Gemm(g, w1) r = Relu(h) y = MatMul(r, w2) }""")
    for name, array in (("w1", floats(3, 6)), ("w2", floats(6, 5))):
        source.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    done, facts = made(source, tiny, tmp_path, quantize_outputs=True)
    assert [maker(done, name).op_type for name in "yh"] == ["DequantizeLinear"] * 2
    assert facts["outputs_left_in_float"] == []
    assert sqnr(tmp_path / "q.onnx", source, tiny) > 28


def ran(path: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    found: list[np.ndarray] = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)
    return found


def test_a_name_that_an_exporter_gave_to_sizes_that_differ(tmp_path: Path) -> None:
    """Outputs of several scales with one name for their sizes: inner tensors would share memory by it."""
    rng = np.random.default_rng(0)
    nodes, held, outputs, last = [], [], [], "x"
    for at in range(3):
        held.append(numpy_helper.from_array((rng.normal(size=(4, 4, 3, 3)) / 6).astype(np.float32), f"w{at}"))
        nodes += [
            helper.make_node("Conv", [last, f"w{at}"], [f"c{at}"], f"conv{at}", pads=[1, 1, 1, 1]),
            helper.make_node("Sigmoid", [f"c{at}"], [f"y{at}"], f"sigmoid{at}"),
            helper.make_node("MaxPool", [f"c{at}"], [f"p{at}"], f"pool{at}", kernel_shape=[2, 2], strides=[2, 2]),
        ]
        last = f"p{at}"
        outputs.append(helper.make_tensor_value_info(f"y{at}", 1, ["n", 4, "dim", "dim"]))
    inner = [helper.make_tensor_value_info(f"c{at}", 1, ["n", 4, "dim", "dim"]) for at in range(3)]
    x = helper.make_tensor_value_info("x", 1, ["n", 4, "h", "h"])
    model = helper.make_model(
        helper.make_graph(nodes[:-1], "g", [x], outputs, held, value_info=inner),
        opset_imports=[helper.make_opsetid("", 17)], ir_version=8,
    )  # fmt: skip
    onnx.save(model, tmp_path / "m.onnx")
    samples = [{"x": rng.normal(size=(4, 4, 16, 16)).astype(np.float32)}]
    for consumer in ("ort-cpu", "integer-only"):
        settings = QuantizeSettings(consumer=consumer, quantize_outputs=True, guard=False)
        quantize(tmp_path / "m.onnx", calibration.of_list(samples), settings, tmp_path / "q.onnx")
        made = onnx.load(tmp_path / "q.onnx")
        names = {dim.dim_param for value in made.graph.value_info for dim in value.type.tensor_type.shape.dim}
        assert names <= {"", "n", "h"}
        got, want = (ran(tmp_path / name, samples[0]) for name in ("q.onnx", "m.onnx"))
        for ours, theirs in zip(got, want, strict=True):
            assert ours.shape == theirs.shape and np.abs(ours - theirs).max() < 0.1


@pytest.mark.shared
def test_yunet_runs_on_integers_alone(shared: Path, tmp_path: Path) -> None:
    """Whose twelve outputs have one name for three sizes."""
    path = shared / "models" / "yunet-n-dynamic" / "model.onnx"
    settings = QuantizeSettings(consumer="integer-only", ranges="minmax", rounding="nearest", guard=False)
    samples = [{"input": np.random.default_rng(0).uniform(0, 255, (2, 3, 64, 64)).astype(np.float32)}]
    quantize(path, calibration.of_list(samples), settings, tmp_path / "q.onnx")
    found = ran(tmp_path / "q.onnx", samples[0])
    assert [array.shape for array in found[:3]] == [(2, 64, 1), (2, 16, 1), (2, 4, 1)]
