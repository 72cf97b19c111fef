"""Functions that aren't inlined: what a call gives as an attribute isn't known there, and another opset isn't ours."""

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from penstock.passes._order import run_unasked
from rewriting_cases import Applied, Oracle, Runtime, apply, floats, model, node

X = {"x": (2, 3, 4)}
KEEPING = [name for name in run_unasked() if name != "inline-functions"]


def given(one: onnx.NodeProto, name: str, kind: int) -> onnx.NodeProto:
    """Let a node take the attribute from the function's call, under the name ``p``."""
    one.attribute.append(onnx.AttributeProto(name=name, ref_attr_name="p", type=kind))
    return one


def called(
    nodes: Sequence[onnx.NodeProto],
    *,
    opset: int = 17,
    own: int = 17,
    rank: int = 3,
    weights: dict | None = None,
    **attributes: object,
) -> onnx.ModelProto:
    """Return a model of opset ``own`` that calls a function of ``opset``; weights go in after x."""
    names = ["X", *(weights or {})]
    function = helper.make_function("my", "F", names, ["Y"], nodes, [helper.make_opsetid("", opset)], [*attributes])
    call = node("F", ["x", *(weights or {})], ["a"], domain="my", **attributes)
    proto = model(
        [call, node("Neg", ["a"], ["y"])], X, ["y"], weights, opset=own, functions=[function], imports={"my": 1}
    )
    del proto.graph.output[:]
    proto.graph.output.append(helper.make_tensor_value_info("y", 1, [None] * rank))
    return proto


def inside(found: Applied) -> list[str]:
    return [one.op_type for function in found.proto.functions for one in function.node]


def check(proto: onnx.ModelProto, names: Sequence[str] = KEEPING, oracle: Oracle = Runtime) -> Applied:
    """Run the passes, and hold the result against the original."""
    found = apply(proto, *names)
    if all(one.version == proto.opset_import[0].version for f in proto.functions for one in f.opset_import):
        onnx.checker.check_model(found.proto)  # it wants one opset
    feeds = {"x": floats(0, 2, 3, 4)}
    want, got = (oracle(one).run(None, feeds) for one in (proto, found.proto))
    np.testing.assert_allclose(got[0], want[0], rtol=1e-6)
    return found


INTS, INT = onnx.AttributeProto.INTS, onnx.AttributeProto.INT


def test_an_order_that_the_call_gives_is_not_the_default() -> None:
    nodes = [given(node("Transpose", ["X"], ["A"]), "perm", INTS), node("Transpose", ["A"], ["Y"], perm=[2, 1, 0])]
    assert inside(check(called(nodes, p=[1, 0, 2]))) == ["Transpose", "Transpose"]
    assert inside(check(called(nodes, p=[1, 0, 2], opset=16), run_unasked())) == ["Transpose", "Transpose"]


@pytest.mark.parametrize(
    ("op", "name", "kind", "value", "inputs"),
    [
        ("Concat", "axis", INT, 1, ["X", "X"]), ("Flatten", "axis", INT, 2, ["X"]), ("Softmax", "axis", INT, 0, ["X"]),
        ("Shape", "end", INT, 1, ["X"]), ("Cast", "to", INT, 11, ["X"]), ("ReduceMean", "axes", INTS, [1], ["X"]),
    ],
)  # fmt: skip
def test_others_neither(op: str, name: str, kind: int, value: object, inputs: list[str]) -> None:
    """Nothing raises either; each is beside operators that ask after it."""
    nodes = [node("Relu", ["X"], ["R"]), given(node(op, inputs, ["A"]), name, kind), node("Cast", ["A"], ["B"], to=1),
             node("Identity", ["B"], ["C"]), node("Relu", ["C"], ["Y"])]  # fmt: skip
    rank = {"Flatten": 2, "Shape": 1}.get(op, 3)
    assert op in inside(check(called(nodes, p=value, rank=rank)))


@pytest.mark.parametrize("opset", [14, 17, 19])
@pytest.mark.parametrize("names", [run_unasked(), KEEPING], ids=["inlined", "kept"])
def test_a_normalization_that_a_call_may_train_keeps_its_statistics(names: list[str], opset: int) -> None:
    weights = {name: np.full(3, value, np.float32) for name, value in zip("sbmv", (1, 0, 0, 1), strict=True)}
    norm = given(node("BatchNormalization", ["X", *weights], ["Y", "rm", "rv"]), "training_mode", INT)
    proto = called([norm], weights=weights, p=1, opset=opset, own=opset)
    check(proto, names)


@pytest.mark.parametrize(("opset", "own"), [(13, 12), (18, 12)])
def test_slices_of_another_opset_stay(opset: int, own: int) -> None:
    nodes = [node("Constant", [], [name], value=onnx.numpy_helper.from_array(np.array([value]), name))
             for name, value in (("s", 0), ("e", 1), ("f", 3), ("a", 1))]  # fmt: skip
    nodes += [node("Slice", ["X", "s", "e", "a"], ["A"]), node("Slice", ["X", "e", "f", "a"], ["B"]),
              node("Concat", ["B", "A"], ["Y"], axis=1)]  # fmt: skip
    found = check(called(nodes, opset=opset, own=own), run_unasked())
    assert inside(found).count("Slice") == 2


@pytest.mark.parametrize(
    ("nodes", "opset", "own"),
    [
        ([node("HardSigmoid", ["X"], ["A"], alpha=1 / 6, beta=0.5), node("Mul", ["X", "A"], ["Y"])], 13, 17),
        ([node("Softplus", ["X"], ["A"]), node("Tanh", ["A"], ["B"]), node("Mul", ["X", "B"], ["Y"])], 16, 18),
    ],
)
def test_no_operator_is_made_that_its_opset_has_not(nodes: list[onnx.NodeProto], opset: int, own: int) -> None:
    found = check(called(nodes, opset=opset, own=own), run_unasked(), ReferenceEvaluator)
    assert inside(found) == [one.op_type for one in nodes]
