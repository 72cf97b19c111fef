"""A QuantizeLinear that undoes a DequantizeLinear goes; the quantization itself never does."""

import numpy as np
import pytest

import alone
from penstock.passes._order import run_unasked

PASS = "cancel-quantization-pairs"
ONE = {"s": np.array(0.05, np.float32), "z": np.array(3, np.int8)}
EACH = {"s": np.array([0.5, 0.01, 3.0], np.float32), "z": np.array([0, -7, 12], np.int8)}


@pytest.mark.parametrize(("axis", "weights"), [("", ONE), ("<axis=1>", EACH), ("<axis=-2>", EACH)])
def test_equal_parameters_cancel(axis: str, weights: dict[str, np.ndarray]) -> None:
    before = alone.model(
        f"(int8[N,3,4] x) => (int8[N,3,4] y) {{ a = DequantizeLinear{axis}(x, s, z) b = QuantizeLinear{axis}(a, s, z)"
        " y = Identity(b) }",
        21, **weights,
    )  # fmt: skip
    after, _ = alone.rewritten(before, PASS)
    assert alone.ops(after) == {"Identity": 1}
    alone.agree(before, after, exactly=True)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16"])
@pytest.mark.parametrize("real", ["float32", "float16"])
def test_every_integer_comes_back(dtype: str, real: str) -> None:
    """All of them, with awkward scales; 16 bits don't come back through float16, and there the pair stays."""
    info = np.iinfo(dtype)
    every = np.arange(info.min, info.max + 1).astype(dtype)
    for scale in (1 / 3, 0.007, 6.2e-5, 77.7 if info.bits == 8 else 1.3e-4):
        before = alone.model(
            f"({dtype}[n] x) => ({dtype}[n] y) {{ a = DequantizeLinear(x, s, z) b = QuantizeLinear(a, s, z)"
            " y = Identity(b) }",
            21, s=np.array(scale, real), z=np.array(info.max // 3, dtype),
        )  # fmt: skip
        after, result = alone.rewritten(before, PASS)
        if info.bits == 16 and real == "float16":
            assert "doesn't come back" in alone.reasons(result, PASS)[0]
        else:
            assert alone.ops(after) == {"Identity": 1}
            np.testing.assert_array_equal(alone.run_reference(before, {"x": every})[0], every)


DIFFERENT = {
    "the scales differ": ("uint8", {"s2": np.array(0.06, np.float32)}),
    "the zero points differ": ("uint8", {"z2": np.array(4, np.uint8)}),
    "the types differ: INT8 and UINT8": ("int8", {"z": np.array(3, np.int8), "z2": np.array(3, np.uint8)}),
    "too small or large": ("uint8", dict.fromkeys(("s", "s2"), np.array(1e-40, np.float32))),
}


@pytest.mark.parametrize("reason", DIFFERENT)
def test_what_differs_stays(reason: str) -> None:
    dtype, changed = DIFFERENT[reason]
    number = np.array(0.05, np.float32)
    weights = {"s": number, "s2": number, "z": np.array(3, np.uint8), "z2": np.array(3, np.uint8)} | changed
    before = alone.model(
        f"({dtype}[N] x) => ({weights['z2'].dtype}[N] y)"
        " { a = DequantizeLinear(x, s, z) y = QuantizeLinear(a, s2, z2) }",
        **weights,
    )  # fmt: skip
    after, result = alone.rewritten(before, PASS)
    assert alone.ops(after) == alone.ops(before)
    assert any(reason in one for one in alone.reasons(result, PASS))


def test_scales_that_a_caller_gives_stay() -> None:
    before = alone.model(
        "(uint8[N] x, float s) => (uint8[N] y) { a = DequantizeLinear(x, s) y = QuantizeLinear(a, s) }"
    )
    after, result = alone.rewritten(before, PASS)
    assert alone.ops(after) == alone.ops(before)
    assert alone.reasons(result, PASS) == ["its scale or zero point isn't constant"]


def test_other_readers_of_the_real_numbers_keep_them() -> None:
    before = alone.model(
        """(uint8[N,4] x) => (uint8[N,4] y, float[N,4] r) {
        a = DequantizeLinear(x, s, z) b = QuantizeLinear(a, s, z) y = Identity(b) r = Relu(a) }""",
        21, s=np.array(0.1, np.float32), z=np.array(9, np.uint8),
    )  # fmt: skip
    after, _ = alone.rewritten(before, PASS)
    assert alone.ops(after) == {"Identity": 1, "DequantizeLinear": 1, "Relu": 1}
    alone.agree(before, after, exactly=True)


def test_quantizing_is_never_folded_away() -> None:
    """By none of all passes: it rounds and clips."""

    before = alone.model(
        "(float[N,4] x) => (float[N,4] y) { a = QuantizeLinear(x, s, z) y = DequantizeLinear(a, s, z) }",
        21, s=np.array(0.5, np.float32), z=np.array(0, np.int8),
    )  # fmt: skip
    after, _ = alone.rewritten(before, *(set(run_unasked()) - {"remove-unused", "sort-nodes"}))
    assert alone.ops(after) == alone.ops(before)
    alone.agree(before, after, exactly=True)


@pytest.mark.parametrize("operator", ["Identity(d)", "Transpose(d)", "Reshape(d, t)", "Squeeze(d, u)"])
def test_the_dequantization_of_a_weight_stays(operator: str) -> None:
    """All passes leave the weight in 8 bits, whatever stands between it and the product."""

    shape = (1, 6, 4) if "Squeeze" in operator else (4, 6) if "Transpose" in operator else (6, 4)
    rng = np.random.default_rng(2)
    before = alone.model(
        f"(float[N,6] x) => (float[N,4] y) {{ d = DequantizeLinear(w, s, z) e = {operator} y = MatMul(x, e) }}",
        21, w=rng.integers(-128, 128, shape).astype(np.int8), s=np.array(0.02, np.float32), z=np.array(1, np.int8),
        t=np.array([6, 4]), u=np.array([0]),
    )  # fmt: skip
    after, _ = alone.rewritten(before, *(set(run_unasked()) - {"remove-unused", "sort-nodes"}))
    assert alone.ops(after) == {"DequantizeLinear": 1, "MatMul": 1}
    assert {one.data_type for one in after.graph.initializer if len(one.dims) == 2} == {3}  # INT8
    alone.agree(before, after)
