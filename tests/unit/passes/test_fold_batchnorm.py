"""Folding BatchNormalization: equal to the reference evaluator where it folds, a reason where it doesn't."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from rewriting_cases import Applied, Oracle, Runtime, apply, assert_same, assert_stays, model, operators

DTYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "float64": TensorProto.DOUBLE}


def build(
    linear: str = "Conv", *, channels: int = 4, group: int = 1, bias: tuple[int, ...] | None = None, rank: int = 2,
    dtype: str = "float32", attributes: dict | None = None, batchnorm: dict | None = None, opset: int = 17,
) -> onnx.ModelProto:  # fmt: skip
    rng = np.random.default_rng(7)
    attributes = dict(attributes or {})
    kernel = (3,) * rank
    if linear == "Gemm":
        shape = (channels, 6) if attributes.get("transB") else (6, channels)
        x = (3, 6)
    else:
        incoming = 4
        shape = (channels, incoming // group, *kernel) if linear == "Conv" else (incoming, channels // group, *kernel)
        x = (2, incoming, *(5,) * rank)
        attributes["group"] = group
    weights = {"w": rng.normal(size=shape), "scale": rng.normal(size=channels), "shift": rng.normal(size=channels)}
    weights |= {"mean": rng.normal(size=channels), "var": rng.uniform(0.3, 2, size=channels)}
    if bias is not None:
        weights["b"] = rng.normal(size=bias)
    nodes = [
        helper.make_node(linear, ["x", "w", *(["b"] if "b" in weights else [])], ["mid"], name="linear", **attributes),
        helper.make_node(
            "BatchNormalization", ["mid", "scale", "shift", "mean", "var"], ["y"], name="bn",
            **{"epsilon": 1e-3, **(batchnorm or {})},
        ),
    ]  # fmt: skip
    code = DTYPES[dtype]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", code, x)], [helper.make_tensor_value_info("y", code, None)],
        [numpy_helper.from_array(array.astype(dtype), name) for name, array in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def assert_folded(proto: onnx.ModelProto, tolerance: float = 1e-5, oracle: Oracle = ReferenceEvaluator) -> Applied:
    for value, found in zip(proto.graph.output, onnx.shape_inference.infer_shapes(proto).graph.output, strict=True):
        value.CopyFrom(found)  # the checker wants a shape for every output
    folded = apply(proto, "fold-batchnorm", "remove-unused")
    assert "BatchNormalization" not in folded.operators
    assert folded.turns["fold-batchnorm"].rewrites == operators(proto).count("BatchNormalization")
    assert not folded.declined
    assert_same(proto, folded.proto, tolerance=tolerance, oracle=oracle)
    assert not apply(folded.proto, "fold-batchnorm", "remove-unused").done.trace.events
    return folded


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("bias", [None, (8,)])
def test_conv(rank: int, group: int, bias: tuple[int, ...] | None) -> None:
    folded = assert_folded(build("Conv", channels=8, group=group, bias=bias, rank=rank), 1e-4, Runtime)
    assert len(folded.proto.graph.node[0].input) == 3


@pytest.mark.parametrize("bias", [None, (4,)])
def test_conv_by_the_reference_evaluator(bias: tuple[int, ...] | None) -> None:
    assert_folded(build("Conv", bias=bias))


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("bias", [None, (8,)])
def test_conv_transpose(group: int, bias: tuple[int, ...] | None) -> None:
    assert_folded(build("ConvTranspose", channels=8, group=group, bias=bias), 1e-4, Runtime)


@pytest.mark.parametrize("trans", [0, 1])
@pytest.mark.parametrize("bias", [None, (), (1,), (4,), (1, 4), (3, 4)])
def test_gemm(trans: int, bias: tuple[int, ...] | None) -> None:
    attributes = {"transB": trans, "alpha": 0.5, "beta": 2.0}
    assert_folded(build("Gemm", bias=bias, attributes=attributes))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12), ("float16", 1e-2)])
def test_types(dtype: str, tolerance: float) -> None:
    folded = assert_folded(build(dtype=dtype, bias=(4,)), tolerance)
    assert {t.data_type for t in folded.proto.graph.initializer} == {DTYPES[dtype]}


def test_an_epsilon_that_is_left_out_is_a_float32() -> None:
    """It is all there is where a channel has no variance; in float64 it shows that 1e-5 isn't a float32."""
    proto = build("Gemm", bias=(4,), dtype="float64")
    del proto.graph.node[1].attribute[:]
    next(held for held in proto.graph.initializer if held.name == "var").CopyFrom(
        numpy_helper.from_array(np.zeros(4), "var")
    )
    assert_folded(proto, 1e-12, Runtime)


def test_two_in_a_row() -> None:
    proto = build()
    proto.graph.node[1].output[0] = "between"
    proto.graph.node.append(
        helper.make_node("BatchNormalization", ["between", "scale", "shift", "mean", "var"], ["y"], name="second")
    )
    assert_folded(proto)


def test_shared_weight_is_left_to_its_other_reader() -> None:
    proto = build(bias=(4,))
    proto.graph.node.append(helper.make_node("Conv", ["x", "w", "b"], ["z"], name="other"))
    proto.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    folded = assert_folded(proto)
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in folded.proto.graph.initializer}
    assert (held["w"] == numpy_helper.to_array(proto.graph.initializer[0])).all()
    assert {node.name: list(node.input[1:]) for node in folded.proto.graph.node} == {
        "linear": ["y_const", "y_const_2"], "other": ["w", "b"]
    }  # fmt: skip


def test_readers_inside_a_body_see_the_folded_value() -> None:
    proto = build()
    proto.graph.node[1].output[0] = "normed"
    info = helper.make_tensor_value_info("t", TensorProto.FLOAT, [2, 4, 3, 3])
    branches = {
        name: helper.make_graph([helper.make_node(op, ["normed"], ["t"])], name, [], [info])
        for name, op in (("then_branch", "Relu"), ("else_branch", "Neg"))
    }
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "cond"))
    proto.graph.node.append(helper.make_node("If", ["cond"], ["y"], name="choose", **branches))
    assert_folded(proto, 1e-5, Runtime)


def assert_declined(proto: onnx.ModelProto, reason: str) -> None:
    found = assert_stays(proto, "fold-batchnorm", reason)
    assert [place.node for place in found.declined] == ["bn"]


def replaced(proto: onnx.ModelProto, name: str, array: np.ndarray) -> onnx.ModelProto:
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    return proto


def test_second_reader() -> None:
    proto = build()
    proto.graph.node.append(helper.make_node("Relu", ["mid"], ["z"]))
    proto.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    assert_declined(proto, "the output of Conv has 2 consumers")


def test_output_of_conv_handed_out() -> None:
    proto = build()
    proto.graph.output.append(helper.make_tensor_value_info("mid", TensorProto.FLOAT, None))
    assert_declined(proto, "the output of Conv is an output of its graph")


def test_training_mode() -> None:
    proto = build(batchnorm={"training_mode": 1})
    assert_declined(proto, "training_mode=1: it normalizes by the statistics of the batch")


def test_old_training_default() -> None:
    proto = build(opset=6)
    assert_declined(proto, "is_test=0: it normalizes by the statistics of the batch")


def test_not_spatial() -> None:
    proto = build(opset=8, batchnorm={"spatial": 0})
    assert_declined(proto, "spatial=0: it has statistics for each position, not for each channel")


def test_statistics_returned() -> None:
    proto = build(opset=9)
    proto.graph.node[1].output.extend(["m", "v"])
    assert_declined(proto, "it also returns statistics, so it is in training mode or others read them")


def test_scale_computed() -> None:
    proto = build()
    proto.graph.node[1].input[1] = "computed"
    proto.graph.input.append(helper.make_tensor_value_info("computed", TensorProto.FLOAT, [4]))
    assert_declined(proto, "scale is not constant")


def test_weight_computed() -> None:
    proto = build()
    del proto.graph.initializer[0]
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 4, 3, 3]))
    assert_declined(proto, "the weight of Conv is not constant")


def test_weight_with_default() -> None:
    proto = build()
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 4, 3, 3]))
    assert_declined(proto, "the weight of Conv is an input with a default, which a caller may override")


def test_no_linear_before() -> None:
    proto = build()
    proto.graph.node[0].CopyFrom(helper.make_node("Relu", ["x"], ["mid"]))
    assert_declined(proto, "its input comes from Relu, not from Conv, ConvTranspose or Gemm")


def test_graph_input_before() -> None:
    proto = build()
    proto.graph.node[1].input[0] = "x"
    why = "its input is a graph input or a constant, not the result of a Conv, ConvTranspose or Gemm"
    assert_declined(proto, why)


def test_negative_variance() -> None:
    assert_declined(replaced(build(), "var", np.full(4, -1, np.float32)), "a variance is negative or no number")


def test_overflow_of_float16() -> None:
    proto = replaced(build(dtype="float16"), "var", np.zeros(4, np.float16))
    proto = replaced(proto, "scale", np.full(4, 60000, np.float16))
    assert_declined(proto, "the folded weights overflow FLOAT16")


def test_bias_by_row() -> None:
    why = "the bias of Gemm has shape [3, 1], which isn't one number for each column"
    assert_declined(build("Gemm", bias=(3, 1)), why)


def test_wrong_number_of_channels() -> None:
    proto = build()
    for name in ("scale", "shift", "mean", "var"):
        replaced(proto, name, np.ones(5, np.float32))
    assert_declined(proto, "Conv has 4 output channels for 5")


def in_a_branch() -> onnx.ModelProto:
    proto = build()
    inner = proto.graph.node.pop(1)
    inner.output[0] = "t"
    info = helper.make_tensor_value_info("t", TensorProto.FLOAT, None)
    then = helper.make_graph([inner], "then", [], [info])
    negated = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Neg", ["c"], ["e"])]
    ends = helper.make_tensor_value_info("e", TensorProto.FLOAT, None)
    other = helper.make_graph(negated, "else", [], [ends])
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "cond"))
    proto.graph.node.append(helper.make_node("If", ["cond"], ["y"], then_branch=then, else_branch=other))
    return proto


def test_a_linear_operator_that_one_branch_reads_moves_into_it() -> None:
    assert assert_folded(in_a_branch()).operators == ["If", "Conv", "Neg", "Conv"]


def test_a_linear_operator_outside_a_loop_stays_there() -> None:
    proto = build()
    inner = proto.graph.node.pop(1)
    inner.output[0] = "out"
    info = helper.make_tensor_value_info
    ends = [info("go_on", TensorProto.BOOL, []), info("out", TensorProto.FLOAT, None)]
    starts = [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, [])]
    body = helper.make_graph([helper.make_node("Identity", ["go"], ["go_on"]), inner], "body", starts, ends)
    proto.graph.initializer.append(numpy_helper.from_array(np.array(2), "turns"))
    proto.graph.node.append(helper.make_node("Loop", ["turns", ""], ["y"], body=body))
    assert_declined(proto, "the output of Conv is read in the body of a Loop, at every turn")


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_into_the_conv_after_it(group: int, bias: bool) -> None:
    proto = after("Conv", (6, 4 // group, 3, 3), (2, 4, 5, 5), 4, bias=6 if bias else 0, group=group)
    folded = assert_folded(proto, 1e-4, Runtime)
    assert folded.operators == ["Relu", "Conv"] and folded.proto.graph.node[1].name == "linear"


@pytest.mark.parametrize(("attributes", "shape"), [({}, (4, 6)), ({"transB": 1, "alpha": 0.5, "beta": 2.0}, (6, 4))])
@pytest.mark.parametrize("bias", [False, True])
def test_into_the_gemm_after_it(attributes: dict, shape: tuple[int, ...], bias: bool) -> None:
    proto = after("Gemm", shape, (3, 4), 4, bias=6 if bias else 0, **attributes)
    assert assert_folded(proto, 1e-5).operators == ["Relu", "Gemm"]


def test_into_the_matmul_after_it() -> None:
    assert assert_folded(after("MatMul", (4, 6), (3, 4), 4), 1e-5).operators == ["Relu", "MatMul", "Add"]


@pytest.mark.parametrize("attributes", [{"pads": [1, 1, 1, 1]}, {"auto_pad": "SAME_UPPER"}])
def test_not_into_a_conv_whose_border_would_lack_the_offset(attributes: dict) -> None:
    proto = after("Conv", (6, 4, 3, 3), (2, 4, 5, 5), 4, **attributes)
    assert_declined(proto, "the offset would be missing where the Conv pads")


def test_not_into_a_transposed_input() -> None:
    proto = after("Gemm", (3, 6), (3, 4), 4, transA=1)
    assert_declined(proto, "its input comes from Relu, not from Conv, ConvTranspose or Gemm")


def after(op: str, weight: tuple[int, ...], x: tuple[int, ...], channels: int, bias: int = 0,
          **attributes: object) -> onnx.ModelProto:  # fmt: skip
    """Return x → Relu → BatchNormalization → a linear operator → y."""
    rng = np.random.default_rng(5)
    weights = {name: rng.normal(size=channels) for name in ("scale", "shift", "mean")}
    weights |= {"var": rng.uniform(0.3, 2, size=channels), "w": rng.normal(size=weight)}
    weights |= {"b": rng.normal(size=bias)} if bias else {}
    nodes = [
        helper.make_node("Relu", ["x"], ["mid"]),
        helper.make_node("BatchNormalization", ["mid", "scale", "shift", "mean", "var"], ["normed"], name="bn"),
        helper.make_node(op, ["normed", "w", *(["b"] if bias else [])], ["y"], name="linear", **attributes),
    ]
    held = {name: array.astype(np.float32) for name, array in weights.items()}
    return model(nodes, {"x": x}, ["y"], held, opset=17)


def without_offset(proto: onnx.ModelProto) -> onnx.ModelProto:
    for held in proto.graph.initializer:
        if held.name in ("shift", "mean"):
            held.CopyFrom(numpy_helper.from_array(np.zeros(4, np.float32), held.name))
    return proto


@pytest.mark.parametrize("attributes", [{"pads": [1, 1, 1, 1]}, {"auto_pad": "SAME_LOWER"}])
def test_into_a_conv_that_pads_where_there_is_no_offset(attributes: dict) -> None:
    proto = without_offset(after("Conv", (6, 4, 3, 3), (2, 4, 5, 5), 4, bias=6, **attributes))
    assert assert_folded(proto, 1e-4, Runtime).operators == ["Relu", "Conv"]


def test_into_a_conv_of_one_place_whatever_it_says_of_padding() -> None:
    proto = after("Conv", (6, 4, 1, 1), (2, 4, 5, 5), 4, auto_pad="SAME_UPPER")
    assert assert_folded(proto, 1e-4, Runtime).operators == ["Relu", "Conv"]


@pytest.mark.parametrize("group", [1, 2])
def test_into_a_transposed_conv_where_there_is_no_offset(group: int) -> None:
    attributes = {"group": group, "strides": [2, 2], "pads": [1, 1, 0, 0]}
    proto = after("ConvTranspose", (4, 3, 2, 2), (2, 4, 5, 5), 4, bias=3 * group, **attributes)
    assert_declined(proto, "each place of what a ConvTranspose makes would get another share of the offset")
    assert assert_folded(without_offset(proto), 1e-4, Runtime).operators == ["Relu", "ConvTranspose"]


def behind(*nodes: onnx.NodeProto, channels: int = 6, **weights: np.ndarray) -> onnx.ModelProto:
    """Return x → a MatMul of three axes → nodes from m to u → BatchNormalization → y."""
    rng = np.random.default_rng(6)
    held = {name: rng.normal(size=channels).astype(np.float32) for name in ("scale", "shift", "mean")}
    held |= {"var": rng.uniform(0.3, 2, channels).astype(np.float32), "w": rng.normal(size=(4, 6)).astype(np.float32)}
    first = helper.make_node("MatMul", ["x", "w"], ["m"], name="linear")
    last = helper.make_node("BatchNormalization", ["u", "scale", "shift", "mean", "var"], ["y"], name="bn")
    return model([first, *nodes, last], {"x": (2, 5, 4)}, ["y"], held | weights, opset=17)


TURN = helper.make_node("Transpose", ["m"], ["u"], perm=[0, 2, 1])


def test_into_the_weights_above_a_transpose() -> None:
    assert assert_folded(behind(TURN), 1e-5).operators == ["MatMul", "Add", "Transpose"]
    added = [helper.make_node("Add", ["c", "m"], ["n"]), helper.make_node("Transpose", ["n"], ["u"], perm=[0, 2, 1])]
    bias = np.linspace(-1, 1, 6, dtype=np.float32)
    assert assert_folded(behind(*added, c=bias), 1e-5).operators == ["MatMul", "Add", "Transpose"]
    twice = [helper.make_node("Transpose", ["m"], ["n"], perm=[2, 1, 0]), helper.make_node("Neg", ["n"], ["o"]),
             helper.make_node("Transpose", ["o"], ["u"], perm=[2, 0, 1])]  # fmt: skip
    assert_declined(behind(*twice), "its input comes from Transpose, not from Conv, ConvTranspose or Gemm")


def test_not_above_a_transpose_that_gives_it_another_axis_or_that_others_read() -> None:
    other = helper.make_node("Transpose", ["m"], ["u"], perm=[0, 1, 2])
    assert_declined(behind(other, channels=5), "its input comes from Transpose, not from Conv, ConvTranspose or Gemm")
    shared = behind(TURN)
    shared.graph.output.append(helper.make_tensor_value_info("m", TensorProto.FLOAT, [2, 5, 6]))
    assert_declined(shared, "its input comes from Transpose, not from Conv, ConvTranspose or Gemm")
    wide = [helper.make_node("Add", ["m", "c"], ["n"]), helper.make_node("Transpose", ["n"], ["u"], perm=[0, 2, 1])]
    bias = np.ones((5, 6), np.float32)
    assert_declined(behind(*wide, c=bias), "its input comes from Transpose, not from Conv, ConvTranspose or Gemm")


@pytest.mark.parametrize("shape", [(1, 6, 1, 1), (6, 1, 1), (1,), ()])
@pytest.mark.parametrize("size", [5, 6])
def test_a_constant_between_a_conv_and_it_is_added_along_the_channels(shape: tuple[int, ...], size: int) -> None:
    rng = np.random.default_rng(7)
    held = {name: rng.normal(size=6).astype(np.float32) for name in ("scale", "shift", "mean")}
    held |= {"var": rng.uniform(0.3, 2, 6).astype(np.float32), "w": rng.normal(size=(6, 2, 1, 1)).astype(np.float32)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "c"], ["u"]),
             helper.make_node("BatchNormalization", ["u", "scale", "shift", "mean", "var"], ["y"])]  # fmt: skip
    proto = model(nodes, {"x": (2, 2, size, size)}, ["y"], held | {"c": rng.normal(size=shape).astype(np.float32)})
    assert assert_folded(proto, 1e-5, Runtime).operators == ["Conv", "Add"]


@pytest.mark.parametrize("shape", [(6, 1), (1, 6, 1), (1,)])
def test_a_constant_behind_a_transpose_is_added_along_the_channels(shape: tuple[int, ...]) -> None:
    turned = helper.make_node("Transpose", ["m"], ["n"], perm=[0, 2, 1])
    proto = behind(
        turned,
        helper.make_node("Add", ["n", "c"], ["u"]),
        c=np.random.default_rng(8).normal(size=shape).astype(np.float32),
    )
    assert assert_folded(proto, 1e-5).operators == ["MatMul", "Transpose", "Add"]


@pytest.mark.parametrize(("shape", "result"), [((4,), (3,)), ((4, 4, 5), (4, 4, 5))])
def test_not_into_weights_that_have_other_than_two_axes(shape: tuple[int, ...], result: tuple[int, ...]) -> None:
    proto = after("MatMul", shape, (4 if len(shape) == 3 else 3, 4), 4)
    assert_declined(proto, f"the weight of MatMul has {len(shape)} axes")


def test_digits_that_a_large_mean_would_cost_are_kept() -> None:
    proto = after("Conv", (6, 4, 1, 1), (2, 4, 5, 5), 4)
    for held in proto.graph.initializer:
        if held.name == "mean":
            held.CopyFrom(numpy_helper.from_array(np.full(4, 30000, np.float32), "mean"))
    assert_declined(proto, "what is added first is so large that digits of the sum would be missing")
