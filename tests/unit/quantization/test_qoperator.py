"""QOperator: every operator on integers against the pairs it came from, which the reference evaluator runs in float."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from penstock.errors import UsageError
from penstock.quantization import qoperator
from penstock.stages.quantize import QuantizeSettings, quantize

RNG = np.random.default_rng(0)
START = RNG.bit_generator.state
FLOAT = TensorProto.FLOAT
LEVELS = onnxruntime.GraphOptimizationLevel
ZEROS = {"uint8": 120, "int8": -7}
both_types = pytest.mark.parametrize("dtype", ["uint8", "int8"])


@pytest.fixture(autouse=True)
def _again() -> None:
    """Let every test draw the same numbers in whichever order they run."""
    RNG.bit_generator.state = START


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


class Pairs:
    """A model of Q/DQ pairs in the making, as the emitter writes them."""

    def __init__(self, dtype: str = "uint8", opset: int = 17) -> None:
        self.dtype, self.opset = dtype, opset
        self.nodes: list[onnx.NodeProto] = []
        self.held: dict[str, np.ndarray] = {}
        self.inputs: dict[str, list] = {}

    def input(self, name: str, *shape: Any) -> str:
        self.inputs[name] = [*shape]
        return name

    def hold(self, name: str, array: np.ndarray) -> str:
        self.held[name] = array
        return name

    def op(self, op: str, inputs: Sequence[str], out: str, **attributes: Any) -> str:
        outs = out.split(",")
        self.nodes.append(helper.make_node(op, inputs, outs, name=f"{op.lower()}_{outs[0]}", **attributes))
        return out

    def grid(self, name: str, scale: float, zero: int | None = None) -> list[str]:
        if f"{name}_s" not in self.held:
            self.hold(f"{name}_s", np.array(scale, np.float32))
            self.hold(f"{name}_z", np.array(ZEROS[self.dtype] if zero is None else zero, self.dtype))
        return [f"{name}_s", f"{name}_z"]

    def pair(self, value: str, scale: float, zero: int | None = None, *, grid: str = "") -> str:
        """Quantize and dequantize; ``grid`` is the value whose grid is taken."""
        parts = self.grid(grid or value, scale, zero)
        self.op("QuantizeLinear", [value, *parts], f"{value}_q")
        return self.op("DequantizeLinear", [f"{value}_q", *parts], f"{value}_d")

    def weights(self, name: str, real: np.ndarray, axis: int | None) -> str:
        """Hold weights as int8, with a scale for each index of an axis or one."""
        other = None if axis is None else tuple(i for i in range(real.ndim) if i != axis)
        scale = np.asarray(np.abs(real).max(axis=other) / 127, np.float32)
        spread = scale if axis is None else scale.reshape([-1 if i == axis else 1 for i in range(real.ndim)])
        parts = [self.hold(f"{name}_q", np.rint(real / spread).astype(np.int8)), self.hold(f"{name}_s", scale),
                 self.hold(f"{name}_z", np.zeros(scale.shape, np.int8))]  # fmt: skip
        return self.op("DequantizeLinear", parts, f"{name}_d", **({} if axis is None else {"axis": axis}))

    def bias(self, name: str, real: np.ndarray, data: str, weights: str) -> str:
        """Hold a bias as int32 on the grid of products."""
        scale = (self.held[f"{data}_s"] * self.held[f"{weights}_s"]).astype(np.float32)
        parts = [self.hold(f"{name}_q", np.rint(real / scale).astype(np.int32)), self.hold(f"{name}_s", scale)]
        return self.op("DequantizeLinear", parts, f"{name}_d", **({"axis": 0} if scale.ndim else {}))

    def model(self, *outputs: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes, "pairs", [helper.make_tensor_value_info(n, FLOAT, shape) for n, shape in self.inputs.items()],
            [helper.make_tensor_value_info(n, FLOAT, None) for n in outputs],
            [numpy_helper.from_array(array, n) for n, array in self.held.items()],
        )  # fmt: skip
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        return onnx.shape_inference.infer_shapes(made)


def converted(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    loaded = ir.from_proto(model)
    kept = qoperator.convert(loaded)
    return ir.to_proto(loaded), kept


def run(
    model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], level: Any = LEVELS.ORT_DISABLE_ALL
) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(feeds))


def reference(tiny: ModuleType, model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Run the reference evaluator, which knows these operators from opset 19 on; they meant the same before."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for one in copy.opset_import:
        one.version = max(one.version, 19) if not one.domain else one.version
    return tiny.oracle(copy, dict(feeds))


def ops(model: onnx.ModelProto) -> Counter:
    return Counter(node.op_type for node in model.graph.node)


def check(
    tiny: ModuleType, model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], expected: Mapping[str, int], step: float,
    *, off: float = 0.02, standard: bool = False,
) -> onnx.ModelProto:  # fmt: skip
    """Hold a converted model against its pairs: no more than a step away, and ``off`` of the values at most a step.

    Scales are such that no result lies in the middle between two integers, where roundings may differ.
    """
    got, kept = converted(model)
    assert ops(got) == expected and kept == {}
    assert {node.name for node in got.graph.node if node.op_type in set(ops(model)) - {"Identity"}} <= {
        node.name for node in model.graph.node
    }
    used = {name for node in got.graph.node for name in node.input} | {one.name for one in got.graph.output}
    assert {held.name for held in got.graph.initializer} <= used
    assert [one.name for one in got.graph.output] == [one.name for one in model.graph.output]
    oracles = [reference(tiny, model, feeds), run(model, feeds)]
    if standard:
        oracles.append(reference(tiny, got, feeds))
    for level in (LEVELS.ORT_DISABLE_ALL, LEVELS.ORT_ENABLE_ALL):
        for index, a in enumerate(run(got, feeds, level)):
            assert a.dtype == np.float32 and np.ptp(a) > 10 * step, "something is tested"
            for oracle in oracles:
                steps = np.abs(a - oracle[index]) / step
                assert steps.max() < 1.01 and (steps > 0.01).mean() <= off, (steps.max(), (steps > 0.01).mean())
    return got


# -- layers with weights

SHAPES = [
    {"pads": [1, 1, 1, 1]},
    {"pads": [1, 0, 2, 1], "strides": [2, 1]},
    {"pads": [2, 2, 2, 2], "dilations": [2, 2]},
    {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"group": 2, "pads": [1, 1, 1, 1]},
    {"group": 6, "pads": [1, 1, 1, 1], "kernel_shape": [3, 3]},
]


@both_types
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("attributes", SHAPES, ids=lambda a: "-".join(map(str, a)))
def test_conv(attributes: dict, bias: bool, per_channel: bool, dtype: str, tiny: ModuleType) -> None:
    m = Pairs(dtype)
    x = m.pair(m.input("x", "n", 6, 9, 8), 0.03)
    w = m.weights("w", floats(12, 6 // attributes.get("group", 1), 3, 3), 0 if per_channel else None)
    inputs = [x, w, *([m.bias("b", floats(12), "x", "w")] if bias else [])]
    m.pair(m.op("Conv", inputs, "c", **attributes), 0.2)
    expected = {"QuantizeLinear": 1, "QLinearConv": 1, "DequantizeLinear": 1}
    check(tiny, m.model("c_d"), {"x": floats(2, 6, 9, 8)}, expected, 0.2, standard=True)


def test_conv_of_one_and_three_dimensions(tiny: ModuleType) -> None:
    for sizes in ([9], [5, 6, 4]):
        m = Pairs()
        w = m.weights("w", floats(5, 4, *[3] * len(sizes)), 0)
        x = m.pair(m.input("x", "n", 4, *sizes), 0.03)
        m.pair(m.op("Conv", [x, w, m.bias("b", floats(5), "x", "w")], "c"), 0.2)
        expected = {"QuantizeLinear": 1, "QLinearConv": 1, "DequantizeLinear": 1}
        check(tiny, m.model("c_d"), {"x": floats(2, 4, *sizes)}, expected, 0.2)


@both_types
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("turned", [0, 1])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_gemm(whole: bool, bias: bool, turned: int, per_channel: bool, dtype: str, tiny: ModuleType) -> None:
    m = Pairs(dtype)
    x = m.pair(m.input("x", "n", 40), 0.03)
    w = m.weights("w", floats(24, 40) if turned else floats(40, 24), (1 - turned) if per_channel else None)
    inputs = [x, w, *([m.bias("b", floats(24), "x", "w")] if bias else [])]
    y = m.op("Gemm", inputs, "y", transB=turned)
    if whole:
        m.pair(y, 0.25)
        expected = {"QuantizeLinear": 1, "QGemm": 1, "DequantizeLinear": 1}
        check(tiny, m.model("y_d"), {"x": floats(7, 40)}, expected, 0.25)
    else:  # of a float result there is nothing to be a step away from
        check(tiny, m.model("y"), {"x": floats(7, 40)}, {"QuantizeLinear": 1, "QGemm": 1}, 1e-3)


@both_types
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("shape", [(7, 40), (2, 5, 40), (2, 3, 4, 40)], ids=str)
@pytest.mark.parametrize("whole", [True, False])
def test_matmul(whole: bool, shape: tuple[int, ...], per_channel: bool, dtype: str, tiny: ModuleType) -> None:
    m = Pairs(dtype)
    x = m.pair(m.input("x", *shape), 0.03)
    y = m.op("MatMul", [x, m.weights("w", floats(40, 24), 1 if per_channel else None)], "y")
    if whole:
        m.pair(y, 0.25)
        expected = {"QuantizeLinear": 1, "QLinearMatMul": 1, "DequantizeLinear": 1}
        check(tiny, m.model("y_d"), {"x": floats(*shape)}, expected, 0.25, standard=True)
    else:
        check(tiny, m.model("y"), {"x": floats(*shape)}, {"QuantizeLinear": 1, "MatMulIntegerToFloat": 1}, 1e-3)


def test_matmul_of_two_activations(tiny: ModuleType) -> None:
    m = Pairs()
    a, b = m.pair(m.input("a", 2, 5, 6), 0.03), m.pair(m.input("b", 2, 6, 4), 0.02)
    m.pair(m.op("MatMul", [a, b], "y"), 0.1)
    expected = {"QuantizeLinear": 2, "QLinearMatMul": 1, "DequantizeLinear": 1}
    check(tiny, m.model("y_d"), {"a": floats(2, 5, 6), "b": floats(2, 6, 4)}, expected, 0.1, standard=True)


@pytest.mark.parametrize("first", [True, False])
def test_a_row_behind_a_float_product_goes_in(first: bool, tiny: ModuleType) -> None:
    m = Pairs()
    x = m.pair(m.input("x", 2, 5, 40), 0.03)
    y = m.op("MatMul", [x, m.weights("w", floats(40, 24), 1)], "y")
    m.op("Add", [m.hold("b", floats(24)), y] if first else [y, m.hold("b", floats(24))], "z")
    check(tiny, m.model("z"), {"x": floats(2, 5, 40)}, {"QuantizeLinear": 1, "MatMulIntegerToFloat": 1}, 1e-3)


def test_weights_that_two_layers_share(tiny: ModuleType) -> None:
    m = Pairs()
    w = m.weights("w", floats(24, 24) / 5, 1)
    x = m.pair(m.input("x", 3, 24), 0.03)
    h = m.pair(m.op("MatMul", [x, w], "h"), 0.05)
    m.pair(m.op("MatMul", [h, w], "y"), 0.1)
    expected = {"QuantizeLinear": 1, "QLinearMatMul": 2, "DequantizeLinear": 1}
    got = check(tiny, m.model("y_d"), {"x": floats(3, 24)}, expected, 0.1, standard=True, off=0.1)
    assert [held.name for held in got.graph.initializer].count("w_q") == 1


# -- arithmetic


@both_types
@pytest.mark.parametrize("op", ["Add", "Mul"])
@pytest.mark.parametrize("shapes", [((2, 3, 4), (2, 3, 4)), ((2, 3, 4), (1, 3, 1)), ((4,), (2, 3, 4))], ids=str)
def test_two_operands(shapes: tuple, op: str, dtype: str, tiny: ModuleType) -> None:
    m = Pairs(dtype)
    a, b = m.pair(m.input("a", *shapes[0]), 0.03), m.pair(m.input("b", *shapes[1]), 0.02, 3)
    m.pair(m.op(op, [a, b], "y"), 0.0507, 9)
    expected = {"QuantizeLinear": 2, f"QLinear{op}": 1, "DequantizeLinear": 1}
    check(tiny, m.model("y_d"), {"a": floats(*shapes[0]), "b": floats(*shapes[1])}, expected, 0.0507)


@both_types
def test_a_constant_operand_and_one_tensor_twice(dtype: str, tiny: ModuleType) -> None:
    m = Pairs(dtype)
    x = m.pair(m.input("x", 3, 5), 0.03)
    held = m.hold("c_q", RNG.integers(0, 100, (3, 5)).astype(dtype))
    c = m.op("DequantizeLinear", [held, *m.grid("c", 0.02)], "c_d")
    y = m.pair(m.op("Add", [x, c], "y"), 0.0507)
    m.pair(m.op("Mul", [y, y], "z"), 0.1013, 0)
    expected = {"QuantizeLinear": 1, "QLinearAdd": 1, "QLinearMul": 1, "DequantizeLinear": 1}
    check(tiny, m.model("z_d"), {"x": floats(3, 5)}, expected, 0.1013, off=0.1)


@both_types
@pytest.mark.parametrize(
    ("op", "attributes", "step"),
    [
        ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}, 0.0117),
        ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}, 0.0117),
        ("AveragePool", {"kernel_shape": [2, 3], "strides": [2, 2], "ceil_mode": 1}, 0.0117),
        ("GlobalAveragePool", {}, 0.002),
        ("Sigmoid", {}, 0.004),
        ("LeakyRelu", {"alpha": 0.2}, 0.02),
        ("LeakyRelu", {}, 0.02),
    ],
)
def test_one_operand(op: str, attributes: dict, step: float, dtype: str, tiny: ModuleType) -> None:
    m = Pairs(dtype)
    x = m.pair(m.input("x", 2, 5, 8, 9), 0.03)
    zero = {"uint8": 0, "int8": -128}[dtype] if op == "Sigmoid" else None
    m.pair(m.op(op, [x], "y", **attributes), step, zero)
    expected = {"QuantizeLinear": 1, f"QLinear{op}": 1, "DequantizeLinear": 1}
    check(tiny, m.model("y_d"), {"x": floats(2, 5, 8, 9)}, expected, step)


@both_types
def test_concat_of_different_grids(dtype: str, tiny: ModuleType) -> None:
    m = Pairs(dtype)
    parts = [m.pair(m.input(name, 2, size, 4), scale, zero) for name, size, scale, zero in
             (("a", 3, 0.03, 5), ("b", 1, 0.02, 60), ("c", 2, 0.05, 0))]  # fmt: skip
    m.pair(m.op("Concat", parts, "y", axis=1), 0.04)
    feeds = {"a": floats(2, 3, 4), "b": floats(2, 1, 4), "c": np.abs(floats(2, 2, 4))}
    expected = {"QuantizeLinear": 3, "QLinearConcat": 1, "DequantizeLinear": 1}
    check(tiny, m.model("y_d"), feeds, expected, 0.04)


# -- moving

MOVES: dict[str, tuple[list[str], dict[str, Any], dict[str, np.ndarray]]] = {
    "DepthToSpace": ([], {"blocksize": 2}, {}),
    "Expand": (["s"], {}, {"s": np.array([2, 4, 6, 6], np.int64)}),
    "Flatten": ([], {}, {}),
    "Gather": (["i"], {"axis": 1}, {"i": np.array([2, 0, 2], np.int64)}),
    "MaxPool": ([], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}, {}),
    "Reshape": (["s"], {}, {"s": np.array([0, -1], np.int64)}),
    "Resize": (["", "f"], {"mode": "nearest"}, {"f": np.array([1, 1, 2, 2], np.float32)}),
    "Slice": (["a", "b", "c"], {}, {k: np.array([v], np.int64) for k, v in (("a", 1), ("b", 4), ("c", 2))}),
    "SpaceToDepth": ([], {"blocksize": 2}, {}),
    "Squeeze": (["a"], {}, {"a": np.array([0], np.int64)}),
    "Tile": (["r"], {}, {"r": np.array([1, 2, 1, 1], np.int64)}),
    "Transpose": ([], {"perm": [0, 2, 3, 1]}, {}),
    "Unsqueeze": (["a"], {}, {"a": np.array([1], np.int64)}),
}


@both_types
@pytest.mark.parametrize("op", MOVES)
def test_what_moves_elements_works_on_integers(op: str, dtype: str, tiny: ModuleType) -> None:
    rest, attributes, held = MOVES[op]
    m = Pairs(dtype)
    x = m.pair(m.input("x", 1, 4, 6, 6), 0.03)
    for name, array in held.items():
        m.hold(name, array)
    m.pair(m.op(op, [x, *rest], "y", **attributes), 0.03, grid="x")
    expected = {"QuantizeLinear": 1, op: 1, "DequantizeLinear": 1}
    check(tiny, m.model("y_d"), {"x": floats(1, 4, 6, 6)}, expected, 0.03, off=0.0)


@both_types
def test_split_has_several_results(dtype: str, tiny: ModuleType) -> None:
    m = Pairs(dtype)
    x = m.pair(m.input("x", 3, 6), 0.03)
    m.op("Split", [x, m.hold("s", np.array([2, 4], np.int64))], "a,b", axis=1)
    m.pair("a", 0.03, grid="x"), m.pair("b", 0.03, grid="x")
    expected = {"QuantizeLinear": 1, "Split": 1, "DequantizeLinear": 2}
    check(tiny, m.model("a_d", "b_d"), {"x": floats(3, 6)}, expected, 0.03, off=0.0)


def test_a_chain_between_layers_stays_on_integers(tiny: ModuleType) -> None:
    m = Pairs()
    x = m.pair(m.input("x", "n", 4, 8, 8), 0.03)
    c = m.pair(m.op("Conv", [x, m.weights("w", floats(6, 4, 3, 3) / 4, 0)], "c"), 0.05)
    p = m.pair(m.op("MaxPool", [c], "p", kernel_shape=[2, 2], strides=[2, 2]), 0.05, grid="c")
    f = m.pair(m.op("Flatten", [p], "f"), 0.05, grid="c")
    m.op("Gemm", [f, m.weights("v", floats(54, 10) / 5, 1)], "y")
    expected = {"QuantizeLinear": 1, "QLinearConv": 1, "MaxPool": 1, "Flatten": 1, "QGemm": 1}
    check(tiny, m.model("y"), {"x": floats(2, 4, 8, 8)}, expected, 0.2, off=0.2)


# -- who reads what


def test_a_clip_that_the_grid_does_not_make_clips_integers(tiny: ModuleType) -> None:
    for clip, rest in (("Relu", []), ("Clip", ["low", "high"]), ("Clip", ["low"])):
        m = Pairs()
        x = m.pair(m.input("x", "n", 4, 6, 6), 0.03)
        c = m.op("Conv", [x, m.weights("w", floats(6, 4, 3, 3) / 4, 0)], "c")
        m.hold("low", np.array(-0.52, np.float32)), m.hold("high", np.array(1.13, np.float32))
        m.pair(m.op(clip, [c, *rest], "r"), 0.05)
        expected = {"QuantizeLinear": 1, "QLinearConv": 1, "Clip": 1, "DequantizeLinear": 1}
        check(tiny, m.model("r_d"), {"x": floats(2, 4, 6, 6)}, expected, 0.05)


def test_a_tensor_with_two_readers_and_an_output_in_the_middle(tiny: ModuleType) -> None:
    """One reader is on integers, one in float, and the caller sees the tensor too."""
    m = Pairs()
    x = m.pair(m.input("x", "n", 4, 6, 6), 0.03)
    c = m.pair(m.op("Conv", [x, m.weights("w", floats(4, 4, 3, 3) / 4, 0)], "c", pads=[1, 1, 1, 1]), 0.05)
    m.pair(m.op("Add", [c, x], "a"), 0.06)
    m.op("Exp", [c], "e")
    model = m.model("a_d", "c_d", "e")
    got, kept = converted(model)
    assert ops(got) == {"QuantizeLinear": 1, "QLinearConv": 1, "QLinearAdd": 1, "DequantizeLinear": 2, "Exp": 1}
    assert [one.name for one in got.graph.output] == ["a_d", "c_d", "e"] and "no Exp" in kept["exp_e"]
    feeds = {"x": floats(2, 4, 6, 6)}
    for a, b in zip(run(got, feeds), reference(tiny, model, feeds), strict=True):
        assert np.abs(a - b).max() < 0.35 and (np.abs(a - b) > 1e-3).mean() < 0.05


def test_a_float_reader_beside_the_quantization_keeps_a_convolution_in_float(tiny: ModuleType) -> None:
    m = Pairs()
    x = m.pair(m.input("x", "n", 4, 6, 6), 0.03)
    c = m.op("Conv", [x, m.weights("w", floats(4, 4, 3, 3) / 4, 0)], "c")
    m.pair(c, 0.05)
    m.op("Exp", [c], "e")
    model = m.model("c_d", "e")
    got, kept = converted(model)
    assert ops(got)["Conv"] == 1 and "read in float" in kept["conv_c"]
    feeds = {"x": floats(2, 4, 6, 6)}
    for a, b in zip(run(got, feeds), run(model, feeds), strict=True):
        np.testing.assert_array_equal(a, b)


REASONS = {
    "transA": ("Gemm", {"transA": 1}, "transposed"),
    "alpha": ("Gemm", {"alpha": 2.0}, "alpha"),
}


@pytest.mark.parametrize("case", REASONS)
def test_what_has_no_form_stays_with_the_reason(case: str, tiny: ModuleType) -> None:
    op, attributes, reason = REASONS[case]
    m = Pairs()
    x = m.pair(m.input("x", 24, 24), 0.03)
    m.pair(m.op(op, [x, m.weights("w", floats(24, 24), 1)], "y", **attributes), 0.2)
    model = m.model("y_d")
    got, kept = converted(model)
    assert reason in kept["gemm_y"] and ops(got) == ops(model)
    feeds = {"x": floats(24, 24)}
    np.testing.assert_array_equal(run(got, feeds)[0], run(model, feeds)[0])


def test_other_reasons(tiny: ModuleType) -> None:
    m = Pairs(opset=19)
    x = m.pair(m.input("x", 1, 4, 8, 8), 0.03)
    m.pair(m.op("AveragePool", [x], "p", kernel_shape=[2, 2], dilations=[2, 2]), 0.02)
    m.hold("f", np.array([1, 1, 2, 2], np.float32))
    m.pair(m.op("Resize", [x, "", "f"], "r", mode="linear"), 0.03, grid="x")
    m.pair(m.op("Transpose", [x], "t"), 0.04)
    m.pair(m.op("Conv", [x, m.weights("w", floats(4, 4, 1, 1), 0), m.hold("b", floats(4))], "c"), 0.1)
    w2 = m.weights("w2", floats(4, 4, 1, 1), 0)
    off = m.op(
        "DequantizeLinear", [m.hold("o_q", np.ones(4, np.int32)), m.hold("o_s", np.ones(4, np.float32))], "o_d", axis=0
    )
    m.pair(m.op("Conv", [x, w2, off], "d"), 0.1)
    model = m.model("p_d", "r_d", "t_d", "c_d", "d_d")
    got, kept = converted(model)
    assert set(kept) == {"averagepool_p", "resize_r", "transpose_t", "conv_c", "conv_d"}
    for name, part in (("averagepool_p", "dilations"), ("resize_r", "rounding"), ("transpose_t", "another grid"),
                       ("conv_c", "bias is in float"), ("conv_d", "grid of its products")):  # fmt: skip
        assert part in kept[name]
    feeds = {"x": floats(1, 4, 8, 8)}
    for a, b in zip(run(got, feeds), run(model, feeds), strict=True):
        np.testing.assert_array_equal(a, b)


# -- the whole way

IMAGES = RNG.normal(size=(64, 3, 8, 8)).astype(np.float32)


def quantized(model: onnx.ModelProto, folder: Path, **settings: Any) -> tuple[onnx.ModelProto, dict]:
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    batches = [{"x": IMAGES[i : i + 16]} for i in range(0, 64, 16)]
    facts = quantize(folder / "m.onnx", batches, QuantizeSettings(**settings), folder / "q.onnx")
    return onnx.load(folder / "q.onnx"), dict(facts)


@pytest.mark.parametrize(
    "settings", [{}, {"activations": "int8"}, {"per_channel": False}, {"quantize_outputs": True}], ids=str
)
def test_a_model_has_the_bits_of_its_pairs_at_every_level(settings: dict, tiny: ModuleType, tmp_path: Path) -> None:
    pairs, _ = quantized(tiny.conv(), tmp_path, **settings)
    got, facts = quantized(tiny.conv(), tmp_path, format="qoperator", **settings)
    assert not ops(got).keys() & {"Conv", "Gemm"} and ops(got)["QLinearConv"] == 1 and ops(got)["QGemm"] == 1
    assert ops(got)["QuantizeLinear"] == 1 and facts["format"] == "QOPERATOR"
    want = run(pairs, {"x": IMAGES}, LEVELS.ORT_ENABLE_ALL)[0]
    for level in (LEVELS.ORT_DISABLE_ALL, LEVELS.ORT_ENABLE_BASIC, LEVELS.ORT_ENABLE_EXTENDED, LEVELS.ORT_ENABLE_ALL):
        np.testing.assert_array_equal(run(got, {"x": IMAGES}, level)[0], want)
    assert {one.domain for one in got.opset_import} == {"", "com.microsoft"}


def test_a_model_with_pairs_left_tells_why(tiny: ModuleType, tmp_path: Path) -> None:
    """A layer that placement puts on integers and no operator computes is told as float."""
    layers = [{"node": "a", "op": "Conv", "state": "integer", "reason": ""},
              {"node": "b", "op": "Exp", "state": "float", "reason": "it is"}]  # fmt: skip
    told = qoperator.told(layers, {"a": "no operator", "b": "not asked"})  # type: ignore[arg-type]
    assert told == [{**layers[0], "state": "float", "reason": "no operator"}, layers[1]]


@pytest.mark.parametrize("consumer", ["openvino", "integer-only", "tensorrt"])
def test_other_consumers_are_refused(consumer: str, tiny: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="QLinearConv") as caught:
        quantized(tiny.conv(), tmp_path, format="qoperator", consumer=consumer)
    assert caught.value.id == "wrong-consumer" and not (tmp_path / "q.onnx").exists()


@pytest.mark.parametrize("activations", ["int16", "uint16"])
def test_sixteen_bits_are_refused(activations: str, tiny: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="8 bits"):
        quantized(tiny.conv(), tmp_path, format="qoperator", activations=activations)
