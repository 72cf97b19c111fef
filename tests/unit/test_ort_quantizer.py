"""Static int8: what it makes is valid, close to the float model, and leaves what it should in float."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from penstock.errors import InputError, UsageError
from penstock.metrics import compare
from penstock.stages.quantize import QuantizeSettings, quantize

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(64, 3, 8, 8)).astype(np.float32)
ROWS = RNG.normal(size=(64, 6)).astype(np.float32)


def batches(rows: np.ndarray, size: int = 16) -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, len(rows), size):
        yield {"x": rows[start : start + size]}


def run(path: Path, rows: np.ndarray) -> np.ndarray:
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": rows})[0]


def quantized(
    tiny: ModuleType, tmp_path: Path, model: onnx.ModelProto, rows: np.ndarray, **settings: object
) -> tuple[onnx.ModelProto, dict]:
    source = tiny.save(model, tmp_path / "in" / "m.onnx")
    before = source.read_bytes()
    (tmp_path / "out").mkdir(exist_ok=True)
    facts = quantize(source, batches(rows), QuantizeSettings(method="ort", **settings), tmp_path / "out" / "q.onnx")  # type: ignore[arg-type]
    assert source.read_bytes() == before
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["q.onnx"]
    made = onnx.load(tmp_path / "out" / "q.onnx")
    onnx.checker.check_model(made, full_check=True)
    return made, dict(facts)


@pytest.mark.parametrize("activations", ["uint8", "int8"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_it_is_close_to_the_float_model(activations: str, per_channel: bool, tiny: ModuleType, tmp_path: Path) -> None:
    model = tiny.conv()
    _, facts = quantized(tiny, tmp_path, model, IMAGES, activations=activations, per_channel=per_channel)
    want = tiny.oracle(model, {"x": IMAGES})[0]
    got = run(tmp_path / "out" / "q.onnx", IMAGES)
    assert (compare(got, want, logits=False).sqnr_db or 0) > 20
    assert not np.array_equal(got, want), "something was quantized"
    assert (facts["calibration_samples"], facts["calibration_batch"]) == (64, 16)
    assert facts["activations"] == activations and facts["per_channel"] is per_channel
    assert facts["operators_left_in_float"] == []


@pytest.mark.parametrize("per_channel", [True, False])
def test_a_scale_for_each_output_channel_or_one(per_channel: bool, tiny: ModuleType, tmp_path: Path) -> None:
    made, _ = quantized(tiny, tmp_path, tiny.conv(), IMAGES, per_channel=per_channel)
    conv = next(n for n in made.graph.node if n.op_type == "Conv")
    dequantize = next(n for n in made.graph.node if conv.input[1] in n.output)
    held = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    weights, scales, zero = (held[n] for n in dequantize.input)
    assert weights.dtype == np.int8 and not np.any(zero), "weights are symmetric"
    assert scales.size == (8 if per_channel else 1)
    if per_channel:
        assert len(np.unique(scales)) > 1


@pytest.mark.parametrize("kind", ["conv", "mlp"])
def test_the_last_output_is_float_and_is_not_clipped(kind: str, tiny: ModuleType, tmp_path: Path) -> None:
    rows = IMAGES if kind == "conv" else ROWS
    made, facts = quantized(tiny, tmp_path, getattr(tiny, kind)(), rows)
    assert facts["outputs_left_in_float"] == ["y"]
    producer = next(n for n in made.graph.node if "y" in n.output)
    assert producer.op_type == "Gemm"
    assert [o.name for o in made.graph.output] == ["y"] and [i.name for i in made.graph.input] == ["x"]
    used = {name for node in made.graph.node for name in node.input}
    assert {t.name for t in made.graph.initializer} <= used, "nothing unused stays"


def test_an_output_that_is_read_inside_stays_right(tiny: ModuleType, tmp_path: Path) -> None:
    model = tiny.mlp()
    model.graph.output.append(helper.make_tensor_value_info("h", onnx.TensorProto.FLOAT, ["batch", 16]))
    quantized(tiny, tmp_path, model, ROWS)
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "out" / "q.onnx", providers=["CPUExecutionProvider"])
    assert [o.name for o in session.get_outputs()] == ["y", "h"]
    for got, want in zip(session.run(None, {"x": ROWS}), tiny.oracle(model, {"x": ROWS}), strict=True):
        assert (compare(got, want, logits=False).sqnr_db or 0) > 20


@pytest.mark.parametrize("opset", [11, 12])
def test_an_old_opset_is_raised(opset: int, tiny: ModuleType, tmp_path: Path) -> None:
    model = tiny.conv(opset=opset)
    model.ir_version = 6
    made, facts = quantized(tiny, tmp_path, model, IMAGES)
    assert facts["opset_raised_from"] == opset and [(i.domain, i.version) for i in made.opset_import] == [("", 13)]
    # the same weights at opset 17: the reference evaluator takes BatchNormalization 9 for training
    got, want = run(tmp_path / "out" / "q.onnx", IMAGES), tiny.oracle(tiny.conv(), {"x": IMAGES})[0]
    assert (compare(got, want, logits=False).sqnr_db or 0) > 20


def test_a_later_opset_stays_and_no_import_is_left_behind(tiny: ModuleType, tmp_path: Path) -> None:
    made, facts = quantized(tiny, tmp_path, tiny.conv(opset=17), IMAGES)
    assert facts["opset_raised_from"] is None and [(i.domain, i.version) for i in made.opset_import] == [("", 17)]


def test_excluded_nodes_stay_in_float(tiny: ModuleType, tmp_path: Path) -> None:
    made, _ = quantized(tiny, tmp_path, tiny.mlp(), ROWS, exclude=("second",))
    floats = {t.name for t in made.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) == 2}
    assert floats == {"w2"}


def test_the_same_input_gives_the_same_bytes(tiny: ModuleType, tmp_path: Path) -> None:
    files = []
    for name in ("a", "b"):
        quantized(tiny, tmp_path / name, tiny.conv(), IMAGES)
        files.append((tmp_path / name / "out" / "q.onnx").read_bytes())
    assert files[0] == files[1]


def test_external_data_goes_in(tiny: ModuleType, tmp_path: Path) -> None:
    want = tiny.oracle(tiny.mlp(), {"x": ROWS})[0]
    source = tiny.with_external(tiny.mlp(), tmp_path / "in" / "m.onnx")
    quantize(source, batches(ROWS), QuantizeSettings(method="ort"), tmp_path / "q.onnx")
    assert (compare(run(tmp_path / "q.onnx", ROWS), want, logits=False).sqnr_db or 0) > 20


def test_a_quantized_model_is_refused(tiny: ModuleType, tmp_path: Path) -> None:
    quantized(tiny, tmp_path, tiny.mlp(), ROWS)
    with pytest.raises(InputError) as caught:
        quantize(tmp_path / "out" / "q.onnx", batches(ROWS), QuantizeSettings(method="ort"), tmp_path / "again.onnx")
    assert caught.value.id == "already-quantized" and not (tmp_path / "again.onnx").exists()


def test_nothing_to_quantize(tiny: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        quantize(
            tiny.save(tiny.several(), tmp_path / "m.onnx"), [], QuantizeSettings(method="ort"), tmp_path / "q.onnx"
        )
    assert caught.value.id == "nothing-to-quantize"


def test_no_calibration_samples_is_an_input_error(tiny: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        quantize(tiny.save(tiny.mlp(), tmp_path / "m.onnx"), [], QuantizeSettings(method="ort"), tmp_path / "q.onnx")
    assert caught.value.id == "cannot-quantize" and not (tmp_path / "q.onnx").exists()


def test_an_unknown_name_to_exclude_is_refused(tiny: ModuleType, tmp_path: Path) -> None:
    """A typo would leave the node quantized in silence."""
    from penstock.errors import PenstockError

    with pytest.raises(PenstockError, match="secnod"):
        quantize(
            tiny.save(tiny.mlp(), tmp_path / "m.onnx"), batches(ROWS), QuantizeSettings(exclude=("secnod",)), tmp_path / "q.onnx"  # noqa: E501
        )  # fmt: skip


def test_a_model_whose_weights_alone_are_quantized_is_refused(tiny: ModuleType, tmp_path: Path) -> None:
    source = tiny.save(tiny.mlp(), tmp_path / "m.onnx")
    settings = QuantizeSettings(method="weight-only", weight_bits=8, weight_rounding="rtn", least_weights=0)
    quantize(source, batches(ROWS), settings, tmp_path / "w.onnx")
    with pytest.raises(InputError, match="quantized already: it has DequantizeLinear") as caught:
        quantize(tmp_path / "w.onnx", batches(ROWS), QuantizeSettings(method="ort"), tmp_path / "q.onnx")
    assert caught.value.id == "already-quantized"


def test_biases_of_two_axes_are_flattened(tiny: ModuleType, tmp_path: Path) -> None:
    """The library compares a bias with its scales as if it had one axis; two Gemms share this one."""
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["m"]), helper.make_node("Relu", ["m"], ["r"]),
             helper.make_node("Gemm", ["r", "w", "b"], ["y"])]  # fmt: skip
    held = {"w": rng.normal(size=(6, 6)), "b": rng.normal(size=(1, 6)), "b_flat": rng.normal(size=(1, 6))}
    nodes += [helper.make_node("Add", ["y", "b_flat"], ["z"])]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 6])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 6])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in held.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    rows = rng.normal(size=(64, 6)).astype(np.float32)
    made, facts = quantized(tiny, tmp_path, model, rows)
    assert facts["operators_left_in_float"] == []
    want, got = tiny.oracle(model, {"x": rows})[0], run(tmp_path / "out" / "q.onnx", rows)
    assert (compare(got, want, logits=False).sqnr_db or 0) > 20
    assert "b" not in [held.name for held in made.graph.initializer]


@pytest.mark.parametrize(
    ("settings", "id"),
    [
        ({"consumer": "openvino"}, "wrong-consumer"),
        ({"consumer": "tensorrt"}, "wrong-consumer"),
        ({"consumer": "integer-only"}, "wrong-consumer"),
        ({"activations": "int16"}, "cannot-serve"),
        ({"quantize_outputs": True}, "cannot-serve"),
    ],
)
def test_what_the_library_is_not_asked_for_is_refused(
    settings: dict, id: str, tiny: ModuleType, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        quantized(tiny, tmp_path, tiny.mlp(), ROWS, **settings)
    assert caught.value.id == id and caught.value.where.startswith("--") and "--method static" in caught.value.do


@pytest.mark.parametrize("activations", ["uint8", "int8"])
def test_operators_on_integers(activations: str, tiny: ModuleType, tmp_path: Path) -> None:
    model = tiny.conv()
    made, facts = quantized(tiny, tmp_path, model, IMAGES, format="qoperator", activations=activations)
    assert "QLinearConv" in {node.op_type for node in made.graph.node} and facts["format"] == "QOPERATOR"
    want = tiny.oracle(model, {"x": IMAGES})[0]
    assert (compare(run(tmp_path / "out" / "q.onnx", IMAGES), want, logits=False).sqnr_db or 0) > 20


@pytest.mark.parametrize(("target", "most"), [("avx2", 64), ("vnni", 127)])
def test_weights_keep_to_the_bits_of_the_target(target: str, most: int, tiny: ModuleType, tmp_path: Path) -> None:
    made, facts = quantized(tiny, tmp_path, tiny.conv(), IMAGES, target_cpu=target)
    held = [numpy_helper.to_array(one) for one in made.graph.initializer if one.data_type == TensorProto.INT8]
    assert max(np.abs(array.astype(int)).max() for array in held) == most  # 2 · 255 · 64 fits into 16 bits
    assert (facts["weight_bits"], facts["target_cpu"]) == (7 if target == "avx2" else 8, target)
    assert any("has no VNNI" in note for note in facts["notes"]) is (target == "avx2")
