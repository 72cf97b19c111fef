"""Folding BatchNormalization: equal to the reference evaluator where it folds, a reason where it doesn't."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from penstock.passes import PassResult, fold_batchnorm

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


def fold(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, PassResult]:
    model = ir.from_proto(proto)
    result = fold_batchnorm.run(model)
    return ir.to_proto(model), result


def feed(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    info = proto.graph.input[0].type.tensor_type
    shape = [dim.dim_value for dim in info.shape.dim]
    dtype = helper.tensor_dtype_to_np_dtype(info.elem_type)
    return {"x": np.random.default_rng(3).normal(size=shape).astype(dtype)}


def operators(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


def assert_folded(proto: onnx.ModelProto, tolerance: float = 1e-5, reference=ReferenceEvaluator) -> onnx.ModelProto:
    proto = onnx.shape_inference.infer_shapes(proto)  # the checker wants a shape for every output
    folded, result = fold(proto)
    onnx.checker.check_model(folded, full_check=True)
    assert "BatchNormalization" not in operators(folded)
    assert len(result.changes) == operators(proto).count("BatchNormalization")
    assert not result.declined
    assert folded.graph.output == proto.graph.output
    before, after = (reference(model).run(None, feed(proto)) for model in (proto, folded))
    for old, new in zip(before, after, strict=True):
        error = np.abs(old.astype(np.float64) - new.astype(np.float64)).max() / np.abs(old.astype(np.float64)).max()
        assert error <= tolerance
    return folded


class Runtime:
    """ONNX Runtime with the reference evaluator's interface: the latter has no grouped ConvTranspose."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])

    def run(self, names: None, feeds: dict) -> list[np.ndarray]:
        return self.session.run(names, feeds)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("bias", [None, (8,)])
def test_conv(rank: int, group: int, bias: tuple[int, ...] | None) -> None:
    folded = assert_folded(build("Conv", channels=8, group=group, bias=bias, rank=rank), 1e-4, Runtime)
    assert len(folded.graph.node[0].input) == 3


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
    assert {t.data_type for t in folded.graph.initializer} == {DTYPES[dtype]}


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
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in folded.graph.initializer}
    assert (held["w"] == numpy_helper.to_array(proto.graph.initializer[0])).all()
    assert list(folded.graph.node[0].input) == ["x", "mid_folded_weight", "mid_folded_bias"]


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
    model = ir.from_proto(proto)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    result = fold_batchnorm.run(model)
    assert not result.modified
    assert [(item.node, item.reason) for item in result.declined] == [("bn", reason)]
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def replaced(proto: onnx.ModelProto, name: str, array: np.ndarray) -> onnx.ModelProto:
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    return proto


def test_second_reader() -> None:
    proto = build()
    proto.graph.node.append(helper.make_node("Relu", ["mid"], ["z"]))
    proto.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    assert_declined(proto, "its input has 2 consumers")


def test_output_of_conv_handed_out() -> None:
    proto = build()
    proto.graph.output.append(helper.make_tensor_value_info("mid", TensorProto.FLOAT, None))
    assert_declined(proto, "the output of Conv is a graph output")


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


def test_linear_in_another_graph() -> None:
    proto = build()
    inner = proto.graph.node.pop(1)
    inner.output[0] = "t"
    info = helper.make_tensor_value_info("t", TensorProto.FLOAT, None)
    then = helper.make_graph([inner], "then", [], [info])
    other = helper.make_graph([helper.make_node("Relu", ["x"], ["t"])], "else", [], [info])
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "cond"))
    proto.graph.node.append(helper.make_node("If", ["cond"], ["y"], then_branch=then, else_branch=other))
    assert_declined(proto, "Conv is in another graph")
