"""The 16-bit floats: rounding against bits counted by hand, and what ONNX's schemas let compute in them."""

import numpy as np
import onnx_ir as ir
import pytest

from half_models import model
from penstock.quantization.half.binding import bound
from penstock.quantization.half.types import BF16, FP16, Half


@pytest.mark.parametrize(
    ("half", "mantissa", "exponents"), [(FP16, 10, (-14, 15)), (BF16, 7, (-126, 127))], ids=["fp16", "bf16"]
)
def test_the_constants_follow_from_the_bits(half: Half, mantissa: int, exponents: tuple[int, int]) -> None:
    assert half.largest == (2 - 2.0**-mantissa) * 2.0 ** exponents[1]
    assert half.normal == 2.0 ** exponents[0] and half.least == 2.0 ** (exponents[0] - mantissa)
    assert half.exact == 2 ** (mantissa + 1)
    step = half.rounded(np.array([half.exact, half.exact + 1, half.exact + 2], np.float32))
    assert step.tolist() == [half.exact, half.exact, half.exact + 2]


def test_bf16_rounds_to_nearest_even() -> None:
    """The upper half of a float32; what is cut off rounds, ties to even."""
    rng = np.random.default_rng(0)
    values = (rng.normal(size=4000) * 10.0 ** rng.uniform(-38, 38, 4000)).astype(np.float32)
    bits = values.view(np.uint32).astype(np.uint64)
    want = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)
    np.testing.assert_array_equal(BF16.rounded(values), want)


def test_what_is_beyond_the_range() -> None:
    assert FP16.rounded(np.array([65519, 65520, -1e9], np.float32)).tolist() == [65504, np.inf, -np.inf]
    assert FP16.rounded(np.array([2.0**-25, 2.0**-25 * 1.01], np.float32)).tolist() == [0, 2.0**-24]


def binding(text: str, half: Half, opset: int, place: int = -1, **weights: np.ndarray) -> tuple[tuple, tuple, str]:
    from penstock.rewriting.knowledge import Knowledge

    made = ir.from_proto(model(text, opset, **weights))
    Knowledge(made).learn(made.graph)
    one = bound(list(made.graph)[place], {"": opset}, half)
    return one.inputs, one.outputs, one.reason


CONV = "g (float[1, 2, 8, 8] x, float[2, 2, 3, 3] w) => (float[1, 2, 6, 6] y) { y = Conv(x, w) }"


def test_conv_takes_bf16_from_opset_22_on() -> None:
    assert binding(CONV, FP16, 13) == ((0, 1), (0,), "")
    assert binding(CONV, BF16, 22) == ((0, 1), (0,), "")
    assert binding(CONV, BF16, 21) == ((), (), "Conv of opset 21 takes no bfloat16")


def test_scales_and_positions_stay_in_float32() -> None:
    resize = """g (float[1, 2, 4, 4] x) => (float[1, 2, 8, 8] y) { y = Resize(x, roi, scales) }"""
    weights = {"roi": np.zeros(0, np.float32), "scales": np.array([1, 1, 2, 2], np.float32)}
    assert binding(resize, FP16, 17, **weights) == ((0,), (0,), "")
    grid = "g (float[1, 2, 4, 4] x, float[1, 5, 5, 2] p) => (float[1, 2, 5, 5] y) { y = GridSample(x, p) }"
    assert binding(grid, FP16, 17) == ((0,), (0,), "")


def test_operators_without_floats_and_operators_for_float32_alone() -> None:
    shape = "g (int64[2] x) => (int64[1] y) { y = Shape(x) }"
    assert binding(shape, FP16, 17) == ((), (), "")
    nms = "g (float[1, 5, 4] b, float[1, 2, 5] s) => (int64[n, 3] y) { y = NonMaxSuppression(b, s) }"
    assert binding(nms, FP16, 17) == ((), (), "NonMaxSuppression of opset 17 takes no float16")


def test_sequences_and_bodies_are_left_alone() -> None:
    split = """g (float[4] x) => (float[1] y)
        { s = SplitToSequence(x) z = Constant <value = int64 {0}> () y = SequenceAt(s, z) }"""
    assert "sequences" in binding(split, FP16, 17)[2]
    body = """g (bool c, float[4] x) => (float[4] y)
        { y = If (c) <then_branch = a () => (float[4] t) { t = Neg(x) }, else_branch = b () => (float[4] e) { e = Abs(x) }> }"""  # noqa: E501
    assert "body" in binding(body, FP16, 17)[2]


def test_an_operator_that_nothing_is_known_of() -> None:
    made = ir.from_proto(model(CONV, 17))
    node = ir.Node("com.example", "Magic", [made.graph.inputs[0]])
    node.outputs[0].name, node.outputs[0].type = "m", ir.TensorType(ir.DataType.FLOAT)
    assert bound(node, {"": 17, "com.example": 1}, FP16).reason.startswith("nothing says which types Magic")
    node.outputs[0].type = None
    assert "aren't known" in bound(node, {"": 17}, FP16).reason
