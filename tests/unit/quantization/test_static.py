"""Static quantization: what each consumer gets, what ONNX Runtime makes of it, and what repair is worth."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from penstock import calibration, running, store
from penstock.data import DataSettings
from penstock.errors import InputError, UsageError
from penstock.metrics import compare
from penstock.quantization import balance, notices, prepare
from penstock.quantization.rounding import rounded
from penstock.quantization.study import Choice
from penstock.quantization.studying import studied
from penstock.stages.quantize import QuantizeSettings, quantize

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(96, 3, 16, 16)).astype(np.float32)


def residual(*, spread: float = 1.0, seed: int = 0) -> onnx.ModelProto:
    """x (N, 3, 16, 16) → two Convs with Relu, a residual block, a pooling, a Gemm → y (N, 5).

    ``spread``: channels of the second Conv differ by that factor, which the next layer's weights take back.
    """
    rng = np.random.default_rng(seed)
    he = lambda *shape: (rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)  # noqa: E731
    held = {
        "w1": he(8, 3, 3, 3),
        "w2": he(16, 8, 3, 3),
        "w3": he(16, 16, 3, 3),
        "w4": he(16, 16, 3, 3),
        "fc": he(5, 16),
    }
    held |= {
        f"b{i}": (rng.normal(size=n) / 10).astype(np.float32) for i, n in ((1, 8), (2, 16), (3, 16), (4, 16), (5, 5))
    }
    factors = np.exp2(np.linspace(0, np.log2(spread), 8)).astype(np.float32)
    held["w1"], held["b1"] = held["w1"] * factors.reshape(-1, 1, 1, 1), held["b1"] * factors
    held["w2"] = held["w2"] / factors.reshape(1, -1, 1, 1)
    pads = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", **pads),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "conv2", **pads),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        helper.make_node("MaxPool", ["r2"], ["p"], "maxpool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p", "w3", "b3"], ["c3"], "conv3", **pads),
        helper.make_node("Relu", ["c3"], ["r3"], "relu3"),
        helper.make_node("Conv", ["r3", "w4", "b4"], ["c4"], "conv4", **pads),
        helper.make_node("Add", ["p", "c4"], ["a"], "add"),
        helper.make_node("Relu", ["a"], ["ra"], "relu4"),
        helper.make_node("GlobalAveragePool", ["ra"], ["g"], "pool"),
        helper.make_node("Flatten", ["g"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "fc", "b5"], ["y"], "gemm", transB=1),
    ]
    graph = helper.make_graph(
        nodes, "residual", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(array, name) for name, array in held.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def batches(images: np.ndarray = IMAGES, size: int = 20) -> calibration.Batches:
    return calibration.of_list([{"x": images[start : start + size]} for start in range(0, len(images), size)])


def made(tiny: ModuleType, folder: Path, model: onnx.ModelProto, **settings: object) -> tuple[Path, dict]:
    source = tiny.save(model, folder / "m.onnx")
    given = settings.pop("images", IMAGES)
    facts = quantize(source, batches(given), QuantizeSettings(**settings), folder / "q.onnx")  # type: ignore[arg-type]
    onnx.checker.check_model(onnx.load(folder / "q.onnx"), full_check=True)
    return folder / "q.onnx", dict(facts)


def run(path: Path, images: np.ndarray, level: str = "all") -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if level == "disabled":
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, {"x": images})[0]


def sqnr(path: Path, model: onnx.ModelProto, tiny: ModuleType, images: np.ndarray = IMAGES) -> float:
    found = compare(run(path, images), tiny.oracle(model, {"x": images})[0], logits=False).sqnr_db
    assert found is not None
    return found


def fused(path: Path, folder: Path) -> list[str]:
    """Return the operators that ONNX Runtime executes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "fused.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "fused.onnx").graph.node]


def test_onnxruntime_computes_on_integers_alone(tiny: ModuleType, tmp_path: Path) -> None:
    path, facts = made(tiny, tmp_path, residual())
    operators = fused(path, tmp_path)
    assert not {"Conv", "Gemm", "Relu", "Add", "FusedConv", "DequantizeLinear"} & {*operators}, operators
    assert operators.count("QLinearConv") == 4 and "QGemm" in operators and "QLinearAdd" in operators
    assert operators.count("QuantizeLinear") == 1, "the input alone is quantized while it runs"
    assert sqnr(path, residual(), tiny) > 30
    assert facts["outputs_left_in_float"] == ["y"] and facts["operators_left_in_float"] == []


@pytest.mark.parametrize("consumer", ["openvino", "integer-only", "tensorrt"])
def test_other_consumers_get_what_they_read(consumer: str, tiny: ModuleType, tmp_path: Path) -> None:
    path, _ = made(tiny, tmp_path, residual(), consumer=consumer, quantize_outputs=consumer == "integer-only")
    model = onnx.load(path)
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    zeros = [held[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    dtypes = {zero.dtype.name for zero in zeros}
    assert dtypes == {"openvino": {"uint8"}, "integer-only": {"int8"}, "tensorrt": {"int8"}}[consumer]
    operators = [node.op_type for node in model.graph.node]
    if consumer == "tensorrt":
        assert not any(zero.any() for zero in zeros), "symmetric"
        assert operators.count("Relu") == 4, "its layers take them in themselves"
    if consumer == "integer-only":
        made_by = {out: node.op_type for node in model.graph.node for out in node.output}
        for node in model.graph.node:
            if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
                assert all(made_by.get(name) == "DequantizeLinear" for name in node.input if name not in held)
        assert "Relu" not in operators, "the grids of the Convs and of the Add clip as they do"
    assert sqnr(path, residual(), tiny) > 25


def test_int16_activations_leave_the_error_of_the_weights_alone(tiny: ModuleType, tmp_path: Path) -> None:
    narrow, _ = made(tiny, tmp_path, residual())
    narrow_db = sqnr(narrow, residual(), tiny)
    wide, _ = made(tiny, tmp_path, residual(), activations="int16")
    assert sqnr(wide, residual(), tiny) > narrow_db + 2
    assert onnx.load(wide).opset_import[0].version >= 21


def test_a_relu_is_left_out_where_the_grid_clips_as_it_does(tiny: ModuleType, tmp_path: Path) -> None:
    path, facts = made(tiny, tmp_path, residual())
    assert "Relu" not in [node.op_type for node in onnx.load(path).graph.node]
    states = {layer["node"]: layer["state"] for layer in facts["layers"]}
    assert states["relu1"] == "absorbed" and states["conv1"] == "integer" and states["maxpool"] == "moved"


def test_what_is_left_in_float_has_a_reason(tiny: ModuleType, tmp_path: Path) -> None:
    path, facts = made(tiny, tmp_path, residual(), exclude=("conv3",))
    told = {layer["node"]: (layer["state"], layer["reason"]) for layer in facts["layers"]}
    assert told["conv3"] == ("float", "it was excluded") and facts["operators_left_in_float"] == ["Conv"]
    assert all(reason for state, reason in told.values() if state in ("float", "absorbed"))
    operators = fused(path, tmp_path)
    assert operators.count("QLinearConv") == 3 and "Conv" in operators, "the runtime would round its weights in silence"


def test_ranges_and_clipping_are_told(tiny: ModuleType, tmp_path: Path) -> None:
    _, facts = made(tiny, tmp_path, residual(), ranges="percentile", percentile=95.0, guard=False)
    conv = next(layer for layer in facts["layers"] if layer["node"] == "conv2")
    assert conv["reads"], facts["layers"]
    assert 0.02 < conv["reads"][0]["clipped"] < 0.08 and conv["reads"][0]["high"] < conv["reads"][0]["seen_high"]
    assert conv["weights"]["scales"] == 16 and 30 < conv["weights"]["sqnr_db"] < 60
    seen = facts["histograms"]["r1"]
    assert sum(seen["counts"]) == 96 * 8 * 16 * 16 and seen["grid_high"] == pytest.approx(conv["reads"][0]["high"])


def test_channels_of_other_scales_are_balanced(tiny: ModuleType, tmp_path: Path) -> None:
    model = residual(spread=256.0)
    plain, _ = made(tiny, tmp_path, model, equalize=False, guard=False)
    plain_db = sqnr(plain, model, tiny)
    done, facts = made(tiny, tmp_path, model, guard=False)
    assert [one["before"] for one in facts["balanced"]] == ["conv1"]
    assert sqnr(done, model, tiny) > max(plain_db + 8, 30)


def test_balancing_changes_nothing_in_float(tiny: ModuleType, tmp_path: Path) -> None:
    model = prepare.prepared(tiny.save(residual(spread=100.0), tmp_path / "m.onnx"))
    assert balance.balance(model, batches(), layers=True, normalizations=True)
    from penstock import graph

    graph.save(model, tmp_path / "balanced.onnx")
    np.testing.assert_allclose(
        run(tmp_path / "balanced.onnx", IMAGES),
        tiny.oracle(residual(spread=100.0), {"x": IMAGES})[0],
        rtol=1e-4,
        atol=1e-4,
    )


def standing_out() -> onnx.ModelProto:
    """x (N, 8, 64) → LayerNormalization, two channels of which are 80 times as large → two MatMuls → y (N, 8, 10)."""
    rng = np.random.default_rng(0)
    gain = np.ones(64, np.float32)
    gain[[3, 17]] = 80
    held = {"g": gain, "b": np.zeros(64, np.float32)}
    held |= {name: (rng.normal(size=(64, n)) / 8).astype(np.float32) for name, n in (("w", 64), ("v", 10))}
    held["w"][[3, 17]] /= 80
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g", "b"], ["n"], "norm"),
        helper.make_node("MatMul", ["n", "w"], ["m"], "first"),
        helper.make_node("Relu", ["m"], ["r"], "relu"),
        helper.make_node("MatMul", ["r", "v"], ["y"], "last"),
    ]
    graph = helper.make_graph(
        nodes, "normalized", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8, 10])],
        [numpy_helper.from_array(array, name) for name, array in held.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_what_stands_out_of_a_normalization_is_smoothed(tiny: ModuleType, tmp_path: Path) -> None:
    model = standing_out()
    rows = np.random.default_rng(1).normal(size=(96, 8, 64)).astype(np.float32)
    plain, facts = made(tiny, tmp_path, model, images=rows, guard=False, smooth=False)
    plain_db = sqnr(plain, model, tiny, rows)
    assert facts["balanced"] == []
    done, facts = made(tiny, tmp_path, model, images=rows, guard=False)
    assert [(one["by"], one["before"]) for one in facts["balanced"]] == [("smooth", "norm")]
    assert sqnr(done, model, tiny, rows) > plain_db + 15


@pytest.mark.parametrize("correct", ["empirical", "analytic"])
def test_a_shifted_bias_is_corrected(correct: str, tiny: ModuleType, tmp_path: Path) -> None:
    """Weights whose rounding errs to one side, on inputs that are never negative: the mean of the output moves."""
    rng = np.random.default_rng(0)
    fine = 1 / 127
    weights = (rng.integers(-20, 20, size=(10, 64)) + 0.4).astype(np.float32) * np.float32(fine)
    weights[:, 0] = 1.0  # the scale is that of this one
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], "relu"),
        helper.make_node("Gemm", ["r", "w", "b"], ["y"], "gemm", transB=1),
    ]
    graph = helper.make_graph(
        nodes, "shifted", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.zeros(10, np.float32), "b")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    rows = (np.abs(rng.normal(size=(96, 64))) + 1).astype(np.float32)
    bare = {"images": rows, "rounding": "nearest", "guard": False, "quantize_outputs": False}
    plain, _ = made(tiny, tmp_path, model, correct_bias="none", **bare)
    plain_db = sqnr(plain, model, tiny, rows)
    done, _ = made(tiny, tmp_path, model, correct_bias=correct, **bare)
    assert sqnr(done, model, tiny, rows) > plain_db + 5


def test_what_a_moving_average_clips_is_told(tiny: ModuleType, tmp_path: Path) -> None:
    images = IMAGES.copy()
    images[:20] *= 4
    _, facts = made(tiny, tmp_path, residual(), ranges="moving-average", images=images, guard=False)
    conv = next(layer for layer in facts["layers"] if layer["node"] == "conv2")
    assert conv["reads"][0]["high"] < conv["reads"][0]["seen_high"] and conv["reads"][0]["clipped"] > 0


def test_rounding_by_what_a_layer_reads_is_better_than_to_the_nearest() -> None:
    random = np.random.default_rng(0)  # of 20 seeds the least gain is a factor of 1.6, the mean one of 2.1
    mixed = random.normal(size=(4000, 24)) @ random.normal(size=(24, 24))
    real, square = random.normal(size=(8, 24)), mixed.T @ mixed / 4000
    steps = np.abs(real).max(axis=1) / 7
    nearest = np.clip(np.rint(real / steps[:, None]), -7, 7)

    def error(whole: np.ndarray) -> float:
        gap = whole * steps[:, None] - real
        return float(np.einsum("ok,kl,ol->", gap, square, gap))

    found = rounded(real, steps, square, 7)
    assert np.array_equal(found, np.rint(found)) and np.abs(found).max() <= 7
    assert error(found) < 0.5 * error(nearest)
    moved = found.copy()
    for row, column in [(0, 0), (3, 7), (7, 23)]:  # no single step is better
        for step in (-1, 1):
            moved[row, column] = np.clip(found[row, column] + step, -7, 7)
            assert error(moved) >= error(found) - 0.02 * error(found)
            moved[row, column] = found[row, column]


@pytest.mark.parametrize(
    "repair", [{"rounding": "adaptive"}, {"correct_bias": "empirical"}, {"correct_bias": "analytic"}]
)
def test_repair_does_not_harm(repair: dict, tiny: ModuleType, tmp_path: Path) -> None:
    model = residual(seed=3)
    bare = {"correct_bias": "none", "ranges": "mse", "rounding": "nearest"}
    plain, _ = made(tiny, tmp_path, model, **bare)
    plain_db = sqnr(plain, model, tiny)
    done, _ = made(tiny, tmp_path, model, **bare | repair)
    assert sqnr(done, model, tiny) > plain_db - 0.3


def test_weights_are_rounded_by_what_layers_read_where_there_is_data(tiny: ModuleType, tmp_path: Path) -> None:
    def rounded_by(images: np.ndarray, **settings: object) -> tuple[object, bytes]:
        path, facts = made(tiny, tmp_path, residual(), images=images, **settings)
        return facts["rounding"], path.read_bytes()

    assert rounded_by(IMAGES) == rounded_by(IMAGES, rounding="adaptive") != rounded_by(IMAGES, rounding="nearest")
    assert rounded_by(IMAGES[:31])[0] == "nearest" and rounded_by(IMAGES[:32])[0] == "adaptive"
    path = tiny.save(residual(), tmp_path / "m.onnx")
    roles = running.role_feeds(path, DataSettings(calibrate=64), 0)  # no data: made up from the signature
    facts = quantize(path, calibration.of_feeds(roles.calibrate, 16), QuantizeSettings(), tmp_path / "q.onnx")
    assert facts["rounding"] == "nearest"


def test_an_outlier_costs_less_than_a_decibel(tiny: ModuleType, tmp_path: Path) -> None:
    clean, _ = made(tiny, tmp_path, residual())
    clean_db = sqnr(clean, residual(), tiny)
    spoilt = IMAGES.copy()
    spoilt[17, 1, 3, 3] = 400.0
    done, facts = made(tiny, tmp_path, residual(), images=spoilt)
    assert sqnr(done, residual(), tiny) > clean_db - 1
    assert any("sample 17 stands out" in note for note in facts["notes"])
    wide, _ = made(tiny, tmp_path, residual(), images=spoilt, ranges="minmax")
    assert sqnr(wide, residual(), tiny) < clean_db - 10


def test_few_samples_are_told_with_how_stable_they_are(tiny: ModuleType, tmp_path: Path) -> None:
    _, few = made(tiny, tmp_path, residual(), images=IMAGES[:5])
    assert any(note.startswith("only 5 calibration samples: leaving out one") for note in few["notes"])
    _, enough = made(tiny, tmp_path, residual())
    assert not any("only" in note for note in enough["notes"])


@pytest.mark.parametrize(("scale", "noticed"), [(1.0, True), (0.99, True), (1 / 255, False)])
def test_raw_pixels_are_noticed(scale: float, noticed: bool, tiny: ModuleType, tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (40, 3, 16, 16)).astype(np.float32) * np.float32(scale)
    _, facts = made(tiny, tmp_path, residual(), images=pixels)
    assert any("raw pixels" in note for note in facts["notes"]) == noticed


def test_rows_of_raw_pixels_are_noticed_and_other_numbers_are_not() -> None:
    pixels = RNG.integers(0, 256, (40, 784)).astype(np.float32)
    assert notices.raw_pixels(calibration.of_list([{"x": pixels}]))
    for other in (pixels + np.float32(0.5), pixels[:, :20], pixels - 128, pixels * 4):
        assert not notices.raw_pixels(calibration.of_list([{"x": other}]))


def test_samples_of_another_scale_than_the_golden_set_are_refused(tiny: ModuleType, tmp_path: Path) -> None:
    source = tiny.save(residual(), tmp_path / "m.onnx")
    given = dataclasses.replace(batches(IMAGES * 255), golden=batches(IMAGES[:8]))
    with pytest.raises(InputError, match="of another scale than the golden set") as caught:
        quantize(source, given, QuantizeSettings(), tmp_path / "q.onnx")
    assert caught.value.id == "other-scale" and not (tmp_path / "q.onnx").exists()
    for golden in (IMAGES[:8], IMAGES[:8] * 0):  # black images are of no scale
        given = dataclasses.replace(batches(), golden=batches(golden))
        quantize(source, given, QuantizeSettings(), tmp_path / "q.onnx")


@pytest.mark.parametrize("method", ["ort", "fp16"])
def test_every_method_that_looks_at_samples_holds_their_scale(method: str, tiny: ModuleType, tmp_path: Path) -> None:
    source = tiny.save(residual(), tmp_path / "m.onnx")
    given = dataclasses.replace(batches(IMAGES * 255), golden=batches(IMAGES[:8]))
    with pytest.raises(InputError, match="of another scale than the golden set"):
        quantize(source, given, QuantizeSettings(method=method), tmp_path / "q.onnx")


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (-np.inf, "infinity")])
def test_a_sample_that_is_not_finite_is_named(value: float, kind: str, tiny: ModuleType, tmp_path: Path) -> None:
    spoilt = IMAGES.copy()
    spoilt[33, 2, 0, 0] = value
    spoilt[35, 0, 0, 0] = np.nan  # another sample of the batch is no concern of it
    with pytest.raises(InputError, match=f"calibration sample 33 has {kind} in its input 'x'"):
        made(tiny, tmp_path, residual(), images=spoilt)


def test_a_sample_is_named_as_in_the_data_that_it_was_dealt_from(tiny: ModuleType, tmp_path: Path) -> None:
    spoilt = IMAGES.copy()
    spoilt[33, 2, 0, 0] = np.nan
    numbers = np.arange(len(spoilt))[::-1] * 3
    given = dataclasses.replace(batches(spoilt), numbers=numbers)
    with pytest.raises(InputError, match=rf"calibration sample 33 \({numbers[33]} of the data\) has NaN"):
        quantize(tiny.save(residual(), tmp_path / "m.onnx"), given, QuantizeSettings(), tmp_path / "q.onnx")


@pytest.mark.parametrize("consumer", ["ort-cpu", "openvino", "integer-only"])
def test_a_bias_of_one_number_is_added_to_all(consumer: str, tiny: ModuleType, tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    held = {"w": random.normal(size=(16, 12)), "b": np.array([0.7]), "v": random.normal(size=(12, 4))}
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["y"], name="second"),
    ]
    given, wanted = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", size]) for name, size in (("x", 16), ("y", 4))
    )
    tensors = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in held.items()]
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(helper.make_graph(nodes, "g", [given], [wanted], tensors), opset_imports=opsets)
    x = random.normal(size=(64, 16)).astype(np.float32)
    source = tiny.save(model, tmp_path / "m.onnx")
    quantize(source, calibration.of_list([{"x": x}]), QuantizeSettings(consumer=consumer), tmp_path / "q.onnx")
    want, got = run(source, x), run(tmp_path / "q.onnx", x)
    assert 10 * np.log10((want**2).sum() / ((want - got) ** 2).sum()) > 30


def test_trying_other_ranges_leaves_no_trace(tiny: ModuleType, tmp_path: Path) -> None:
    path, facts = made(tiny, tmp_path, residual())
    assert len(facts["ranges_tried_db"]) == 3
    chosen, tried = str(facts["ranges"]), path.read_bytes()
    path, _ = made(tiny, tmp_path, residual(), ranges=chosen)
    assert path.read_bytes() == tried


def test_wide_activations_need_no_narrow_weights(tiny: ModuleType, tmp_path: Path) -> None:
    _, narrow = made(tiny, tmp_path, residual(), target_cpu="avx2")
    _, wide = made(tiny, tmp_path, residual(), target_cpu="avx2", activations="uint16")
    assert (narrow["weight_bits"], wide["weight_bits"]) == (7, 8), "their products are summed up in 32 bits"


def test_sensitivity_tells_of_tensors_whatever_the_ranges(tiny: ModuleType, tmp_path: Path) -> None:
    _, facts = made(tiny, tmp_path, residual(), ranges="minmax", sensitivity=30.0)
    errors = facts["tensor_errors"]
    assert errors and set(facts["histograms"]) == {one["tensor"] for one in errors}
    read = next(one for one in errors if one["tensor"] == "x")
    grid = next(layer for layer in facts["layers"] if layer["node"] == "conv1")["reads"][0]
    step = (grid["high"] - grid["low"]) / 255
    exact = IMAGES.astype(np.float64)
    coarse = np.clip(np.rint(exact / step) * step, grid["low"], grid["high"])
    cosine = float((exact * coarse).sum() / np.sqrt((exact**2).sum() * (coarse**2).sum()))
    assert 1 - read["cosine"] == pytest.approx(1 - cosine, rel=0.1)


def test_no_samples(tiny: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no calibration samples") as caught:
        made(tiny, tmp_path, residual(), images=IMAGES[:0])
    assert caught.value.id == "no-samples"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"consumer": "tensorrt", "activations": "uint8"}, "tensorrt takes activations of int8, not uint8"),
        ({"consumer": "openvino", "format": "qoperator"}, "openvino reads Q/DQ pairs"),
        ({"exclude": ("conv9",)}, "no node named 'conv9'"),
    ],
)
def test_what_a_consumer_does_not_take(settings: dict, told: str, tiny: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=told):
        made(tiny, tmp_path, residual(), **settings)


def test_a_quantized_model_is_refused(tiny: ModuleType, tmp_path: Path) -> None:
    path, _ = made(tiny, tmp_path, residual())
    with pytest.raises(InputError, match="quantized already"):
        quantize(path, batches(), QuantizeSettings(), tmp_path / "again.onnx")


def test_nothing_to_quantize(tiny: ModuleType, tmp_path: Path) -> None:
    source = tiny.save(tiny.several(), tmp_path / "m.onnx")
    with pytest.raises(InputError, match="nothing worth quantizing") as caught:
        quantize(source, [], QuantizeSettings(), tmp_path / "q.onnx")
    assert caught.value.do == "use the float model as it is"


def in_bodies(op: str) -> onnx.ModelProto:
    """Return an If with a layer in each of its bodies, and none outside."""

    def body(name: str) -> onnx.GraphProto:
        held = {"w": (64, 64), "k": (4, 4, 1, 1)}["w" if op == "MatMul" else "k"]
        node = helper.make_node(op, ["x", f"{name}_w"], [f"{name}_y"])
        return helper.make_graph(
            [node], name, [], [helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(RNG.normal(size=held).astype(np.float32), f"{name}_w")],
        )  # fmt: skip

    node = helper.make_node("If", ["c"], ["y"], then_branch=body("then"), else_branch=body("else"), name="if")
    shape = ["n", 64] if op == "MatMul" else ["n", 4, 8, 8]
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape),
                      helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(("op", "cure"), [("MatMul", "--method dynamic"), ("Conv", "the float model")])
def test_layers_in_bodies_are_told_of(op: str, cure: str, tiny: ModuleType, tmp_path: Path) -> None:
    source = tiny.save(in_bodies(op), tmp_path / "m.onnx")
    with pytest.raises(InputError) as caught:
        quantize(source, [], QuantizeSettings(), tmp_path / "q.onnx")
    assert f"the bodies of If, Loop and Scan (2 {op}) aren't gone into" in caught.value.what
    assert cure in caught.value.do and "no-quantize" not in caught.value.do
    if op == "MatMul":
        facts = quantize(source, [], QuantizeSettings(method="dynamic"), tmp_path / "q.onnx")
        assert [layer["state"] for layer in facts["layers"]] == ["integer"] * 2  # type: ignore[union-attr, call-overload, index]


def normalized() -> onnx.ModelProto:
    """Return two convolutions; a BatchNormalization and a Mul are folded into them."""
    held = {
        "w": RNG.normal(size=(4, 3, 3, 3)), "v": RNG.normal(size=(4, 4, 3, 3)), "one": np.ones(4), "none": np.zeros(4),
        "k": np.full((1, 4, 1, 1), 3.0),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="first"),
        helper.make_node("BatchNormalization", ["a", "one", "none", "none", "one"], ["b"], name="norm"),
        helper.make_node("Relu", ["b"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "v"], ["c"], name="second"),
        helper.make_node("Mul", ["c", "k"], ["y"], name="scaled"),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, 4, 4])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in held.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("method", ["static", "dynamic", "weight-only"])
@pytest.mark.parametrize(("name", "now"), [("norm", "first"), ("scaled", "second")])
def test_a_folded_node_is_told_with_what_does_its_work(
    method: str, name: str, now: str, tiny: ModuleType, tmp_path: Path
) -> None:
    source = tiny.save(normalized(), tmp_path / "m.onnx")
    with pytest.raises(UsageError, match=f"the node '{name}' isn't there when layers are quantized") as caught:
        quantize(
            source, batches(IMAGES[:, :, :8, :8]), QuantizeSettings(method=method, exclude=(name,)), tmp_path / "q"
        )
    assert caught.value.id == "unknown-node" and f"exclude '{now}'" in caught.value.do


@pytest.mark.parametrize(("kind", "told"), [("seeded", "the inputs are made up"), ("data", "that the samples suit")])
def test_what_the_runtime_refuses_at_calibration_is_told_with_a_cure(
    kind: str, told: str, tiny: ModuleType, tmp_path: Path
) -> None:
    """A Reshape whose sizes no batch fits."""
    model = tiny.mlp()
    model.graph.node.insert(0, helper.make_node("Reshape", ["x", "sizes"], ["shaped"], name="shaped"))
    model.graph.node[1].input[0] = "shaped"
    model.graph.initializer.append(numpy_helper.from_array(np.array([7, 6], np.int64), "sizes"))
    source = tiny.save(model, tmp_path / "m.onnx")
    rows = RNG.normal(size=(16, 6)).astype(np.float32)
    given = dataclasses.replace(calibration.of_list([{"x": rows}]), description={"kind": kind})
    with pytest.raises(InputError, match="ONNX Runtime can't run the model") as caught:
        quantize(source, given, QuantizeSettings(), tmp_path / "q.onnx")
    error = caught.value
    assert error.id == "run-failed" and error.where == str(source)
    assert told in error.do and "--method dynamic" in error.do


def test_another_way_to_choose_ranges_costs_no_run(tiny: ModuleType, tmp_path: Path) -> None:
    source = tiny.save(residual(), tmp_path / "m.onnx")
    cache = store.Cache(tmp_path / "cache")
    kept = dataclasses.replace(batches(), cache=cache, description={"kind": "made up"})
    runs = []
    for ranges in ("mse", "entropy", "percentile"):
        choice = Choice(ranges=ranges)
        study, _ = studied(source, kept, choice)
        study.quantized(choice)
        runs.append(study.runs)
    assert runs == [1, 0, 0]


def test_the_result_is_the_same_each_time(tiny: ModuleType, tmp_path: Path) -> None:
    one, _ = made(tiny, tmp_path, residual())
    first = one.read_bytes()
    again, _ = made(tiny, tmp_path, residual())
    assert first == again.read_bytes()


def test_sensitivity_ranks_the_layer_that_was_spoilt(tiny: ModuleType, tmp_path: Path) -> None:
    model = residual()
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    weights = numpy_helper.to_array(held["w3"]).copy()
    weights[:, 0, 0, 0] *= 60  # one large weight in each row leaves few steps for the others
    held["w3"].CopyFrom(numpy_helper.from_array(weights, "w3"))
    _, facts = made(tiny, tmp_path, model, sensitivity=60.0, guard=False)
    ranked: list[Mapping] = facts["sensitivity"]
    assert ranked[0]["node"] == "conv3" and {one["node"] for one in ranked} == {
        "conv1",
        "conv2",
        "conv3",
        "conv4",
        "gemm",
    }
    assert [one["sqnr_db"] for one in ranked] == sorted(one["sqnr_db"] for one in ranked)
    assert all(0 < one["cosine"] <= 1 and one["top1_agreement"] <= 1 for one in ranked)
