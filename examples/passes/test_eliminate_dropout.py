"""Eliminating Dropout: equal to the reference evaluator where it removes, a reason where it doesn't."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from eliminate_dropout import run
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator


def build(*, training: bool | None = None, mask_used: bool = False, last: bool = False) -> onnx.ModelProto:
    """Relu → Dropout → Neg (or the Dropout last), at opset 17."""
    constants = [numpy_helper.from_array(np.float32(0.5), "ratio")]
    inputs = ["mid", "ratio"]
    if training is not None:
        constants.append(numpy_helper.from_array(np.bool_(training), "training"))
        inputs.append("training")
    nodes = [
        helper.make_node("Relu", ["x"], ["mid"]),
        helper.make_node(
            "Dropout", inputs, ["y" if last else "dropped", *(["mask"] if mask_used else [])], name="drop"
        ),
    ]
    if not last:
        nodes.append(helper.make_node("Neg", ["dropped"], ["y"]))
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])]
    if mask_used:
        outputs.append(helper.make_tensor_value_info("mask", TensorProto.BOOL, ["n", 4]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    graph = helper.make_graph(nodes, "g", [x], outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("training", [None, False])
def test_removes_what_does_nothing(training: bool | None) -> None:
    before = build(training=training)
    model = ir.from_proto(before)
    result = run(model)
    after = ir.to_proto(model)
    onnx.checker.check_model(after, full_check=True)
    assert result.changes == ("removed drop",) and not result.declined
    assert [node.op_type for node in after.graph.node] == ["Relu", "Neg"]
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    (want,), (got,) = (ReferenceEvaluator(proto).run(None, {"x": x}) for proto in (before, after))
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"training": True}, "training_mode is true"),
        ({"mask_used": True}, "its mask is used"),
        ({"last": True}, "it hands out a graph output"),
    ],
)
def test_declines_with_a_reason(options: dict[str, bool], reason: str) -> None:
    before = build(**options)
    model = ir.from_proto(before)
    result = run(model)
    assert not result.modified
    assert [(place.node, place.reason) for place in result.declined] == [("drop", reason)]
    assert ir.to_proto(model).graph == ir.to_proto(ir.from_proto(before)).graph
