"""Operators that move elements work on the integers where that takes nodes away; outputs stay exactly equal."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

import alone
from conftest import SHARED
from penstock import graph, registry
from penstock.passes._order import in_order, run_unasked
from penstock.rewriting.run import count, rewrite

PASS = "move-quantization"
ONE = {"s": np.array(0.05, np.float32), "z": np.array(3, np.uint8)}
MOVED = {
    "Reshape": ("Reshape(a, k)", {"k": np.array([0, -1])}),
    "Flatten": ("Flatten<axis=2>(a)", {}),
    "Transpose": ("Transpose<perm=[0,3,1,2]>(a)", {}),
    "Unsqueeze": ("Unsqueeze(a, k)", {"k": np.array([1])}),
    "Slice": ("Slice(a, k, k2, k)", {"k": np.array([1]), "k2": np.array([3])}),
    "Gather": ("Gather<axis=1>(a, k)", {"k": np.array([2, 0])}),
    "Tile": ("Tile(a, k)", {"k": np.array([1, 2, 1, 1])}),
    "MaxPool": ("MaxPool<kernel_shape=[2,3], strides=[2,1], pads=[1,1,0,1]>(a)", {}),
}


@pytest.mark.parametrize("op", MOVED)
def test_between_equal_pairs(op: str) -> None:
    text, weights = MOVED[op]
    before = alone.model(
        f"""(float[N,3,4,5] x) => (float[a,b] y) {{ q = QuantizeLinear(x, s, z) a = DequantizeLinear(q, s, z)
        m = {text} r = QuantizeLinear(m, s, z) d = DequantizeLinear(r, s, z) y = Flatten(d) }}""",
        21, **ONE, **weights,
    )  # fmt: skip
    after, _ = alone.rewritten(before, PASS)
    assert alone.ops(after) == alone.ops(before) - Counter(["QuantizeLinear", "DequantizeLinear"])
    alone.agree(before, after, exactly=True)


def test_several_and_a_concat() -> None:
    before = alone.model(
        """(uint8[N,3,4,5] x, uint8[N,3,4,5] u) => (uint8[a,b] y) {
        a = DequantizeLinear(x, s, z) b = MaxPool<kernel_shape=[2,2]>(a) c = DequantizeLinear(u, s, z)
        d = MaxPool<kernel_shape=[2,2]>(c) e = Concat<axis=1>(b, d) f = Flatten(e) g = QuantizeLinear(f, s, z)
        y = Identity(g) }""",
        21, **ONE,
    )  # fmt: skip
    after, _ = alone.rewritten(before, PASS)
    assert alone.ops(after) == {"MaxPool": 2, "Concat": 1, "Flatten": 1, "Identity": 1}
    alone.agree(before, after, exactly=True, by="ort")  # the oracle's MaxPool pads integers with NaN


def test_a_value_that_is_quantized_anyway() -> None:
    before = alone.model(
        """(float[N,3,4] x) => (uint8[N,3,4] y, uint8[N,12] u) {
        y = QuantizeLinear(x, s, z) f = Flatten(x) u = QuantizeLinear(f, s, z) }""",
        21, **ONE,
    )  # fmt: skip
    after, _ = alone.rewritten(before, PASS)
    assert alone.ops(after) == {"QuantizeLinear": 1, "Flatten": 1}
    alone.agree(before, after, exactly=True)


NOT = {
    "a scale is not above 0": (21, "int8", "MaxPool<kernel_shape=[2,2]>(a)", -0.05, ""),
    "the result of Flatten has 2 consumers": (21, "int8", "Flatten(a)", 0.05, "e = Relu(m)"),
    "runtimes don't move elements of INT4": (21, "int4", "Flatten(a)", 0.05, ""),
}


@pytest.mark.parametrize("reason", NOT)
def test_what_stays_and_why(reason: str) -> None:
    opset, kind, text, scale, more = NOT[reason]
    end = "y = Identity(r), " if more else "y = Identity(r)"
    zero = np.array(0, onnx.helper.tensor_dtype_to_np_dtype({"int8": 3, "int4": 22}[kind]))
    outputs = f"{kind}[a,b] y" if "Flatten" in text else f"{kind}[a,b,c,d] y"
    outputs += ", float[a,b] e" if more else ""
    before = alone.model(
        f"""({kind}[N,3,4,5] x) => ({outputs}) {{ a = DequantizeLinear(x, s, z) m = {text} {more}
        r = QuantizeLinear(m, s, z) {end.rstrip(", ")} }}""",
        opset, s=np.array(scale, np.float32), z=zero,
    )  # fmt: skip
    after, result = alone.rewritten(before, PASS)
    assert alone.ops(after) == alone.ops(before)
    assert any(reason in one for one in alone.reasons(result, PASS))


def test_a_pool_of_integers_needs_opset_12() -> None:
    text = """(uint8[N,3,4,5] x) => (uint8[a,b,c,d] y) {
        a = DequantizeLinear(x, s, z) m = MaxPool<kernel_shape=[2,2]>(a)
        y = QuantizeLinear(m, s, z) }"""
    weights = {"s": np.array(0.1, np.float32), "z": np.array(0, np.uint8)}
    assert alone.ops(alone.rewritten(alone.model(text, 11, **weights), PASS)[0])["QuantizeLinear"] == 1
    assert alone.ops(alone.rewritten(alone.model(text, 12, **weights), PASS)[0]) == {"MaxPool": 1}


def test_signed_integers_stay_in_pairs() -> None:
    """ONNX Runtime on x86 wouldn't compute with them otherwise; where there are no pairs, they are moved."""
    text = """(float[N,3,4,5] x) => (float[a,b] y) { q = QuantizeLinear(x, s, z) a = DequantizeLinear(q, s, z)
        m = Flatten(a) r = QuantizeLinear(m, s, z) y = DequantizeLinear(r, s, z) }"""
    before = alone.model(text, s=ONE["s"], z=np.array(3, np.int8))
    after, result = alone.rewritten(before, PASS)
    assert alone.ops(after) == alone.ops(before)
    assert "next to each other" in alone.reasons(result, PASS)[0]
    text = """(int8[N,3,4,5] x) => (int8[a,b] y) { a = DequantizeLinear(x, s, z) m = Flatten(a)
        y = QuantizeLinear(m, s, z) }"""
    before = alone.model(text, s=ONE["s"], z=np.array(3, np.int8))
    after, _ = alone.rewritten(before, PASS)
    assert alone.ops(after) == {"Flatten": 1}
    alone.agree(before, after, exactly=True, by="ort")


def test_different_scales_above_and_below() -> None:
    before = alone.model(
        """(uint8[N,3,4] x) => (uint8[a,b] y) {
        a = DequantizeLinear(x, s, z) m = Flatten(a) y = QuantizeLinear(m, t, z) }""",
        21, **ONE, t=np.array(0.06, np.float32),
    )  # fmt: skip
    after, result = alone.rewritten(before, PASS)
    assert alone.ops(after) == alone.ops(before)
    assert alone.reasons(result, PASS) == ["the scales differ above and below what moves the elements"]


def _all_passes(path: Path) -> tuple[ir.Model, ir.Model]:
    """Return a shared model before and after all passes."""
    before, after = graph.load(path), graph.load(path)
    passes = {name: registry.load("passes", name) for name in run_unasked()}
    result = rewrite(after, in_order(passes), max_rounds=20)
    assert result.settled
    assert not [turns.failures for turns in result.turns if turns.failures]
    for one in (before, result.model):
        ir.external_data.load_to_model(one)
    return before, result.model


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "most", "batch"),
    [("motor-fault-int8-qdq", 39, 3), ("resnet-tiny-w8a8-qdq-extdata", 128, 1), ("qlstm-scan-qlinear", 72, 1)],
)
def test_real_quantized_models_stay_exactly_equal(name: str, most: int, batch: int) -> None:
    old, new = _all_passes(SHARED / "models" / name / "model.onnx")
    assert count(new) <= most
    before, after = ir.to_proto(old), ir.to_proto(new)
    weights = [
        sum(numpy_helper.to_array(one).nbytes for one in proto.graph.initializer if one.data_type in (2, 3))
        for proto in (before, after)
    ]
    assert weights[1] >= 0.9 * weights[0] - 16  # in 8 bits; some zero points are shared
    alone.agree(before, after, exactly=True, by="ort", batch=batch)
