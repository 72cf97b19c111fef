"""Small graphs at the edges of what the passes may believe: all passes together leave them as ONNX Runtime had them.

Each is a case that a pass once got wrong, or could: an empty batch, a type that an operator's kernel lacks, a size that
is −1 for a reason, a factor that float16 can't hold.
"""

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto as Type
from onnx import helper, numpy_helper

from penstock import registry
from penstock.passes._order import in_order, run_unasked
from penstock.rewriting.run import rewrite

Feeds = dict[str, np.ndarray]
Case = tuple[onnx.ModelProto, Feeds]
CASES: dict[str, Callable[[], Case]] = {}
node = helper.make_node


def case(function: Callable[[], Case]) -> Callable[[], Case]:
    CASES[function.__name__] = function
    return function


def build(
    nodes: list[onnx.NodeProto], inputs: dict[str, tuple], outputs: dict[str, int], weights: Feeds, *, opset: int = 17
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "edge",
        [helper.make_tensor_value_info(name, *described) for name, described in inputs.items()],
        [helper.make_tensor_value_info(name, code, None) for name, code in outputs.items()],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def random(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(dtype)


@case
def batchnorm_after_a_matmul_of_rank_3() -> Case:
    weights = {name: random(4) for name in ("s", "b", "m")} | {"v": abs(random(4)) + 1, "w": random(3, 4)}
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("BatchNormalization", ["a", "s", "b", "m", "v"], ["y"])]
    return build(nodes, {"x": (Type.FLOAT, [2, 4, 3])}, {"y": Type.FLOAT}, weights), {"x": random(2, 4, 3)}


@case
def lp_pool_over_single_elements() -> Case:
    nodes = [node("LpPool", ["x"], ["a"], kernel_shape=[1, 1], p=2), node("Neg", ["a"], ["y"])]
    return build(nodes, {"x": (Type.FLOAT, [1, 2, 3, 3])}, {"y": Type.FLOAT}, {}, opset=13), {"x": random(1, 2, 3, 3)}


@case
def booleans_to_text() -> Case:
    nodes = [node("Cast", ["x"], ["a"], to=Type.FLOAT), node("Cast", ["a"], ["y"], to=Type.STRING)]
    return build(nodes, {"x": (Type.BOOL, [2])}, {"y": Type.STRING}, {}), {"x": np.array([True, False])}


@case
def text_through_reshapes() -> Case:
    nodes = [
        node("Identity", ["x"], ["a"]), node("Reshape", ["a", "s"], ["b"]), node("Reshape", ["b", "t"], ["c"]),
        node("Concat", ["c", "c"], ["y"], axis=0),
    ]  # fmt: skip
    weights = {"s": np.array([1, 2]), "t": np.array([2])}
    return build(nodes, {"x": (Type.STRING, [2])}, {"y": Type.STRING}, weights), {"x": np.array(["b", "a"], object)}


@case
def a_size_made_negative() -> Case:
    nodes = [
        node("Shape", ["x"], ["s"]), node("Mul", ["s", "minus"], ["n"]), node("Equal", ["n", "minus"], ["c"]),
        node("Where", ["c", "p", "q"], ["y"]),
    ]  # fmt: skip
    weights = {"minus": np.array([-1]), "p": np.array([1], np.float32), "q": np.array([2], np.float32)}
    return build(nodes, {"x": (Type.FLOAT, ["N"])}, {"y": Type.FLOAT}, weights), {"x": random(1)}


@case
def an_empty_batch_reshaped() -> Case:
    nodes = [
        node("Shape", ["x"], ["s"]),
        *(node("Gather", ["s", f"i{i}"], [f"d{i}"]) for i in range(3)),
        node("Mul", ["d1", "d2"], ["k"]), node("Concat", ["d0", "k"], ["t"], axis=0),
        node("Reshape", ["x", "t"], ["r"]), node("Relu", ["r"], ["y"]),
    ]  # fmt: skip
    weights = {f"i{i}": np.array([i]) for i in range(3)}
    proto = build(nodes, {"x": (Type.FLOAT, ["B", "H", "W"])}, {"y": Type.FLOAT}, weights)
    return proto, {"x": np.zeros((0, 3, 4), np.float32)}


@case
def an_empty_batch_flattened() -> Case:
    nodes = [node("Flatten", ["x"], ["r"]), node("Unsqueeze", ["r", "a"], ["q"]), node("Relu", ["q"], ["y"])]
    proto = build(nodes, {"x": (Type.FLOAT, ["B", "H", "W"])}, {"y": Type.FLOAT}, {"a": np.array([2])})
    return proto, {"x": np.zeros((0, 3, 4), np.float32)}


def space_to_depth(dtype: type, code: int, opset: int = 17) -> Case:
    places = [(row, column) for row in (0, 1) for column in (0, 1)]
    nodes = [node("Slice", ["x", f"s{r}{c}", "e", "a", "st"], [f"p{r}{c}"]) for r, c in places]
    nodes.append(node("Concat", [f"p{r}{c}" for r, c in places], ["y"], axis=1))
    weights = {"e": np.array([4, 4]), "a": np.array([2, 3]), "st": np.array([2, 2])}
    weights |= {f"s{r}{c}": np.array([r, c]) for r, c in places}
    proto = build(nodes, {"x": (code, [1, 1, 4, 4])}, {"y": code}, weights, opset=opset)
    return proto, {"x": np.arange(16).reshape(1, 1, 4, 4).astype(dtype)}


for _dtype, _code in (
    (np.int32, Type.INT32), (np.int64, Type.INT64), (np.float16, Type.FLOAT16), (np.uint8, Type.UINT8),
    (np.int8, Type.INT8), (np.bool_, Type.BOOL),
):  # fmt: skip
    CASES[f"space_to_depth_{_dtype.__name__}"] = lambda dtype=_dtype, code=_code: space_to_depth(dtype, code)
CASES["space_to_depth_uint8_opset_11"] = lambda: space_to_depth(np.uint8, Type.UINT8, 11)


@case
def clips_of_doubles_before_opset_12() -> Case:
    nodes = [node("Max", ["x", "a"], ["m"]), node("Min", ["m", "b"], ["y"])]
    proto = build(
        nodes, {"x": (Type.DOUBLE, [3])}, {"y": Type.DOUBLE}, {"a": np.array(-1.0), "b": np.array(1.0)}, opset=10
    )
    return proto, {"x": np.array([-3, 0.5, 3.0])}


@case
def one_lstm_twice_with_other_outputs() -> Case:
    nodes = [
        node("LSTM", ["x", "w", "r"], ["Y", "", "C"], hidden_size=2),
        node("LSTM", ["x", "w", "r"], ["", "H", "D"], hidden_size=2),
        node("Relu", ["Y"], ["y1"]), node("Relu", ["H"], ["y2"]), node("Add", ["C", "D"], ["y3"]),
    ]  # fmt: skip
    outputs = dict.fromkeys(("y1", "y2", "y3"), Type.FLOAT)
    weights = {"w": random(1, 8, 3), "r": random(1, 8, 2)}
    return build(nodes, {"x": (Type.FLOAT, [4, 1, 3])}, outputs, weights), {"x": random(4, 1, 3)}


@case
def a_dilated_pool_of_a_padded_value() -> Case:
    nodes = [
        node("Relu", ["x"], ["r"]), node("Pad", ["r", "p"], ["a"]),
        node("MaxPool", ["a"], ["y"], kernel_shape=[2, 2], dilations=[2, 2]),
    ]  # fmt: skip
    proto = build(
        nodes, {"x": (Type.FLOAT, [1, 1, 1, 1])}, {"y": Type.FLOAT}, {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    )
    return proto, {"x": random(1, 1, 1, 1)}


@case
def a_factor_that_float16_loses_in_the_weights() -> Case:
    weights = {"w": random(2, 8, 1, 1, dtype=np.float16) * np.float16(0.01), "c": np.array(1e-5, np.float16)}
    nodes = [node("Conv", ["x", "w"], ["a"]), node("Mul", ["a", "c"], ["y"])]
    proto = build(nodes, {"x": (Type.FLOAT16, [1, 8, 4, 4])}, {"y": Type.FLOAT16}, weights)
    return proto, {"x": abs(random(1, 8, 4, 4)).astype(np.float16) * np.float16(3000)}


@case
def integers_divided_below_zero() -> Case:
    nodes = [
        node("Div", ["a", "b"], ["c"]), node("Mod", ["a", "b"], ["d"]),
        node("Add", ["c", "x"], ["y"]), node("Add", ["d", "x"], ["z"]),
    ]  # fmt: skip
    weights = {"a": np.array([[-7, 7], [-8, 5]]), "b": np.array([[2, -2], [3, -3]])}
    proto = build(nodes, {"x": (Type.INT64, [2, 2])}, {"y": Type.INT64, "z": Type.INT64}, weights)
    return proto, {"x": np.zeros((2, 2), np.int64)}


@case
def a_matmul_of_no_rows_before_opset_9() -> Case:
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Add", ["a", "b"], ["y"])]
    weights = {"w": np.ones((3, 2)), "b": np.ones(2)}
    return build(nodes, {"x": (Type.DOUBLE, ["B", 3])}, {"y": Type.DOUBLE}, weights, opset=8), {"x": np.ones((0, 3))}


def constant_softmax(op: str, opset: int) -> Case:
    nodes = [node(op, ["c"], ["s"], axis=1), node("Add", ["s", "x"], ["y"])]
    proto = build(nodes, {"x": (Type.FLOAT, [2, 3, 4])}, {"y": Type.FLOAT}, {"c": random(2, 3, 4)}, opset=opset)
    return proto, {"x": random(2, 3, 4)}


for _op, _opset in (("Softmax", 11), ("LogSoftmax", 9), ("Hardmax", 7), ("Softmax", 13)):
    CASES[f"{_op}_of_a_constant_in_opset_{_opset}"] = lambda op=_op, opset=_opset: constant_softmax(op, opset)


@case
def roi_align_of_constants_before_opset_16() -> Case:
    weights = {"c": random(1, 1, 6, 6), "r": np.array([[0, 0, 3, 3]], np.float32), "i": np.array([0])}
    nodes = [node("RoiAlign", ["c", "r", "i"], ["a"], output_height=2, output_width=2), node("Add", ["a", "x"], ["y"])]
    return build(nodes, {"x": (Type.FLOAT, [1, 1, 2, 2])}, {"y": Type.FLOAT}, weights, opset=10), {
        "x": random(1, 1, 2, 2)
    }


@case
def bounds_at_the_wrong_infinity() -> Case:
    nodes = [
        node("Max", ["x", "i"], ["a"]), node("Relu", ["a"], ["y"]),
        node("Min", ["x", "j"], ["b"]), node("Clip", ["b", "j"], ["z"]),
    ]  # fmt: skip
    weights = {"i": np.array(np.inf, np.float32), "j": np.array(-np.inf, np.float32)}
    return build(nodes, {"x": (Type.FLOAT, [4])}, {"y": Type.FLOAT, "z": Type.FLOAT}, weights), {"x": random(4)}


@case
def a_batchnorm_in_training_whose_statistics_nobody_reads() -> Case:
    weights = {name: random(3) for name in ("s", "b", "m")} | {"v": abs(random(3)) + 1}
    nodes = [
        node("BatchNormalization", ["x", "s", "b", "m", "v"], ["a", "rm", "rv"], training_mode=1),
        node("Neg", ["a"], ["y"]),
    ]  # fmt: skip
    return build(nodes, {"x": (Type.FLOAT, [4, 3, 2])}, {"y": Type.FLOAT}, weights, opset=15), {"x": random(4, 3, 2)}


@case
def a_batchnorm_of_each_place_between_transposes() -> Case:
    weights = {name: random(3, 2, 4) for name in ("s", "b", "m")} | {"v": abs(random(3, 2, 4)) + 1}
    nodes = [
        node("Transpose", ["x"], ["a"], perm=[0, 3, 1, 2]),
        node("BatchNormalization", ["a", "s", "b", "m", "v"], ["c"], spatial=0),
        node("Transpose", ["c"], ["y"], perm=[0, 2, 3, 1]),
    ]  # fmt: skip
    proto = build(nodes, {"x": (Type.FLOAT, [2, 2, 4, 3])}, {"y": Type.FLOAT}, weights, opset=8)
    return proto, {"x": random(2, 2, 4, 3)}


def outputs(proto: onnx.ModelProto, feeds: Feeds) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


@pytest.mark.parametrize("name", CASES)
def test_all_passes_together(name: str) -> None:
    proto, feeds = CASES[name]()
    passes = in_order({each: registry.load("passes", each) for each in run_unasked()})
    done = rewrite(ir.from_proto(proto), passes, max_rounds=20)
    assert not [turn.failures for turn in done.turns if turn.failures]
    for was, now in zip(outputs(proto, feeds), outputs(ir.to_proto(done.model), feeds), strict=True):
        assert (was.dtype, was.shape) == (now.dtype, now.shape)
        if was.dtype.kind == "f":
            tolerance = 1e-2 if was.dtype == np.float16 else 1e-5
            assert np.allclose(was.astype(float), now.astype(float), rtol=tolerance, atol=1e-7)
        else:
            assert np.array_equal(was, now)
