"""Transposes move to where they cancel: same outputs, never more of them, and a reason for a near miss."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import alone

PASSES = ("push-transposes", "merge-transposes")
RNG = np.random.default_rng(5)


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def between(middle: str, opset: int = 17, out: str = "float[N,a,b,c]", **weights: np.ndarray) -> onnx.ModelProto:
    """x (N, 4, 5, 6), seen as (N, 5, 6, 4) by ``middle``, which makes m of h; then back."""
    return alone.model(
        f"(float[N,4,5,6] x) => ({out} y) {{ h = Transpose<perm=[0,2,3,1]>(x) {middle}"
        " y = Transpose<perm=[0,3,1,2]>(m) }",
        opset, **weights,
    )  # fmt: skip


BETWEEN = {
    "unary": ("m = Relu(h)", {}),
    "chain": ("a = Sigmoid(h) b = Mul(a, h) m = HardSwish(b)", {}),
    "clip": ("m = Clip(h, lo, hi)", {"lo": np.float32(-0.5), "hi": np.float32(0.5)}),
    "constant per channel": ("m = Mul(h, w)", {"w": floats(4)}),
    "constant of full rank": ("m = Add(w, h)", {"w": floats(1, 5, 1, 4)}),
    "constant of two axes": ("m = Sub(h, w)", {"w": floats(6, 4)}),
    "scalar": ("m = Div(h, w)", {"w": np.array(3, np.float32)}),
    "prelu": ("m = PRelu(h, w)", {"w": floats(4)}),
    "where": ("c = Greater(h, w) n = Neg(h) m = Where(c, h, n)", {"w": floats(4)}),
    "concat": ("r = Relu(h) m = Concat<axis=-1>(h, r)", {}),
    "concat of a constant": ("r = Expand(w, s) m = Concat<axis=3>(h, w2, h)", {"w": floats(1), "s": np.array([1]),
                                                                            "w2": floats(2, 5, 6, 1)}),
    "split": ("a, b = Split<axis=3>(h) m = Add(a, b)", {}),
    "reduction that keeps": ("a = ReduceMean<axes=[1,2], keepdims=1>(h) m = Mul(h, a)", {}),
    "reduction to a smaller rank": ("a = ReduceMax<axes=[1], keepdims=0>(h) b = Unsqueeze(a, ax) m = Sub(h, b)",
                                    {"ax": np.array([1])}),
    "reduction of all": ("a = ReduceSum(h) m = Div(h, a)", {}),
    "pad": ("m = Pad(h, p)", {"p": np.array([0, 1, 2, 0, 0, 3, 0, 1])}),
    "slice": ("m = Slice(h, s, e, ax, st)", {"s": np.array([1, -1]), "e": np.array([4, -9]), "ax": np.array([1, -1]),
                                             "st": np.array([2, -1])}),
    "slice without axes": ("m = Slice(h, s, e)", {"s": np.array([0, 1], np.int32), "e": np.array([1, 3], np.int32)}),
    "softmax": ("m = Softmax<axis=3>(h)", {}),
    "log softmax": ("m = LogSoftmax<axis=-2>(h)", {}),
    "arg max that keeps": ("a = ArgMax<axis=3>(h) f = Cast<to=1>(a) m = Add(h, f)", {}),
    "gather": ("m = Gather<axis=3>(h, i)", {"i": np.array([3, 0])}),
    "cumulated": ("m = CumSum(h, i)", {"i": np.array(2)}),
    "tile": ("m = Tile(h, r)", {"r": np.array([1, 2, 1, 3])}),
    "squeezed and back": ("a = Slice(h, s, e, ax) b = Squeeze(a, ax) c = Unsqueeze(b, ax) m = Mul(h, c)",
                          {"s": np.array([0]), "e": np.array([1]), "ax": np.array([2])}),
    "quantized": ("q = QuantizeLinear(h, s, z) m = DequantizeLinear(q, s, z)",
                  {"s": np.float32(0.05), "z": np.uint8(120)}),
    "quantized per channel": ("q = QuantizeLinear<axis=3>(h, s, z) m = DequantizeLinear<axis=3>(q, s, z)",
                              {"s": np.array([0.02, 0.03, 0.04, 0.05], np.float32), "z": np.zeros(4, np.int8)}),
    "top k": ("m, i = TopK<axis=3>(h, k)", {"k": np.array([2])}),
}  # fmt: skip


@pytest.mark.parametrize("case", BETWEEN)
def test_a_pair_cancels_over(case: str) -> None:
    middle, weights = BETWEEN[case]
    opset = 21 if "quantized" in case else 17  # of the oracle's DequantizeLinear
    before = between(middle, opset, **{name: np.asarray(array) for name, array in weights.items()})
    after, _ = alone.rewritten(before, *PASSES)
    assert alone.ops(after)["Transpose"] == 0
    assert sum(alone.ops(after).values()) <= sum(alone.ops(before).values()) - 2
    alone.agree(before, after)


OLD = {
    "pad": (7, "m = Pad<pads=[0,1,2,0,0,3,0,1]>(h)"),
    "slice": (9, "m = Slice<axes=[1,3], starts=[1,0], ends=[4,3]>(h)"),
    "slice without axes": (7, "m = Slice<starts=[0,1], ends=[1,4]>(h)"),
    "squeeze": (11, "a = ReduceMin<axes=[2]>(h) b = Squeeze<axes=[2]>(a) c = Unsqueeze<axes=[2]>(b)"
                    " m = Mul(h, c)"),
    "sum": (11, "a = ReduceSum<axes=[1,-1], keepdims=1>(h) m = Mul(h, a)"),
}  # fmt: skip


@pytest.mark.parametrize("case", OLD)
def test_attributes_of_old_opsets(case: str) -> None:
    opset, middle = OLD[case]
    before = between(middle, opset)
    after, _ = alone.rewritten(before, *PASSES)
    assert alone.ops(after)["Transpose"] == 0
    alone.agree(before, after)


def test_a_flattening_softmax_stays() -> None:
    """Before opset 13 it took all axes from its own on together, which aren't together in another order."""
    before = between("m = Softmax<axis=2>(h)", 11)
    after, _ = alone.rewritten(before, *PASSES)
    assert alone.ops(after)["Transpose"] == 2
    before = alone.model("""(float[N,4,5,6] x) => (float[N,4,5,6] y) {
        a = Transpose<perm=[0,2,1,3]>(x) b = Softmax<axis=3>(a) y = Transpose<perm=[0,2,1,3]>(b) }""", 11)  # fmt: skip
    after, _ = alone.rewritten(before, *PASSES)
    assert alone.ops(after) == {"Softmax": 1}  # the last axis alone, which stays the last
    alone.agree(before, after)


IMAGES = {
    "max pool": "m = MaxPool<kernel_shape=[2,3], strides=[1,2], pads=[0,1,1,0]>(h)",
    "average pool": "m = AveragePool<kernel_shape=[3,1], strides=[2,1], pads=[1,0,0,0]>(h)",
    "instance norm": "m = InstanceNormalization(h, s, b)",
    "batch norm": "m = BatchNormalization(h, s, b, b, v)",
    "global pool": "a = GlobalAveragePool(h) m = Mul(h, a)",
}


@pytest.mark.parametrize("case", IMAGES)
def test_pools_and_normalizations_where_the_channels_stay_second(case: str) -> None:
    weights = {"s": floats(4), "b": floats(4), "v": np.abs(floats(4)) + 1}
    text = "(float[N,4,5,6] x) => (float[N,a,b,c] y) {{ h = Transpose<perm={0}>(x) {1} y = Transpose<perm={2}>(m) }}"
    before = alone.model(text.format("[0,1,3,2]", IMAGES[case], "[0,1,3,2]"), **weights)
    after, _ = alone.rewritten(before, *PASSES)
    assert alone.ops(after)["Transpose"] == 0
    alone.agree(before, after)
    weights = {"s": floats(5), "b": floats(5), "v": np.abs(floats(5)) + 1}
    before = alone.model(text.format("[0,2,3,1]", IMAGES[case], "[0,3,1,2]"), **weights)
    after, _ = alone.rewritten(before, *PASSES)
    assert alone.ops(after)["Transpose"] == 2


def test_all_inputs_equally_transposed() -> None:
    """Two Transposes above an Add become one below it; two above a Concat as well."""
    before = alone.model("""(float[N,4,5] x, float[N,4,5] z) => (float[N,b,c] y) {
        a = Transpose<perm=[0,2,1]>(x) b = Transpose<perm=[0,2,1]>(z) c = Add(a, b) y = Relu(c) }""")
    after, _ = alone.rewritten(before, *PASSES)
    assert alone.ops(after)["Transpose"] == 1
    alone.agree(before, after)


def test_residual_network_in_the_other_order() -> None:
    """What a converter from channels-last writes: a pair of Transposes around every Conv, and element-wise between."""
    before = alone.model(
        """(float[N,8,8,4] x) => (float[N,8,8,4] y) {
        a = Transpose<perm=[0,3,1,2]>(x) b = Conv<pads=[1,1,1,1]>(a, w) c = Transpose<perm=[0,2,3,1]>(b) d = Relu(c)
        e = Transpose<perm=[0,3,1,2]>(d) f = Conv<pads=[1,1,1,1]>(e, w) g = Transpose<perm=[0,2,3,1]>(f)
        h = Add(d, g) i = Mul(h, k) j = Transpose<perm=[0,3,1,2]>(i) l = Conv<pads=[1,1,1,1]>(j, w)
        m = Transpose<perm=[0,2,3,1]>(l) y = Add(i, m) }""",
        w=floats(4, 4, 3, 3), k=floats(4),
    )  # fmt: skip
    after, _ = alone.rewritten(before, *PASSES)
    assert alone.ops(after)["Transpose"] == 2  # at the input and at the output
    alone.agree(before, after)


def test_reshapes_that_only_move_axes_of_size_1() -> None:
    before = alone.model(
        """(float[N,3,1,7] x, float[N,3,1,7] z) => (float[N,3,7,2] y) {
        a = Transpose<perm=[0,2,3,1]>(x) b = Reshape(a, s) c = Transpose<perm=[0,2,3,1]>(z) d = Reshape(c, s)
        e = Concat<axis=3>(b, d) y = Transpose<perm=[0,2,1,3]>(e) }""",
        s=np.array([0, 7, 3, 1]),
    )  # fmt: skip
    after, _ = alone.rewritten(before, *PASSES, "merge-reshapes")
    assert alone.ops(after) == {"Reshape": 2, "Concat": 1}
    alone.agree(before, after)


def test_a_reader_between_that_needs_the_value_as_it_is() -> None:
    """MatMul comes after one turned node and before another: the new nodes can't all stand at one place."""
    before = alone.model(
        """(float[N,4,5] x) => (float[N,4,5] y, float[N,5,4] z) {
        a = Transpose<perm=[0,2,1]>(x) b = Relu(a) z = MatMul(b, w) c = Add(b, z) d = Add(c, b)
        y = Transpose<perm=[0,2,1]>(d) }""",
        w=floats(4, 4),
    )  # fmt: skip
    after, _ = alone.rewritten(before, *PASSES)
    assert alone.ops(after)["Transpose"] <= 2
    alone.agree(before, after)


def test_a_sum_of_a_value_and_its_transpose() -> None:
    """Both can't be in an order of their own: one is the Transpose of the other."""
    before = alone.model("""(float[4,4,4] x) => (float[4,4,4] y) {
        a = Transpose<perm=[0,2,1]>(x) b = Add(a, x) y = Transpose<perm=[1,2,0]>(b) }""")
    after, _ = alone.rewritten(before, *PASSES)
    assert alone.ops(after)["Transpose"] <= 2
    alone.agree(before, after)


def test_a_value_that_one_order_changes_and_another_does_not() -> None:
    """The order in which the first Concat would read b leaves it as it is, its axes being of size 1."""
    before = alone.model(
        """(float[1,5,3] x, float[1,3,1] z) => (float[1,6,3] y, float[1,3,6] u) {
        a = Transpose<perm=[1,0,2]>(x) c = Transpose<perm=[0,2,1]>(z) b = Relu(c)
        f = Concat<axis=0>(a, b) y = Transpose<perm=[1,0,2]>(f)
        g = Unsqueeze(a, first) h = ReduceSum<keepdims=0>(g, last) i = Tile(h, times)
        j = Concat<axis=1>(i, b) u = Transpose<perm=[0,2,1]>(j) }""",
        first=np.array([0]), last=np.array([3]), times=np.array([1, 1, 3]),
    )  # fmt: skip
    after, _ = alone.rewritten(before, *PASSES)
    alone.agree(before, after)


def test_less_to_transpose() -> None:
    """A Transpose goes below a reduction, and above an Expand, where it moves less."""
    before = alone.model("""(float[N,4,5,6] x) => (float[5,N,4] y) {
        a = Transpose<perm=[2,0,1,3]>(x) y = ReduceSum<keepdims=0>(a, k) }""", k=np.array([3]))  # fmt: skip
    after, _ = alone.rewritten(before, *PASSES)
    assert [node.op_type for node in after.graph.node] == ["ReduceSum", "Transpose"]
    alone.agree(before, after)


def test_a_quantizing_pair_isn_t_parted() -> None:
    """There would be less to transpose between the two, in 8 bits; but runtimes look for pairs."""
    before = alone.model(
        """(float[N,4,5] x) => (float[N,5,4] y) { a = Transpose<perm=[0,2,1]>(x) q = QuantizeLinear(a, s, z)
        d = DequantizeLinear(q, s, z) y = Relu(d) }""",
        s=np.array(0.1, np.float32), z=np.array(0, np.int8),
    )  # fmt: skip
    after, _ = alone.rewritten(before, *PASSES)
    assert [node.op_type for node in after.graph.node] == [node.op_type for node in before.graph.node]


@pytest.mark.parametrize(
    "middle",
    ["m = MatMul(h, w)", "a = Reshape(h, s) m = Reshape(a, t)", "m = Trilu(h)"],
)
def test_what_depends_on_the_order_stays(middle: str) -> None:
    weights = {"w": floats(4, 4), "s": np.array([-1, 120]), "t": np.array([-1, 5, 6, 4])}
    before = between(middle, **weights)
    after, _ = alone.rewritten(before, *PASSES)
    assert alone.ops(after) == alone.ops(before)


def test_no_push_without_profit() -> None:
    """A Transpose that meets no other stays where it is, and so does the rest."""
    before = alone.model(
        "(float[N,4,5] x) => (float[N,5,4] y) { a = Transpose<perm=[0,2,1]>(x) b = Relu(a) y = Exp(b) }"
    )
    after, result = alone.rewritten(before, *PASSES)
    assert not result.trace.events
    assert [node.op_type for node in after.graph.node] == ["Transpose", "Relu", "Exp"]


def test_a_large_constant_that_others_read_is_not_doubled() -> None:
    before = alone.model(
        """(float[64,32] x) => (float[64,32] y, float[32,64] z) {
        a = Transpose(x) b = Add(a, w) y = Transpose(b) z = Neg(w) }""",
        w=floats(32, 64),
    )  # fmt: skip
    after, _ = alone.rewritten(before, *PASSES)
    assert alone.ops(after)["Transpose"] == 2


def test_outputs_keep_their_names() -> None:
    before = alone.model("""(float[N,4,5] x) => (float[N,4,5] y, float[N,5,4] z, float[N,4,5] u) {
        a = Transpose<perm=[0,2,1]>(x) z = Relu(a) y = Transpose<perm=[0,2,1]>(z) b = Exp(z)
        u = Transpose<perm=[0,2,1]>(b) }""")
    after, _ = alone.rewritten(before, *PASSES)
    assert alone.ops(after)["Transpose"] == 1
    alone.agree(before, after)


def test_inside_a_branch() -> None:
    before = alone.model("""(float[4,5] x, bool c) => (float[4,5] y) {
        y = If(c) <then_branch = t () => (float[4,5] p) { a = Transpose(x) b = Relu(a) p = Transpose(b) },
                   else_branch = e () => (float[4,5] q) { q = Neg(x) }> }""")
    after, _ = alone.rewritten(before, *PASSES)
    branch = next(attribute.g for attribute in after.graph.node[0].attribute if attribute.name == "then_branch")
    assert [node.op_type for node in branch.node] == ["Relu"]
    alone.agree(before, after)


STEPS = ("Relu({0})", "Mul({0}, w)", "Add({0}, {1})", "Transpose<perm=[0,2,1]>({0})", "Transpose<perm=[2,1,0]>({0})",
         "Concat<axis=1>({0}, {1})", "Softmax<axis=2>({0})", "ReduceMean<axes=[2], keepdims=1>({0})",
         "Slice({0}, s0, s1, s2)", "Sigmoid({0})", "Transpose<perm=[1,2,0]>({0})", "MatMul({0}, {1})")  # fmt: skip


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=16))
def test_random_graphs_keep_their_meaning(steps: list[tuple[str, int, int]]) -> None:
    """Cubes of size 4 fit everywhere; what has another shape is not read with another."""
    shapes, lines = {"x": (4, 4, 4)}, []
    for step, first, second in steps:
        names = list(shapes)
        a, b = names[-1 - first % len(names)], names[-1 - second % len(names)]
        if "{1}" in step and shapes[a] != shapes[b]:
            continue
        if ("MatMul" in step or "w" in step) and shapes[a] != (4, 4, 4):
            continue
        name = f"v{len(lines)}"
        shape = list(shapes[a])
        if "perm" in step:
            shape = [shape[int(axis)] for axis in step[step.index("[") + 1 : step.index("]")].split(",")]
        if "Concat" in step:
            shape[1] *= 2
        if "Reduce" in step:
            shape[2] = 1
        if "Slice" in step:
            shape[0] = min(shape[0], 4) - 1 if shape[0] > 1 else shape[0]
            if shapes[a][0] != 4:
                continue
        shapes[name] = tuple(shape)
        lines.append(f"{name} = {step.format(a, b)}")
    if not lines:
        return
    read = {word for line in lines for word in line.partition("(")[2].strip(")").split(", ")}
    ends = [name for name in shapes if name not in read and name != "x"]
    outputs = ", ".join(f"float[{','.join(map(str, shapes[name]))}] {name}" for name in ends)
    weights = {"w": floats(4, 1), "s0": np.array([0]), "s1": np.array([3]), "s2": np.array([0])}
    before = alone.model(f"(float[4,4,4] x) => ({outputs}) {{ {' '.join(lines)} }}", **weights)
    after, _ = alone.rewritten(before, *PASSES)
    assert alone.ops(after)["Transpose"] <= alone.ops(before)["Transpose"]
    assert sum(alone.ops(after).values()) <= sum(alone.ops(before).values())
    alone.agree(before, after, by="ort")
