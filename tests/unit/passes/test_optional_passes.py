"""Passes that run when they are asked for: quantized weights become floats, default attributes go."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper

import alone
from penstock.passes._order import run_unasked
from penstock.stages.optimize import MAIN, OptimizeSettings, optimize

PASS = "dequantize-weights"
RNG = np.random.default_rng(7)


def test_neither_runs_unasked() -> None:
    assert not {PASS, "strip-default-attributes"} & {*run_unasked()}


# --- dequantize-weights

KINDS = ["int8", "uint8", "int16", "uint16"]


def every(kind: str) -> np.ndarray:
    """All integers of a type, one row of three numbers after the other, the last repeated where they don't divide."""
    info = np.iinfo(kind)
    numbers = np.arange(info.min, info.max + 1)
    return np.pad(numbers, (0, -len(numbers) % 12), mode="edge").astype(kind).reshape(-1, 3, 4)


def weighted(weight: np.ndarray, real: str, attributes: str = "", opset: int = 21, **more: np.ndarray) -> object:
    inputs = ", ".join(["w", *more])
    return alone.model(
        f"({'float' if real == 'float32' else 'float16'}[N,3,4] x) => "
        f"({'float' if real == 'float32' else 'float16'}[N,3,4] y)"
        f" {{ d = DequantizeLinear{attributes}({inputs}) y = Add(x, d) }}", opset, w=weight, **more,
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("real", ["float32", "float16"])
def test_every_integer_as_the_runtime_has_it(kind: str, real: str) -> None:
    """ONNX Runtime dequantizes the original; the constant holds the same numbers to the bit."""
    weight = every(kind)
    scale = np.array(0.0123 if np.iinfo(kind).bits == 8 else 1.3e-4, real)
    before = weighted(weight, real, s=scale, z=np.array(np.iinfo(kind).max // 3, kind))
    after, _ = alone.rewritten(before, PASS)
    assert alone.ops(after) == {"Add": 1}
    zeros = {"x": np.zeros((weight.shape[0], 3, 4), real)}
    np.testing.assert_array_equal(alone.run_ort(after, zeros)[0], alone.run_ort(before, zeros)[0])


CASES = {
    "along an axis": ("<axis=1>", (3,)),
    "along the last": ("<axis=-1>", (4,)),
    "by blocks": ("<axis=2, block_size=2>", (5, 3, 2)),
    "by blocks that don't divide": ("<axis=2, block_size=3>", (5, 3, 2)),
    "one scale in an axis": ("", (1,)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["int8", "uint16"])
def test_many_scales(case: str, kind: str) -> None:
    attributes, shape = CASES[case]
    weight = RNG.integers(np.iinfo(kind).min, np.iinfo(kind).max, (5, 3, 4), endpoint=True).astype(kind)
    scale = RNG.uniform(0.001, 0.1, shape).astype(np.float32)
    zero = RNG.integers(0, 9, shape).astype(kind)
    before = weighted(weight, "float32", attributes, s=scale, z=zero)
    after, _ = alone.rewritten(before, PASS)
    assert alone.ops(after) == {"Add": 1}
    given = {"x": np.zeros((5, 3, 4), np.float32)}
    np.testing.assert_array_equal(alone.run_ort(after, given)[0], alone.run_ort(before, given)[0])


def test_a_bias_of_32_bits_without_a_zero_point() -> None:
    bias = RNG.integers(-(2**31), 2**31, (5, 3, 4)).astype(np.int32)
    before = weighted(bias, "float32", s=np.array(1e-5, np.float32))
    after, _ = alone.rewritten(before, PASS)
    assert alone.ops(after) == {"Add": 1}
    alone.agree(before, after, exactly=True, by="ort", batch=5)


@pytest.mark.parametrize("kind", ["int4", "uint4"])
def test_four_bits(kind: str) -> None:
    low = -8 if kind == "int4" else 0
    weight = np.arange(low, low + 16).reshape(4, 4)
    held = helper.make_tensor("w", getattr(onnx.TensorProto, kind.upper()), (4, 4), weight)
    zero = helper.make_tensor("z", getattr(onnx.TensorProto, kind.upper()), (), [3])
    before = alone.model("(float[4,4] x) => (float[4,4] y) { y = Identity(x) }", 21, s=np.array(0.5, np.float32))
    del before.graph.node[:]
    before.graph.node.extend(
        [helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"]), helper.make_node("Add", ["x", "d"], ["y"])]
    )
    before.graph.initializer.extend([held, zero])
    after, _ = alone.rewritten(before, PASS)
    assert alone.ops(after) == {"Add": 1}
    given = {"x": np.zeros((4, 4), np.float32)}
    np.testing.assert_array_equal(alone.run_ort(after, given)[0], (weight - 3) * np.float32(0.5))


def test_what_is_quantized_in_a_run_keeps_its_pair() -> None:
    before = alone.model(
        "(float[N,4] x) => (float[N,4] y)"
        " { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)"
        " w1 = DequantizeLinear(w, s, z) y = MatMul(d, w1) }",
        17, s=np.array(0.05, np.float32), z=np.array(0, np.int8), w=RNG.integers(-9, 9, (4, 4)).astype(np.int8),
    )  # fmt: skip
    after, _ = alone.rewritten(before, PASS)
    assert alone.ops(after) == {"QuantizeLinear": 1, "DequantizeLinear": 1, "MatMul": 1}
    alone.agree(before, after, exactly=True, by="ort")


def test_what_is_not_constant_or_not_an_integer_stays() -> None:
    scaled = alone.model(
        "(float s, float[2] x) => (float[2] y) { d = DequantizeLinear(w, s) y = Add(x, d) }",
        17, w=np.array([1, 2], np.int8),
    )  # fmt: skip
    after, result = alone.rewritten(scaled, PASS)
    assert alone.ops(after)["DequantizeLinear"] == 1
    assert alone.reasons(result, PASS) == ["its scale or zero point isn't constant"]
    eighth = alone.model(
        "(float[2] x) => (float[2] y) { d = DequantizeLinear(w, s) y = Add(x, d) }",
        21, w=np.array([1, 2], ml_dtypes.float8_e4m3fn), s=np.array(0.5, np.float32),
    )  # fmt: skip
    after, result = alone.rewritten(eighth, PASS)
    assert alone.ops(after)["DequantizeLinear"] == 1
    assert alone.reasons(result, PASS) == ["FLOAT8E4M3FN scaled by FLOAT isn't computed ahead"]


def test_a_weight_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    from penstock.passes import dequantize_weights

    monkeypatch.setattr(dequantize_weights, "MOST", 100)
    before = weighted(RNG.integers(0, 9, (5, 3, 4)).astype(np.int8), "float32", s=np.array(0.5, np.float32))
    after, result = alone.rewritten(before, PASS)
    assert alone.ops(after)["DequantizeLinear"] == 1
    assert alone.reasons(result, PASS) == ["it would make 240 bytes of floats, 100 are made at most"]


# --- strip-default-attributes


def test_attributes_that_say_the_default_go_and_others_stay() -> None:
    before = alone.model(
        "(float[N,3,8,8] x) => (float[N,M] y) {"
        " a = Conv<group=1, auto_pad=\"NOTSET\", pads=[1,1,1,1]>(x, w) b = LeakyRelu<alpha=0.01>(a)"
        " c = LeakyRelu<alpha=0.02>(b) d = Flatten<axis=1>(c)"
        " y = Gemm<alpha=1.0, beta=1.0, transA=0, transB=1>(d, v) }",
        17, w=RNG.normal(size=(2, 3, 3, 3)).astype(np.float32), v=RNG.normal(size=(5, 128)).astype(np.float32),
    )  # fmt: skip
    after, _ = alone.rewritten(before, "strip-default-attributes")
    left = [{item.name for item in node.attribute} for node in after.graph.node]
    assert left == [{"pads"}, set(), {"alpha"}, set(), {"transB"}]
    alone.agree(before, after, exactly=True)


def test_the_default_is_the_one_of_the_opset(tmp_path: Path) -> None:
    """Softmax's axis is 1 before opset 13 and -1 from then on; the reference evaluator has -1 for both."""
    for opset, default in ((11, 1), (13, -1)):
        for axis in (1, -1):
            before = alone.model(f"(float[N,3,4] x) => (float[N,3,4] y) {{ y = Softmax<axis={axis}>(x) }}", opset)
            after, _ = alone.rewritten(before, "strip-default-attributes")
            assert len(after.graph.node[0].attribute) == (axis != default)
            alone.agree(before, after, exactly=True, by="ort")


def test_inside_bodies_and_by_the_command_alone(tmp_path: Path) -> None:
    inner = onnx.parser.parse_graph("b () => (float[N,4] o) { o = Elu<alpha=1.0>(x) }")
    made = alone.model("(float[N,4] x, bool c) => (float[N,4] y) { y = Identity(x) }")
    del made.graph.node[:]
    made.graph.node.append(helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner))
    onnx.save(made, tmp_path / "m.onnx")
    for also, left in (((), 1), (("strip-default-attributes",), 0)):
        optimize(tmp_path / "m.onnx", OptimizeSettings(also=also, strict=True), tmp_path)
        body = helper.get_attribute_value(onnx.load(tmp_path / MAIN).graph.node[0].attribute[0])
        assert len(body.node[0].attribute) == left
