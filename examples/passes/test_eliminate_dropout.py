"""Eliminating Dropout: equal to the reference evaluator where it removes, a reason where it doesn't."""

import eliminate_dropout
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from penstock.passes import Declined
from penstock.rewriting.run import Rewritten, rewrite


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


def run(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, Rewritten]:
    """Rewrite with this rule alone."""
    done = rewrite(ir.from_proto(proto), [("eliminate-dropout", eliminate_dropout)], max_rounds=5)
    assert not done.turns[0].failures
    return ir.to_proto(done.model), done


@pytest.mark.parametrize("training", [None, False])
@pytest.mark.parametrize("last", [False, True])
def test_removes_what_does_nothing(training: bool | None, last: bool) -> None:
    before = build(training=training, last=last)
    after, done = run(before)
    onnx.checker.check_model(after, full_check=True)
    assert [event.what for event in done.trace.events] == ["a Dropout in inference"] and done.settled
    assert [node.op_type for node in after.graph.node] == ["Relu", *([] if last else ["Neg"])]
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    (want,), (got,) = (ReferenceEvaluator(proto).run(None, {"x": x}) for proto in (before, after))
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("options", "reason"), [({"training": True}, "training_mode is true"), ({"mask_used": True}, "its mask is used")]
)
def test_declines_with_a_reason(options: dict[str, bool], reason: str) -> None:
    before = build(**options)
    after, done = run(before)
    assert not done.trace.events and list(done.turns[0].declined.values()) == [Declined("drop", reason)]
    assert after.graph.node == before.graph.node and after.graph.initializer == before.graph.initializer


def test_an_input_is_not_handed_out_without_a_node() -> None:
    before = build(last=True)
    before.graph.node[1].input[0] = "x"
    del before.graph.node[0]
    after, done = run(before)
    assert [node.op_type for node in after.graph.node] == ["Dropout"]
    (place,) = done.turns[0].declined.values()
    assert place.reason == "it hands out, as an output of its graph, an input or a constant"
