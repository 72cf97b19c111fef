"""Dynamic int8: what each kind of node becomes, held against the reference evaluator, or numpy where it has none."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from penstock.errors import InputError, UsageError
from penstock.metrics import compare
from penstock.quantization.dynamic_weights import balanced, of_columns
from penstock.stages.quantize import QuantizeSettings, quantize

RNG = np.random.default_rng(0)
START = RNG.bit_generator.state
FLOAT = TensorProto.FLOAT
LEVELS = onnxruntime.GraphOptimizationLevel


@pytest.fixture(autouse=True)
def _again() -> None:
    """Let every test draw the same numbers in whichever order they run."""
    RNG.bit_generator.state = START


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def build(
    nodes: Sequence[onnx.NodeProto], inputs: Mapping[str, list], outputs: Sequence[str], held: Mapping[str, np.ndarray],
    opset: int = 17,
) -> onnx.ModelProto:  # fmt: skip
    graph = helper.make_graph(
        list(nodes), "g", [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in held.items()],
    )  # fmt: skip
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=imports, ir_version=8))


def made(model: onnx.ModelProto, folder: Path, **settings: Any) -> tuple[onnx.ModelProto, dict]:
    """Quantize without a single sample."""
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    wanted = QuantizeSettings(**{"method": "dynamic", "force_small": True, **settings})
    facts = quantize(folder / "m.onnx", [], wanted, folder / "q.onnx")
    return onnx.load(folder / "q.onnx"), dict(facts)


def run(
    model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], level: Any = LEVELS.ORT_ENABLE_ALL
) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1  # an LSTM on several threads rounds the states of each thread's rows together
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(feeds))


def fused(model: onnx.ModelProto, folder: Path) -> Counter:
    """Count the operators that ONNX Runtime makes of a model."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def ops(model: onnx.ModelProto) -> Counter:
    return Counter(node.op_type for node in model.graph.node)


def held_in(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}


def rounded(x: np.ndarray) -> np.ndarray:
    """Quantize and dequantize as DynamicQuantizeLinear is defined."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = np.float32((high - low) / 255) if high > low else np.float32(1)
    zero = np.clip(np.rint(0 - low / scale), 0, 255)
    return ((np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale).astype(np.float32)


def sqnr(got: np.ndarray, want: np.ndarray) -> float:
    return compare(got, want, logits=False).sqnr_db or 0.0


def reason(facts: Mapping[str, Any], op: str) -> str:
    return next(layer["reason"] for layer in facts["layers"] if layer["op"] == op and layer["state"] == "float")


def product(**attributes: Any) -> tuple[onnx.ModelProto, np.ndarray]:
    weights, bias = floats(48, 40), floats(40)
    turned = attributes.get("transB", 0)
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="gemm", **attributes)]
    model = build(nodes, {"x": ["n", 48]}, ["y"], {"w": weights.T.copy() if turned else weights, "b": bias})
    return model, floats(9, 48)


# -- products


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_a_matmul(rank: int, per_channel: bool, tiny: ModuleType, tmp_path: Path) -> None:
    shape = [2, 3, 5, 48][4 - rank :]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="m")]
    model = build(nodes, {"x": [f"d{i}" for i in range(rank - 1)] + [48]}, ["y"], {"w": floats(48, 40)})
    got, facts = made(model, tmp_path, per_channel=per_channel)
    assert ops(got) == {"DynamicQuantizeLinear": 1, "MatMulInteger": 1, "Cast": 1, "Mul": 2}
    onnx.checker.check_model(got, full_check=True)
    x = floats(*shape)
    want = tiny.oracle(got, {"x": x})[0]
    for level in (LEVELS.ORT_DISABLE_ALL, LEVELS.ORT_ENABLE_ALL):
        np.testing.assert_allclose(run(got, {"x": x}, level)[0], want, rtol=1e-4, atol=1e-4)
    assert 35 < sqnr(want, tiny.oracle(model, {"x": x})[0]) < 60
    assert [node.name for node in got.graph.node if node.op_type == "MatMulInteger"] == ["m"], "it keeps its name"
    assert held_in(got)["w_scale"].shape == ((40,) if per_channel else ())
    assert (facts["precision"], facts["calibration_samples"]) == ("int8", 0)


@pytest.mark.parametrize(
    "attributes", [{}, {"transB": 1}, {"alpha": 0.5}, {"beta": -2.0}, {"transB": 1, "alpha": -1.5, "beta": 0.25}]
)
def test_a_gemm(attributes: dict, tiny: ModuleType, tmp_path: Path) -> None:
    model, x = product(**attributes)
    got, _ = made(model, tmp_path)
    assert fused(got, tmp_path) == {"DynamicQuantizeMatMul": 1}, "the bias too"
    want = tiny.oracle(got, {"x": x})[0]
    np.testing.assert_allclose(run(got, {"x": x})[0], want, rtol=1e-4, atol=1e-4)
    assert sqnr(want, tiny.oracle(model, {"x": x})[0]) > 35


@pytest.mark.parametrize("shape", [(), (1,), (40,), (1, 40), (9, 1), (9, 40)])
def test_what_a_gemm_adds(shape: tuple[int, ...], tiny: ModuleType, tmp_path: Path) -> None:
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], beta=2.0)]
    model = build(nodes, {"x": [9, 48]}, ["y"], {"w": floats(48, 40), "b": floats(*shape)})
    got, _ = made(model, tmp_path)
    x = floats(9, 48)
    assert sqnr(run(got, {"x": x})[0], tiny.oracle(model, {"x": x})[0]) > 35


def test_a_gemm_that_adds_an_activation(tiny: ModuleType, tmp_path: Path) -> None:
    nodes = [helper.make_node("Gemm", ["x", "w", "c"], ["y"], name="one")]
    model = build(nodes, {"x": [9, 48], "c": [9, 40]}, ["y"], {"w": floats(48, 40)})
    got, _ = made(model, tmp_path)
    feeds = {"x": floats(9, 48), "c": floats(9, 40)}
    assert sqnr(run(got, feeds)[0], tiny.oracle(model, feeds)[0]) > 35
    model.graph.node[0].attribute.append(helper.make_attribute("beta", 3.0))
    with pytest.raises(InputError, match="beta"):
        made(model, tmp_path)


def test_a_tensor_is_quantized_once_for_all_its_readers(tiny: ModuleType, tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", n], [f"y{n}"], name=n) for n in "qkv"]
    model = build(nodes, {"x": ["n", 48]}, ["yq", "yk", "yv"], {n: floats(48, 40) for n in "qkv"})
    got, _ = made(model, tmp_path)
    assert ops(got)["DynamicQuantizeLinear"] == 1
    assert fused(got, tmp_path) == {"DynamicQuantizeLinear": 1, "MatMulIntegerToFloat": 3}
    x = floats(7, 48)
    for a, b in zip(run(got, {"x": x}), tiny.oracle(got, {"x": x}), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("first", [True, False])
def test_a_bias_that_stands_first_is_fused_too(first: bool, tiny: ModuleType, tmp_path: Path) -> None:
    inputs = ["b", "m"] if first else ["m", "b"]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", inputs, ["y"])]
    model = build(nodes, {"x": ["a", "n", 48]}, ["y"], {"w": floats(48, 40), "b": floats(40)})
    got, _ = made(model, tmp_path)
    assert fused(got, tmp_path) == {"DynamicQuantizeMatMul": 1}
    x = floats(2, 7, 48)
    np.testing.assert_allclose(run(got, {"x": x})[0], tiny.oracle(got, {"x": x})[0], rtol=1e-4, atol=1e-4)


def test_weights_that_two_layers_share_are_held_once(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    got, _ = made(build(nodes, {"x": ["n", 48]}, ["y"], {"w": floats(48, 48)}), tmp_path)
    matrices = [array for array in held_in(got).values() if array.ndim == 2]
    assert len(matrices) == 1 and matrices[0].dtype == np.int8
    assert ops(got)["MatMulInteger"] == 2


def test_an_output_in_the_middle_and_one_that_is_read_keep_their_names(tiny: ModuleType, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["y"]),
    ]  # fmt: skip
    model = build(nodes, {"x": ["n", 48]}, ["h", "y"], {"w": floats(48, 64), "v": floats(64, 33)})
    got, _ = made(model, tmp_path)
    assert [one.name for one in got.graph.output] == ["h", "y"]
    x = floats(5, 48)
    for a, b in zip(run(got, {"x": x}), tiny.oracle(model, {"x": x}), strict=True):
        assert sqnr(a, b) > 35


def test_columns_use_all_integers() -> None:
    """A column that reaches further to one side has a zero point; the error is half of a symmetric grid's."""
    real = np.stack([RNG.uniform(0, 1, 500), RNG.uniform(-3, 1, 500), np.zeros(500)], axis=1).astype(np.float32)
    grid = of_columns(real)
    whole = grid.quantize(real)
    assert whole.dtype == np.int8 and (np.ptp(whole[:, :2].astype(int), axis=0) >= 253).all()
    assert np.abs(grid.dequantize(whole) - real).max() <= grid.scale.max() / 2 + 1e-6
    np.testing.assert_allclose(grid.scale[:2], (real.max(0) - np.minimum(real.min(0), 0))[:2] / 255, rtol=0.01)


def test_one_outlier_does_not_coarsen_a_column() -> None:
    real = np.concatenate([RNG.normal(0, 0.01, 4000), [1.0]]).astype(np.float32)[:, None]
    grid = of_columns(real)
    plain = np.square(np.rint(real * 255 / (1 - real.min())) * (1 - real.min()) / 255 - real).sum()
    assert np.square(grid.fake(real) - real).sum() <= plain


def test_errors_of_a_column_even_out_where_inputs_are_positive(tmp_path: Path) -> None:
    real = floats(200, 7)
    grid = of_columns(real)
    plain, even = grid.quantize(real), balanced(real, grid)
    errors = [(grid.dequantize(whole) - real) / grid.scale for whole in (plain, even)]
    assert np.abs(errors[0].sum(axis=0)).max() > 1 and np.abs(errors[1].sum(axis=0)).max() <= 0.5 + 1e-3
    assert np.abs(errors[1]).max() < 1 and np.square(errors[1]).sum() < 1.3 * np.square(errors[0]).sum()
    x = np.abs(floats(50, 200))
    off = [np.square(x @ (error * grid.scale)).sum() for error in errors]
    assert off[1] < off[0] / 1.5


@pytest.mark.parametrize(
    ("op", "bounds", "even"),
    [("Relu", (), True), ("Clip", (0.0, 6.0), True), ("Clip", (-1.0, 1.0), False), ("Tanh", (), False)],
)
def test_which_inputs_count_as_positive(op: str, bounds: tuple, even: bool, tmp_path: Path) -> None:
    held = {f"bound{i}": np.array(one, np.float32) for i, one in enumerate(bounds)}
    nodes = [
        helper.make_node(op, ["x", *held], ["r"]),
        helper.make_node("Transpose", ["r"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["t", "w"], ["y"]),
    ]
    real = floats(48, 40)
    got, _ = made(build(nodes, {"x": [48, 5]}, ["y"], held | {"w": real}), tmp_path)
    kept = held_in(got)
    error = (kept["w_quantized"].astype(np.float32) - kept["w_zero_point"]) - real / kept["w_scale"]
    assert bool(np.abs(error.sum(axis=0)).max() <= 0.5 + 1e-3) is even


# -- what stays in float


def test_two_activations_a_constant_on_the_left_and_small_layers_stay(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="plain"),
        helper.make_node("MatMul", ["h", "z"], ["s"], name="both"),
        helper.make_node("MatMul", ["u", "h"], ["l"], name="left"),
        helper.make_node("MatMul", ["h", "small"], ["y"], name="small"),
        helper.make_node("Gather", ["table", "i"], ["e"], name="embedding"),
    ]  # fmt: skip
    held = {"w": floats(64, 64), "u": floats(3, 4), "small": floats(64, 8), "table": floats(10, 64)}
    model = build(nodes, {"x": [4, 64], "z": [64, 4]}, ["s", "l", "y", "e"], held | {"i": np.array([1, 2], np.int64)})
    _, facts = made(model, tmp_path, force_small=False)
    states = {layer["node"]: (layer["state"], layer["reason"]) for layer in facts["layers"]}
    assert states["plain"] == ("integer", "")
    assert "two activations" in states["both"][1] and "on the left" in states["left"][1]
    assert "64 × 8 weights are too few" in states["small"][1] and "--force-small" in states["small"][1]
    assert "table" in states["embedding"][1] and facts["operators_left_in_float"] == ["Gather", "MatMul"]


def test_convolutions_stay_and_are_converted_on_demand(tiny: ModuleType, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "k", "b"], ["c"], name="conv", pads=[1, 1, 1, 1], strides=[2, 2], group=2),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]), helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w"], ["y"], name="gemm"),
    ]  # fmt: skip
    held = {"k": floats(64, 2, 3, 3), "b": floats(64), "w": floats(64, 64)}
    model = build(nodes, {"x": ["n", 4, 8, 8]}, ["y"], held)
    got, facts = made(model, tmp_path)
    assert ops(got)["Conv"] == 1 and "slower" in reason(facts, "Conv") and "--force-conv" in reason(facts, "Conv")
    got, _ = made(model, tmp_path, force_conv=True)
    assert ops(got)["ConvInteger"] == 1 and "Conv" not in ops(got)
    x = floats(3, 4, 8, 8) + 2  # padding counts
    want = tiny.oracle(got, {"x": x})[0]
    np.testing.assert_allclose(run(got, {"x": x}, LEVELS.ORT_DISABLE_ALL)[0], want, rtol=1e-4, atol=1e-4)
    assert sqnr(run(got, {"x": x})[0], tiny.oracle(model, {"x": x})[0]) > 30


def test_excluded_nodes_stay(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="a"),
        helper.make_node("MatMul", ["h", "v"], ["y"], name="b"),
    ]
    model = build(nodes, {"x": ["n", 48]}, ["y"], {"w": floats(48, 48), "v": floats(48, 48)})
    got, facts = made(model, tmp_path, exclude=("a",))
    assert reason(facts, "MatMul") == "it was excluded"
    assert held_in(got)["w"].dtype == np.float32 and "v" not in held_in(got)
    with pytest.raises(UsageError, match="no node named"):
        made(model, tmp_path, exclude=("c",))


def test_weights_of_other_types_stay(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["d"], to=TensorProto.DOUBLE),
        helper.make_node("MatMul", ["d", "w"], ["y"]),
    ]
    model = build(nodes, {"x": ["n", 48]}, ["y"], {"w": floats(48, 48).astype(np.float64)})
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    with pytest.raises(InputError, match="DOUBLE, not FLOAT") as caught:
        made(model, tmp_path)
    assert caught.value.id == "nothing-to-quantize"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers_stay(bad: float, tmp_path: Path) -> None:
    weights = floats(48, 48)
    weights[3, 4] = bad
    model = build([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ["n", 48]}, ["y"], {"w": weights})
    with pytest.raises(InputError, match="NaN or infinity"):
        made(model, tmp_path)


# -- LSTM


def lstm(directions: int, *, bias: bool, hidden: int = 16, given: int = 12, **attributes: Any) -> onnx.ModelProto:
    held = {"w": floats(directions, 4 * hidden, given) / 3, "r": floats(directions, 4 * hidden, hidden) / 4}
    if bias:
        held["b"] = floats(directions, 8 * hidden)
    inputs = ["x", "w", "r", "b" if bias else "", "", "h0", "c0"]
    names = ["forward", "bidirectional"]
    nodes = [
        helper.make_node(
            "LSTM", inputs, ["y", "", "c"], hidden_size=hidden, direction=names[directions - 1], **attributes
        )
    ]  # fmt: skip
    state = [directions, "n", hidden]
    return build(nodes, {"x": ["t", "n", given], "h0": state, "c0": state}, ["y", "c"], held)


def by_hand(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Compute a DynamicQuantizeLSTM: the whole input is rounded at once, the state at each step."""
    node = next(node for node in model.graph.node if node.op_type == "DynamicQuantizeLSTM")
    held = held_in(model)
    w, r, b, ws, rs = (held[node.input[i]] for i in (1, 2, 3, 8, 10))
    x, hidden = feeds["x"], r.shape[1]
    out, last = np.zeros((len(x), len(w), x.shape[1], hidden), np.float32), []
    for d in range(len(w)):
        weights = [(a[d] * (s[d] if s.ndim == 1 else s[d][None, :])).astype(np.float32) for a, s in ((w, ws), (r, rs))]
        h, c = feeds["h0"][d], feeds["c0"][d]
        steps = rounded(x) @ weights[0] + b[d, : 4 * hidden] + b[d, 4 * hidden :]
        for t in range(len(x))[:: -1 if d else 1]:
            i, o, f, g = np.split(steps[t] + rounded(h) @ weights[1], 4, axis=1)
            i, o, f = (1 / (1 + np.exp(-gate)) for gate in (i, o, f))
            c = f * c + i * np.tanh(g)
            h = o * np.tanh(c)
            out[t, d] = h
        last.append(c)
    return out, np.stack(last)


@pytest.mark.parametrize(("target", "reach"), [("avx2", (-64, 63)), ("vnni", (-128, 127))])
def test_weights_keep_to_the_bits_of_the_target(target: str, reach: tuple[int, int], tmp_path: Path) -> None:
    """A CPU without VNNI clips sums of two products of uint8 and int8 in 16 bits; 255 · (64 + 64) fits."""
    model, x = product()
    low = high = 0
    for one in (model, lstm(1, bias=True)):
        got, facts = made(one, tmp_path, target_cpu=target)
        for name, array in held_in(got).items():
            if name.endswith("_quantized"):
                low, high = min(low, int(array.min())), max(high, int(array.max()))
        bits = 7 if target == "avx2" else 8
        assert (facts["target_cpu"], facts["weight_bits"]) == (target, bits)
        assert [("has no VNNI" in note and "7 bits" in note) for note in facts["notes"]] == [True] * (bits == 7)
    assert (low, high) == reach
    got, _ = made(model, tmp_path, target_cpu=target)
    assert sqnr(run(got, {"x": x})[0], run(model, {"x": x})[0]) > 35


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_an_lstm(directions: int, bias: bool, per_channel: bool, tiny: ModuleType, tmp_path: Path) -> None:
    model = lstm(directions, bias=bias)
    got, facts = made(model, tmp_path, per_channel=per_channel)
    assert ops(got) == {"DynamicQuantizeLSTM": 1}
    held = held_in(got)
    assert {held[n].dtype for n in ("w_quantized", "r_quantized")} == {np.dtype(np.int8)}
    assert held["w_scale"].shape == ((directions, 64) if per_channel else (directions,))
    feeds = {"x": floats(7, 3, 12), "h0": floats(directions, 3, 16) / 2, "c0": floats(directions, 3, 16) / 2}
    for level in (LEVELS.ORT_DISABLE_ALL, LEVELS.ORT_ENABLE_ALL):
        first = feeds | {"x": feeds["x"][:1]}  # exact; later steps round states that differ in their last bits
        for a, b in zip(run(got, first, level), by_hand(got, first), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
        for a, b in zip(run(got, feeds, level), by_hand(got, feeds), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-2)
    for a, b in zip(run(got, feeds), run(model, feeds), strict=True):
        assert sqnr(a, b) > 30
    (layer,) = facts["layers"]
    assert (layer["op"], layer["state"]) == ("LSTM", "integer") and layer["node"] == got.graph.node[0].name
    assert layer["weights"]["scales"] == 2 * held["w_scale"].size and 30 < layer["weights"]["sqnr_db"] < 60


def test_an_lstm_without_bias_gets_one(tmp_path: Path) -> None:
    got, _ = made(lstm(2, bias=False), tmp_path)
    node = got.graph.node[0]
    assert not held_in(got)[node.input[3]].any() and held_in(got)[node.input[3]].shape == (2, 128)


def test_small_and_batch_first_lstms_and_grus_stay(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="too few to win back what quantizing at each step"):
        made(lstm(1, bias=True), tmp_path, force_small=False)
    with pytest.raises(InputError, match="layout 0"):
        made(lstm(1, bias=True, layout=1), tmp_path)
    held = {"w": floats(1, 48, 12), "r": floats(1, 48, 16), "m": floats(16, 40)}
    nodes = [
        helper.make_node("GRU", ["x", "w", "r"], ["y"], hidden_size=16),
        helper.make_node("MatMul", ["y", "m"], ["z"]),
    ]
    _, facts = made(build(nodes, {"x": ["t", "n", 12]}, ["z"], held), tmp_path)
    assert "GRU" in reason(facts, "GRU")


# -- attention


def attention(**attributes: Any) -> onnx.ModelProto:
    nodes = [
        helper.make_node(
            "Attention", ["x", "w", "b"], ["y"], name="attention", domain="com.microsoft", num_heads=4, **attributes
        )
    ]
    return build(nodes, {"x": ["n", "s", 24]}, ["y"], {"w": floats(24, 96) / 5, "b": floats(96)})


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("causal", [0, 1])
def test_an_attention_of_onnx_runtime(causal: int, per_channel: bool, tmp_path: Path) -> None:
    model = attention(unidirectional=causal)
    got, _ = made(model, tmp_path, per_channel=per_channel)
    assert ops(got) == {"DynamicQuantizeLinear": 1, "QAttention": 1}
    held, x = held_in(got), floats(2, 5, 24)
    weights = (held["w_quantized"].astype(np.float32) - held["w_zero_point"]) * held["w_scale"]
    q, k, v = (rounded(x) @ weights + held["b"]).reshape(2, 5, 3, 4, 8).transpose(2, 0, 3, 1, 4)
    scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(8)
    if causal:
        scores = np.where(np.tril(np.ones((5, 5), bool)), scores, -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    want = ((shares / shares.sum(-1, keepdims=True)) @ v).transpose(0, 2, 1, 3).reshape(2, 5, 32)
    np.testing.assert_allclose(run(got, {"x": x})[0], want, atol=1e-4)
    assert sqnr(run(got, {"x": x})[0], run(model, {"x": x})[0]) > 30


def test_attentions_that_have_no_form_on_integers_stay(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="qkv_hidden_sizes"):
        made(attention(qkv_hidden_sizes=[32, 32, 32]), tmp_path)
    with pytest.raises(InputError, match="too few"):
        made(attention(), tmp_path, force_small=False)


def test_a_standard_attention_stays_and_its_projections_are_done(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", n], [f"p{n}"]) for n in "qkv"]
    nodes.append(helper.make_node("Attention", ["pq", "pk", "pv"], ["y"], q_num_heads=4, kv_num_heads=4))
    model = build(nodes, {"x": ["n", "s", 64]}, ["y"], {n: floats(64, 64) / 8 for n in "qkv"}, opset=23)
    model.ir_version = 11
    got, facts = made(model, tmp_path)
    assert ops(got)["MatMulInteger"] == 3 and ops(got)["Attention"] == 1
    assert "projections" in reason(facts, "Attention")
    x = floats(2, 5, 64)
    assert sqnr(run(got, {"x": x})[0], run(model, {"x": x})[0]) > 30


# -- bodies


def branches(tiny_weights: bool = False) -> onnx.ModelProto:
    """y = x·w, then x·w or x·v by a condition; x comes from outside."""

    def body(name: str, weights: str, held: Mapping[str, np.ndarray]) -> onnx.GraphProto:
        return helper.make_graph(
            [helper.make_node("MatMul", ["x", weights], [f"{name}_y"])], name, [],
            [helper.make_tensor_value_info(f"{name}_y", FLOAT, None)],
            [numpy_helper.from_array(array, key) for key, array in held.items()],
        )  # fmt: skip

    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="outside"),
        helper.make_node(
            "If", ["c"], ["b"], then_branch=body("then", "w", {}), else_branch=body("else", "v", {"v": floats(48, 40)})
        ),
    ]
    model = build(nodes, {"x": ["n", 48]}, ["a", "b"], {"w": floats(48, 40)})
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    return model


@pytest.mark.parametrize("condition", [True, False])
def test_bodies_of_an_if(condition: bool, tiny: ModuleType, tmp_path: Path) -> None:
    model = branches()
    got, facts = made(model, tmp_path)
    assert [layer["state"] for layer in facts["layers"]] == ["integer"] * 3
    assert ops(got)["DynamicQuantizeLinear"] == 1, "what is quantized outside is read inside"
    (condition_node,) = [node for node in got.graph.node if node.op_type == "If"]
    for attribute in condition_node.attribute:
        assert "DynamicQuantizeLinear" not in Counter(node.op_type for node in attribute.g.node)
    feeds = {"x": floats(5, 48), "c": np.array(condition)}
    onnx.checker.check_model(got, full_check=True)
    for a, b, c in zip(run(got, feeds), tiny.oracle(got, feeds), tiny.oracle(model, feeds), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
        assert sqnr(a, c) > 35


# -- bad input


def test_nothing_to_quantize(tiny: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        made(tiny.several(), tmp_path)
    assert caught.value.id == "nothing-to-quantize" and not (tmp_path / "q.onnx").exists()


def test_a_quantized_model_is_refused(tiny: ModuleType, tmp_path: Path) -> None:
    got, _ = made(product()[0], tmp_path)
    with pytest.raises(InputError) as caught:
        made(got, tmp_path)
    assert caught.value.id == "already-quantized"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"consumer": "openvino"}, "openvino"),
        ({"consumer": "tensorrt"}, "tensorrt"),
        ({"consumer": "integer-only"}, "float"),
        ({"activations": "int8"}, "int8"),
        ({"quantize_outputs": True}, "float"),
        ({"format": "qoperator"}, "qoperator"),
    ],
)
def test_what_it_cannot_serve_is_refused(settings: dict, named: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=named) as caught:
        made(product()[0], tmp_path, **settings)
    assert caught.value.id == ("wrong-consumer" if "consumer" in settings else "bad-setting") and caught.value.do


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    model = product()[0]
    files = []
    for _ in range(2):
        made(model, tmp_path)
        files.append((tmp_path / "q.onnx").read_bytes())
    assert files[0] == files[1]


def test_an_old_opset_is_raised_no_further_than_needed(tmp_path: Path) -> None:
    model, x = product()
    model.opset_import[0].version = 9
    got, _ = made(model, tmp_path)
    assert {one.domain: one.version for one in got.opset_import} == {"": 11}
    assert sqnr(run(got, {"x": x})[0], run(model, {"x": x})[0]) > 35


@pytest.mark.shared
@pytest.mark.parametrize(
    "name",
    [
        "byte-bidi-lstm",
        "dtln-model1",
        "silero-vad-if",
        "magika-v3-3",
        "tiny-gpt2-genai",
        "bert-tf-qa",
        "ort-scan",
        "gtcrn-simple",
    ],
)
def test_real_models_load(name: str, tmp_path: Path) -> None:
    import os

    source = Path(os.environ["PENSTOCK_SHARED"]) / "models" / name / "model.onnx"
    facts = quantize(source, [], QuantizeSettings(method="dynamic", force_small=True), tmp_path / "q.onnx")
    assert any(layer["state"] == "integer" for layer in facts["layers"])  # type: ignore[union-attr,index,call-overload]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    onnxruntime.InferenceSession(tmp_path / "q.onnx", options, providers=["CPUExecutionProvider"])
    assert (tmp_path / "q.onnx").stat().st_size < source.stat().st_size
