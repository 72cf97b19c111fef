"""fp16 and bf16: what stays in fp32 and why, where Casts stand, and results against ONNX's reference evaluator.

The consumer is one that isn't asked what it runs, but where a test is about that; the runtimes that are here are kept
out by a fixture, so that each test costs no processes.
"""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from half_models import converted, decibels, floats, model, named, reference, seed
from penstock.errors import InputError, UsageError
from penstock.quantization.half import running

HALF = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


@pytest.fixture(autouse=True)
def nobody_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "runs_on", lambda *_: {})
    seed(0)


MLP = """g (float[n, 8] x) => (float[n, 3] y) {
    h = Gemm(x, w1, b1) r = Relu(h) y = Gemm(r, w2)
}"""


@pytest.mark.parametrize("half", ["fp16", "bf16"])
def test_weights_and_arithmetic_are_in_16_bits_and_the_border_in_float(half: str, tmp_path: Path) -> None:
    source = model(MLP, 22, w1=floats(8, 16), b1=floats(16), w2=floats(16, 3))
    x = floats(32, 8)
    done = converted(tmp_path, source, [{"x": x}], half)
    assert {tensor.data_type for tensor in done.made.graph.initializer} == {HALF[half]}
    assert [node.op_type for node in done.made.graph.node] == ["Cast", "Gemm", "Relu", "Gemm", "Cast"]
    assert {layer["state"] for layer in done.layers.values()} == {half}
    facts = done.facts
    assert (facts["casts"], facts["nodes_in_16_bits"], facts["nodes_in_fp32"]) == (2, 3, 0)
    assert (facts["weight_bytes_in_16_bits"], facts["weight_bytes_in_fp32"]) == (2 * (8 * 16 + 16 + 16 * 3), 0)
    assert (facts["method"], facts["precision"], facts["calibration_samples"]) == (half, half, 32)
    got, want = reference(done.made, {"x": x})[0], reference(source, {"x": x})[0]
    assert (60 if half == "fp16" else 40) < decibels(got, want) < np.inf


# --- range

OVERFLOWS = """g (float[n, 8] x) => (float[n, 4] y) {
    a = MatMul(x, w1) b = Exp(a) c = Add(b, one) d = Sqrt(c) y = MatMul(d, w2)
}"""


def test_an_inner_activation_that_overflows_stays_in_fp32_by_name(tmp_path: Path) -> None:
    w1 = floats(8, 8)
    source = model(OVERFLOWS, w1=w1, w2=floats(8, 4), one=2.0)
    named(source, a="first", b="enlarge", c="shift", d="shrink", y="last")
    x = floats(64, 8) * 2
    inner = np.exp(x @ w1)
    assert np.abs(inner).max() > 65504, "else the test tests nothing"
    done = converted(tmp_path, source, [{"x": x[:40]}, {"x": x[40:]}])
    names = ("first", "enlarge", "shift", "shrink", "last")
    assert [done.state(name) for name in names] == ["fp16", "fp32", "fp32", "fp32", "fp16"]
    layer = done.layers["enlarge"]
    assert layer["low"] == pytest.approx(inner.min(), rel=1e-5) and layer["high"] == pytest.approx(
        inner.max(), rel=1e-5
    )
    assert f"to {inner.max():.4g}"[:5] in layer["reason"] and "65504" in layer["reason"]
    want, got = reference(source, {"x": x})[0], reference(done.made, {"x": x})[0]
    assert np.isfinite(got).all() and decibels(got, want) > 55
    careless = onnx.helper.make_model(source.graph)  # the same without a thought for ranges
    careless.CopyFrom(source)
    for tensor in careless.graph.initializer:
        tensor.CopyFrom(
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
        )
    for value in (*careless.graph.input, *careless.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    assert not np.isfinite(reference(careless, {"x": x.astype(np.float16)})[0]).all()


@pytest.mark.parametrize(("margin", "state"), [(2.0, "fp32"), (1.0, "fp16")])
def test_the_margin_is_for_samples_that_were_not_seen(margin: float, state: str, tmp_path: Path) -> None:
    source = named(
        model(
            "g (float[n] x) => (float[n] y) { b = Mul(x, k) c = Sigmoid(b) d = Neg(c) e = Abs(d) y = Tanh(e) }", k=2.0
        ),
        b="twice",
    )
    done = converted(tmp_path, source, [{"x": np.array([20000.25], np.float32)}], half_margin=margin)
    assert done.state("twice") == state
    if state == "fp32":
        assert "with a margin of 2 for other samples 32752" in done.reason("twice")


def test_bf16_has_the_range(tmp_path: Path) -> None:
    source = named(model(OVERFLOWS, 22, w1=floats(8, 8), w2=floats(8, 4), one=2.0), b="enlarge")
    x = 2 * floats(64, 8)
    assert converted(tmp_path, source, [{"x": x}]).state("enlarge") == "fp32"
    assert converted(tmp_path, source, [{"x": x}], "bf16").state("enlarge") == "bf16"


def test_a_weight_beyond_the_range_is_not_clamped(tmp_path: Path) -> None:
    w = floats(8, 4)
    w[3, 2] = 1e5
    source = named(
        model("g (float[n, 8] x) => (float[n, 4] y) { h = MatMul(x, v) y = MatMul(h, w) }", v=floats(8, 8), w=w),
        y="last",
    )
    done = converted(tmp_path, source, [{"x": floats(16, 8) / 1000}])
    assert done.state("last") == "fp32" and "reaches 100000" in done.reason("last")
    assert onnx.numpy_helper.to_array(done.held()["w"]).max() == np.float32(1e5)


def test_a_bound_beyond_the_range_bounds_as_little(tmp_path: Path) -> None:
    """Clip up to the largest float32 is how some exporters write a Relu."""
    source = model("g (float[n, 8] x) => (float[n, 4] y) { h = MatMul(x, v) c = Clip(h, z, most) y = MatMul(c, w) }",
                   v=floats(8, 8), w=floats(8, 4), z=-1.0, most=float(np.finfo(np.float32).max))  # fmt: skip
    x = floats(16, 8)
    done = converted(tmp_path, named(source, c="clip"), [{"x": x}])
    assert done.state("clip") == "fp16" and "is infinite in fp16" in done.reason("clip")
    assert decibels(reference(done.made, {"x": x})[0], reference(source, {"x": x})[0]) > 55


def test_infinite_masks_are_no_reason(tmp_path: Path) -> None:
    source = named(model("""g (float[n, 4] x, bool[n, 4] m) => (float[n, 4] y) {
        h = MatMul(x, w) s = Where(m, h, no) p = Softmax(s) y = MatMul(p, w)
    }""", w=floats(4, 4), no=-np.inf), s="mask")  # fmt: skip
    m = np.arange(32).reshape(8, 4) % 3 > 0
    x = floats(8, 4)
    done = converted(tmp_path, source, [{"x": x, "m": m}])
    assert done.state("mask") == "fp16"
    assert decibels(reference(done.made, {"x": x, "m": m})[0], reference(source, {"x": x, "m": m})[0]) > 50


# --- sums inside operators


def test_sums_that_leave_the_range_though_the_result_does_not(tmp_path: Path) -> None:
    """Half of the products are +100 each, half −100: 1000 of them reach 50000 on the way to nearly nothing."""
    w = np.concatenate([np.ones((500, 4)), -np.ones((500, 4))]).astype(np.float32) + floats(1000, 4, scale=1e-3)
    x = np.full((8, 1000), 100, np.float32) + floats(8, 1000)
    source = named(model("g (float[n, 1000] x) => (float[n, 4] y) { y = MatMul(x, w) }", w=w), y="sum")
    done = converted(tmp_path, source, [{"x": x}])
    assert np.abs(x @ w).max() < 2000
    reached = float((np.abs(x) @ np.abs(w)).max())
    assert done.state("sum") == "fp32"
    assert f"what it adds up reaches {reached:g}"[:-2] in done.reason("sum")
    assert done.layers["sum"]["high"] == pytest.approx(reached, rel=1e-4)


@pytest.mark.parametrize(("pixels", "state"), [(32, "fp16"), (64, "fp32")])
def test_a_mean_over_too_many_numbers(pixels: int, state: str, tmp_path: Path) -> None:
    """In fp16 ones add up to 2048 and no further."""
    source = named(model(f"g (float[n, 2, {pixels}, {pixels}] x) => (float[n, 3] y) {{ c = Conv(x, v) p = GlobalAveragePool(c) f = Flatten(p) y = MatMul(f, w) }}",  # noqa: E501
                         v=floats(2, 2, 1, 1), w=floats(2, 3)), p="pool")  # fmt: skip
    done = converted(tmp_path, source, [{"x": floats(4, 2, pixels, pixels)}])
    assert done.state("pool") == state
    if state == "fp32":
        assert "adds up 4096 numbers" in done.reason("pool")


def test_a_mean_whose_sum_overflows(tmp_path: Path) -> None:
    source = named(model("g (float[n, 1024] x) => (float[n, 1] y) { r = Abs(x) m = ReduceMean <axes = [1]> (r) y = MatMul(m, w) }",  # noqa: E501
                         w=floats(1, 1)), m="mean")  # fmt: skip
    x = np.abs(floats(8, 1024)) * 100
    done = converted(tmp_path, source, [{"x": x}])
    assert done.state("mean") == "fp32" and done.layers["mean"]["high"] == pytest.approx(x.sum(axis=1).max(), rel=1e-3)


def test_squares_of_an_instance_normalization(tmp_path: Path) -> None:
    source = named(model("g (float[n, 2, 16, 16] x) => (float[n, 2, 16, 16] y) { i = InstanceNormalization(x, s, b) y = Conv(i, w) }",  # noqa: E501
                         s=floats(2), b=floats(2), w=floats(2, 2, 1, 1)), i="norm")  # fmt: skip
    x = floats(4, 2, 16, 16)
    assert converted(tmp_path, source, [{"x": x}]).state("norm") == "fp16"
    done = converted(tmp_path, source, [{"x": 50 * x}])
    assert done.state("norm") == "fp32"
    assert done.layers["norm"]["high"] == pytest.approx(((50 * x) ** 2).sum(axis=(2, 3)).max(), rel=1e-4)


def test_an_exponential_inside(tmp_path: Path) -> None:
    source = named(
        model("g (float[n, 4] x) => (float[n, 4] y) { s = Softplus(x) y = MatMul(s, w) }", w=floats(4, 4)), s="soft"
    )
    assert converted(tmp_path, source, [{"x": floats(8, 4)}]).state("soft") == "fp16"
    done = converted(tmp_path, source, [{"x": 20 + floats(8, 4)}])
    assert done.state("soft") == "fp32" and "adds up reaches" in done.reason("soft")


# --- underflow

NORM = """g (float[n, 8] x) => (float[n, 8] y) {
    h = MatMul(x, w) q = Mul(h, h) v = ReduceMean <axes = [1], keepdims = 1> (q)
    e = Add(v, eps) r = Sqrt(e) d = Div(h, r) y = MatMul(d, w)
}"""


def test_an_epsilon_of_1e_12_keeps_the_root_and_the_division_behind_it(tmp_path: Path) -> None:
    source = named(model(NORM, w=floats(8, 8), eps=1e-12), e="add", r="root", d="divide")
    x = floats(16, 8)
    done = converted(tmp_path, source, [{"x": x}])
    assert [done.state(name) for name in ("add", "root", "divide")] == ["fp32"] * 3
    assert "1e-12 becomes 0 in fp16" in done.reason("add") and "add makes" in done.reason("root")
    assert done.state("matmul_0") == "fp16"
    x[3] = 0  # unseen: without the epsilon this is 0/0
    got, want = reference(done.made, {"x": x})[0], reference(source, {"x": x})[0]
    assert np.isfinite(got).all() and decibels(got, want) > 50
    assert onnx.numpy_helper.to_array(done.held()["eps"]) == np.float32(1e-12)


def test_an_epsilon_that_fp16_holds_is_no_reason(tmp_path: Path) -> None:
    done = converted(tmp_path, named(model(NORM, w=floats(8, 8), eps=1e-5), e="add"), [{"x": floats(16, 8)}])
    assert done.state("add") == "fp16"


def test_weights_that_become_0_or_lose_their_bits(tmp_path: Path) -> None:
    text = """g (float[n, 8] x) => (float[n, 4] y) {
        h = MatMul(x, tiny) a = Abs(h) r = Sqrt(a) k = Sqrt(r) y = MatMul(k, w)
    }"""
    for scale, said in ((1e-9, "of its 64 numbers become 0"), (1e-6, "it lies where fp16 has few bits")):
        tiny = (np.sign(floats(8, 8)) * np.random.default_rng(0).uniform(0.5, 1.5, (8, 8)) * scale).astype(np.float32)
        source = named(model(text, tiny=tiny, w=floats(8, 4)), h="first")
        x = floats(16, 8)
        done = converted(tmp_path, source, [{"x": x}])
        assert done.state("first") == "fp32" and said in done.reason("first")
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(done.held()["tiny"]), tiny)
        assert decibels(reference(done.made, {"x": x})[0], reference(source, {"x": x})[0]) > 50


def test_the_logarithm_of_a_spectrum_is_fp32_as_far_back_as_small_numbers_matter(tmp_path: Path) -> None:
    source = named(model("g (float[n, 64] x) => (float[n, 4] y) { h = MatMul(x, v) q = Mul(h, h) e = Add(q, eps) l = Log(e) y = MatMul(l, w) }",  # noqa: E501
                         v=floats(64, 8, scale=1e-5), eps=1e-10, w=floats(8, 4)), q="square", l="log")  # fmt: skip
    x = floats(16, 64) * (10.0 ** np.random.default_rng(1).uniform(0, 3, (16, 1))).astype(np.float32)
    done = converted(tmp_path, source, [{"x": x}])
    assert done.state("log") == done.state("square") == "fp32"
    assert "log reads what is made of it" in done.reason("square")
    want = reference(source, {"x": x})[0]
    assert decibels(reference(done.made, {"x": x})[0], want) > 35
    w, v = (onnx.numpy_helper.to_array(source.graph.initializer[i]).astype(np.float16) for i in (2, 0))
    square = np.square(x.astype(np.float16) @ v)  # what it would be in fp16
    with np.errstate(all="ignore"):
        careless = np.log(square + np.float16(1e-10)).astype(np.float16) @ w
    assert not np.isfinite(careless).all()


# --- whole numbers


def lookup(rows: int) -> onnx.ModelProto:
    """A position, scaled and moved in float, picks a row of a table."""
    text = """g (float[n] p) => (float[n, 4] y) {
        a = Mul(p, two) b = Add(a, one) i = Cast <to = 7> (b) r = Gather(table, i) y = MatMul(r, w)
    }"""
    table = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4) / rows
    return named(model(text, two=2.0, one=1.0, table=table, w=floats(4, 4)), a="twice", b="next", i="index", r="rows")


@pytest.mark.parametrize("half", ["fp16", "bf16"])
def test_positions_stay_exact(half: str, tmp_path: Path) -> None:
    source = lookup(8192)
    p = np.arange(4000, dtype=np.float32)
    done = converted(tmp_path, source, [{"p": p}], half)
    assert [done.state(name) for name in ("twice", "next", "index")] == ["fp32"] * 3
    got, want = reference(done.made, {"p": p})[0], reference(source, {"p": p})[0]
    assert decibels(got, want) > (55 if half == "fp16" else 35), "a neighbouring row is no rounding"


def test_an_index_is_exact_through_a_layer_that_has_a_reason_of_its_own(tmp_path: Path) -> None:
    source = named(model("""g (float[n, 4] x) => (float[n, 4] y) {
        a = Mul(x, x) b = Clip(a, z, most) i = Cast <to = 7> (b) f = Cast <to = 1> (i) y = MatMul(f, w)
    }""", z=0.0, most=3001.0, w=floats(4, 4)), a="square", b="clip")  # fmt: skip
    x = 10 * floats(64, 4)
    done = converted(tmp_path, source, [{"x": x}])
    assert done.state("clip") == done.state("square") == "fp32"
    assert "3001" in done.reason("clip") and done.reason("square") == "whole numbers are made of it"
    assert decibels(reference(done.made, {"x": x})[0], reference(source, {"x": x})[0]) > 55


def test_whole_numbers_beyond_those_that_are_exact(tmp_path: Path) -> None:
    source = named(
        model(
            "g (float[n] p) => (float[n] y) { a = Add(p, one) b = Sqrt(a) c = Neg(b) d = Abs(c) y = Tanh(d) }", one=1.0
        ),
        a="next",
    )
    few, many = np.arange(200, dtype=np.float32), np.arange(3000, dtype=np.float32)
    assert converted(tmp_path, source, [{"p": few}]).state("next") == "fp16"
    done = converted(tmp_path, source, [{"p": many}])
    assert done.state("next") == "fp32"
    assert "holds whole numbers up to 3000, and fp16 has all of them only to 2048" in done.reason("next")
    done = converted(tmp_path, source, [{"p": np.arange(300, dtype=np.float32)}], "bf16")
    assert "only to 256" in done.reason("next")
    fractions = many + 0.5
    assert converted(tmp_path, source, [{"p": fractions}]).state("next") == "fp16"


# --- delicate operators


def test_the_sine_of_a_large_angle(tmp_path: Path) -> None:
    source = named(model("g (float[n, 4] x) => (float[n, 4] y) { a = Mul(x, k) s = Sin(a) y = MatMul(s, w) }", k=1.5, w=floats(4, 4)),  # noqa: E501
                   a="angle", s="sine")  # fmt: skip
    large, small = 1000 * floats(32, 4), floats(32, 4)
    done = converted(tmp_path, source, [{"x": large}])
    assert done.state("sine") == done.state("angle") == "fp32"
    assert "dB when what it reads is rounded to fp16" in done.reason("sine")
    assert decibels(reference(done.made, {"x": large})[0], reference(source, {"x": large})[0]) > 50
    assert converted(tmp_path, source, [{"x": small}]).state("sine") == "fp16"


def test_a_sine_in_fp32_for_its_range_reads_nothing_rounded(tmp_path: Path) -> None:
    """What overflows has a reason of its own; a rounding three layers before it would still be noise behind it."""
    source = named(model("""g (float[n, 4] x) => (float[n, 4] y) {
        t = Tanh(x) a = Mul(t, k) b = Sigmoid(a) c = Mul(a, b) s = Sin(c) y = MatMul(s, w)
    }""", k=1e5, w=floats(4, 4)), t="first", s="sine")  # fmt: skip
    x = floats(32, 4)
    done = converted(tmp_path, source, [{"x": x}])
    assert done.state("sine") == done.state("first") == "fp32" and "sine reads" in done.reason("first")
    assert decibels(reference(done.made, {"x": x})[0], reference(source, {"x": x})[0]) > 50


def test_a_small_difference_of_large_numbers(tmp_path: Path) -> None:
    source = named(model("g (float[n, 4] x, float[n, 4] z) => (float[n, 4] y) { a = Mul(x, k) b = Mul(z, k) d = Sub(a, b) y = MatMul(d, w) }",  # noqa: E501
                         k=1.5, w=floats(4, 4)), a="left", b="right", d="difference")  # fmt: skip
    x = 1000 + floats(32, 4)
    feeds = {"x": x, "z": x + floats(32, 4, scale=0.1)}
    done = converted(tmp_path, source, [feeds])
    assert [done.state(name) for name in ("left", "right", "difference")] == ["fp32"] * 3
    assert decibels(reference(done.made, feeds)[0], reference(source, feeds)[0]) > 50


def test_in_bf16_sums_stay_in_fp32(tmp_path: Path) -> None:
    source = named(model("""g (float[n, 8] x) => (float[n, 4] y) {
        h = MatMul(x, v) s = Softmax(h) y = MatMul(s, w)
    }""", 22, v=floats(8, 16), w=floats(16, 4)), s="softmax")  # fmt: skip
    assert converted(tmp_path, source, [{"x": floats(8, 8)}]).state("softmax") == "fp16"
    done = converted(tmp_path, source, [{"x": floats(8, 8)}], "bf16")
    assert done.state("softmax") == "fp32" and "too few for a sum" in done.reason("softmax")


# --- Casts


def test_one_cast_for_a_value_and_a_direction(tmp_path: Path) -> None:
    """Two products read x in 16 bits; three nodes that stay in fp32 read one result of 16 bits."""
    source = model("""g (float[n, 8] x) => (float[n, 8] y, float[n, 8] z) {
        a = MatMul(x, v) b = MatMul(x, w) c = Sigmoid(a) d = Tanh(a) e = Elu(a)
        f = Add(c, d) h = Add(e, f) y = MatMul(h, w) z = MatMul(b, v)
    }""", v=floats(8, 8), w=floats(8, 8))  # fmt: skip
    done = converted(tmp_path, source, [{"x": floats(8, 8)}], exclude=("sigmoid_2", "tanh_3", "elu_4"))
    assert len([node for node in done.casts() if node.input[0] == "x"]) == 1
    assert len([node for node in done.casts() if node.input[0] == "a"]) == 1
    assert len(done.casts()) == done.facts["casts"] == 5, "x, a, h, y and z"


def test_what_moves_elements_between_fp32_nodes_stays_with_them(tmp_path: Path) -> None:
    source = named(model("""g (float[n, 8] x) => (float[n, 4] y) {
        h = MatMul(x, v) a = Sin(h) t = Transpose(a) u = Transpose(t) b = Cos(u) y = MatMul(b, w)
    }""", v=floats(8, 8), w=floats(8, 4)), a="sin", t="turn", b="cos")  # fmt: skip
    source.graph.output.append(onnx.helper.make_tensor_value_info("t", TensorProto.FLOAT, [8, "n"]))
    done = converted(tmp_path, source, [{"x": floats(8, 8)}], exclude=("sin", "cos"))
    assert done.state("turn") == "fp32" and "the Casts around it would cost more" in done.reason("turn")


def test_what_comes_after_the_last_product_is_in_fp32_for_no_more_casts(tmp_path: Path) -> None:
    source = named(
        model("g (float[n, 8] x) => (float[n, 4] y) { h = MatMul(x, v) y = Softmax(h) }", v=floats(8, 4)), y="softmax"
    )
    done = converted(tmp_path, source, [{"x": floats(8, 8)}])
    assert done.state("softmax") == "fp32" and "after the last layer" in done.reason("softmax")
    assert len(done.casts()) == 2


def test_an_output_that_is_read_inside(tmp_path: Path) -> None:
    source = model("g (float[n, 8] x) => (float[n, 8] h, float[n, 4] y) { h = MatMul(x, v) y = MatMul(h, w) }",
                   v=floats(8, 8), w=floats(8, 4))  # fmt: skip
    x = floats(8, 8)
    done = converted(tmp_path, source, [{"x": x}])
    for got, want in zip(reference(done.made, {"x": x}), reference(source, {"x": x}), strict=True):
        assert got.dtype == np.float32 and decibels(got, want) > 55
    assert len(done.casts()) == 3


# --- constants


@pytest.mark.parametrize("size", [8, 64], ids=["small", "large"])
def test_two_readers_of_one_constant(size: int, tmp_path: Path) -> None:
    """One computes in fp16, one in fp32: small ones are there twice, large ones once, behind a Cast."""
    w = floats(size, size, scale=8 / size**0.5)
    source = named(model(f"g (float[n, {size}] x) => (float[n, {size}] y) {{ a = MatMul(x, w) k = Exp(a) b = MatMul(k, w) y = Sigmoid(b) }}",  # noqa: E501
                         w=w), a="first", b="second")  # fmt: skip
    x = floats(8, size)
    done = converted(tmp_path, source, [{"x": x}])
    assert (done.state("first"), done.state("second")) == ("fp16", "fp32")
    held = [tensor for tensor in done.made.graph.initializer if list(tensor.dims) == [size, size]]
    types = sorted(tensor.data_type for tensor in held)
    assert types == ([TensorProto.FLOAT, TensorProto.FLOAT16] if size == 8 else [TensorProto.FLOAT16])
    assert decibels(reference(done.made, {"x": x})[0], reference(source, {"x": x})[0]) > 55


def test_a_constant_that_fp32_needs_whole_is_kept_for_it(tmp_path: Path) -> None:
    w = floats(64, 64)
    w[0, 0] = 1e-3
    source = named(
        model("g (float[n, 64] x) => (float[n, 64] y) { a = MatMul(x, w) b = MatMul(a, w) y = Sin(b) }", w=w),
        b="second",
    )
    done = converted(tmp_path, source, [{"x": floats(8, 64)}], exclude=("second",))
    types = sorted(tensor.data_type for tensor in done.made.graph.initializer)
    assert done.state("second") == "fp32" and TensorProto.FLOAT in types
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(done.held()["w"]), w)


def test_weights_of_a_layer_in_fp32_are_stored_in_16_bits_where_they_are_not_the_reason(tmp_path: Path) -> None:
    source = model("""g (float[n, 64] x) => (float[n, 64] y) {
        k = Exp(x) a = MatMul(k, w) d = Sigmoid(a) y = MatMul(d, w2)
    }""", w=floats(64, 64), w2=floats(64, 64))  # fmt: skip
    x = 4 * floats(8, 64)
    done = converted(tmp_path, named(source, a="large"), [{"x": x}])
    assert done.state("large") == "fp32" and done.facts["weight_bytes_in_fp32"] < 64
    assert decibels(reference(done.made, {"x": x})[0], reference(source, {"x": x})[0]) > 55


def test_storage_alone(tmp_path: Path) -> None:
    source = model("g (float[n, 64] x) => (float[n, 64] y) { h = MatMul(x, v) r = Relu(h) y = MatMul(r, w) }",
                   v=floats(64, 64), w=floats(64, 64))  # fmt: skip
    x = floats(8, 64)
    done = converted(tmp_path, source, [{"x": x}], half_compute=False)
    assert done.facts["nodes_in_16_bits"] == 0 and done.facts["weight_bytes_in_fp32"] == 0
    assert all("weights alone" in layer["reason"] for layer in done.layers.values())
    rounded = [onnx.numpy_helper.to_array(t).astype(np.float16).astype(np.float32) for t in source.graph.initializer]
    want = np.maximum(x @ rounded[0], 0) @ rounded[1]
    np.testing.assert_allclose(reference(done.made, {"x": x})[0], want, rtol=1e-5, atol=1e-4)


def test_numbers_that_attributes_make(tmp_path: Path) -> None:
    """ConstantOfShape and a Cast of integers make float16 themselves, without a Cast behind them."""
    source = model("""g (int64[n, 8] i) => (float[n, 4] y) {
        f = Cast <to = 1> (i) s = Shape(i) c = ConstantOfShape <value = float[1] {0.5}> (s)
        a = Add(f, c) y = MatMul(a, w)
    }""", w=floats(8, 4))  # fmt: skip
    i = np.arange(32).reshape(4, 8)
    done = converted(tmp_path, source, [{"i": i}])
    assert len(done.casts()) == 2 and done.facts["nodes_in_fp32"] == 0
    assert decibels(reference(done.made, {"i": i})[0], reference(source, {"i": i})[0]) > 55


# --- bodies


def test_a_body_that_reads_what_is_made_outside(tmp_path: Path) -> None:
    """The If stays in fp32; its branches read a tensor that is made in fp16 and a weight that fp16 reads too."""
    source = named(model("""g (float[n, 8] x, bool c) => (float[n, 4] y) {
        h = MatMul(x, w)
        m = If (c) <then_branch = t () => (float[n, 8] p) { p = MatMul(h, w) },
                    else_branch = e () => (float[n, 8] q) { q = Neg(h) }>
        y = MatMul(m, v)
    }""", w=floats(8, 8), v=floats(8, 4)), h="before", m="choice", y="after")  # fmt: skip
    x = floats(8, 8)
    flags = [np.array(True), np.array(False)]
    done = converted(tmp_path, source, [{"x": x, "c": flag} for flag in flags])
    assert [done.state(name) for name in ("before", "choice", "after")] == ["fp16", "fp32", "fp16"]
    assert "body" in done.reason("choice")
    assert len([node for node in done.casts() if node.input[0] == "h"]) == 1
    for flag in flags:
        got, want = (reference(one, {"x": x, "c": flag})[0] for one in (done.made, source))
        assert decibels(got, want) > 55


def test_a_loop_that_carries_a_float(tmp_path: Path) -> None:
    source = named(model("""g (float[8, 8] x) => (float[8, 8] y) {
        h = MatMul(x, w)
        k, s = Loop (m, t, h) <body = b (int64 i, bool c, float[8, 8] a) => (bool d, float[8, 8] e, float[8, 8] f)
            { d = Identity(c) e = Add(a, h) f = Neg(e) }>
        u = ReduceSum(s, ax) z = Add(k, u) y = MatMul(z, w)
    }""", w=floats(8, 8), m=np.array(3), t=np.array(True), ax=np.array([0])), h="before", k="loop")  # fmt: skip
    x = floats(8, 8)
    done = converted(tmp_path, source, [{"x": x}])
    assert (done.state("before"), done.state("loop")) == ("fp16", "fp32")
    assert decibels(reference(done.made, {"x": x})[0], reference(source, {"x": x})[0]) > 50


def test_large_weights_inside_a_body_are_stored_in_16_bits(tmp_path: Path) -> None:
    w = floats(64, 64)
    source = model("""g (float[n, 64] x, bool c) => (float[n, 64] y) {
        y = If (c) <then_branch = t () => (float[n, 64] p) { p = MatMul(x, w) },
                    else_branch = e () => (float[n, 64] q) { q = Neg(x) }>
    }""", w=w)  # fmt: skip
    x = floats(4, 64)
    done = converted(tmp_path, source, [{"x": x, "c": np.array(True)}])
    assert done.facts["weight_bytes_in_16_bits"] == 2 * w.size and done.facts["weight_bytes_in_fp32"] == 0
    got = reference(done.made, {"x": x, "c": np.array(True)})[0]
    np.testing.assert_allclose(got, x @ w.astype(np.float16).astype(np.float32), rtol=1e-5, atol=1e-4)


# --- the same again, and bad input


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    source = model(OVERFLOWS, w1=floats(8, 8), w2=floats(8, 4), one=2.0)
    x = 2 * floats(64, 8)
    one, other = (converted(tmp_path, source, [{"x": x}]).made.SerializeToString(deterministic=True) for _ in range(2))
    assert one == other


def test_a_model_in_float16_already(tmp_path: Path) -> None:
    source = model("g (float16[n, 8] x) => (float16[n, 4] y) { y = MatMul(x, w) }", w=floats(8, 4).astype(np.float16))
    with pytest.raises(InputError, match="weights are in fp16 already") as caught:
        converted(tmp_path, source, [{"x": floats(4, 8).astype(np.float16)}])
    assert caught.value.id == "already-quantized"
    source = model("g (double[n, 8] x) => (double[n, 4] y) { y = MatMul(x, w) }", w=floats(8, 4).astype(np.float64))
    with pytest.raises(InputError, match="its floats are DOUBLE") as caught:
        converted(tmp_path, source, [{"x": floats(4, 8).astype(np.float64)}])
    assert caught.value.id == "nothing-to-quantize"


def test_a_model_without_floats(tmp_path: Path) -> None:
    source = model("g (int64[n] x) => (int64[n] y) { y = Add(x, x) }")
    with pytest.raises(InputError, match="computes on no floats"):
        converted(tmp_path, source, [{"x": np.arange(4)}])


def test_a_model_of_which_nothing_can_be_in_16_bits(tmp_path: Path) -> None:
    source = model(
        "g (float[1, 5, 4] b, float[1, 2, 5] s) => (int64[n, 3] y) { y = NonMaxSuppression(b, s, k) }", k=np.array([2])
    )
    with pytest.raises(InputError, match="NonMaxSuppression of opset 17 takes no float16"):
        converted(tmp_path, source, [{"b": np.abs(floats(1, 5, 4)), "s": floats(1, 2, 5)}])


def test_a_quantized_model(tmp_path: Path) -> None:
    source = model("g (float[n, 8] x) => (float[n, 8] y) { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }",
                   s=0.1, z=np.array(0, np.uint8))  # fmt: skip
    with pytest.raises(InputError) as caught:
        converted(tmp_path, source, [{"x": floats(4, 8)}])
    assert caught.value.id == "already-quantized"


def test_bad_samples(tmp_path: Path) -> None:
    source = model(MLP, w1=floats(8, 16), b1=floats(16), w2=floats(16, 3))
    with pytest.raises(InputError) as caught:
        converted(tmp_path, source, [])
    assert caught.value.id == "no-samples"
    x = floats(8, 8)
    x[5, 2] = np.nan
    with pytest.raises(InputError, match="calibration sample 5 makes the tensor 'x' NaN"):
        converted(tmp_path, source, [{"x": x}])
    with pytest.raises(InputError):
        converted(tmp_path, source, [{"x": floats(8, 8).astype(np.float64)}])


def test_what_becomes_nan_inside(tmp_path: Path) -> None:
    source = model("g (float[n, 4] x) => (float[n, 4] y) { l = Sqrt(x) y = MatMul(l, w) }", w=floats(4, 4))
    x = np.abs(floats(8, 4))
    x[6] = -1
    with pytest.raises(InputError, match="sample 6 makes the tensor 'l' NaN"):
        converted(tmp_path, source, [{"x": x}])


def test_a_consumer_without_floats_and_an_unknown_node(tmp_path: Path) -> None:
    source = model(MLP, w1=floats(8, 16), b1=floats(16), w2=floats(16, 3))
    with pytest.raises(UsageError, match="no float arithmetic"):
        converted(tmp_path, source, [{"x": floats(4, 8)}], consumer="integer-only")
    with pytest.raises(UsageError, match="gem_0"):
        converted(tmp_path, source, [{"x": floats(4, 8)}], exclude=("gem_0",))
