"""An If whose condition is constant becomes its branch."""

import numpy as np
import onnx
import pytest

from rewriting_cases import apply, assert_becomes, assert_same, assert_stays, floats, in_branch, model, node

PASS = "fold-branches"
X = {"x": ("batch", 4)}


def branch(name: str, nodes: list, weights: dict | None = None) -> onnx.GraphProto:
    shape = onnx.helper.make_tensor_value_info(nodes[-1].output[0], 1, ["batch", 4])
    held = [onnx.numpy_helper.from_array(array, key) for key, array in (weights or {}).items()]
    return onnx.helper.make_graph(nodes, name, [], [shape], held)


def choice(
    condition: object, then: list, other: list, weights: dict | None = None, last: bool = False
) -> onnx.ModelProto:
    one = node("If", ["c"], ["y" if last else "m"], name="if", then_branch=branch("then", then, weights),
               else_branch=branch("else", other))  # fmt: skip
    nodes = [node("Relu", ["x"], ["a"]), one, *([] if last else [node("Exp", ["m"], ["y"])])]
    given = {**X, "c": ("bool", ())} if condition is None else X
    return model(nodes, given, ["y"], {} if condition is None else {"c": np.array(condition)})


THEN = [node("Mul", ["a", "k"], ["t1"], name="times"), node("Neg", ["t1"], ["t2"], name="minus")]
ELSE = [node("Abs", ["a"], ["e1"])]


@pytest.mark.parametrize(("condition", "wanted"), [(True, ["Mul", "Neg"]), ([True], ["Mul", "Neg"]), (False, ["Abs"])])
def test_the_branch_that_is_taken_comes_out(condition: object, wanted: list[str]) -> None:
    """Case 1."""
    proto = choice(condition, THEN, ELSE, {"k": floats(0, 4)})
    found = assert_becomes(proto, PASS, ["Relu", *wanted, "Exp"])
    assert not any(held.g.node for one in found.proto.graph.node for held in one.attribute)
    if wanted == ["Mul", "Neg"]:
        assert [one.name for one in found.proto.graph.node][1:3] == ["times", "minus"]


def test_names_of_the_branch_that_are_taken_outside_are_made_new() -> None:
    """The format lets a body use names of its own that occur elsewhere."""
    proto = choice(True, THEN, [node("Abs", ["a"], ["t1"])], {"k": floats(0, 4)})
    proto.graph.node.append(node("Neg", ["x"], ["t1_2"]))
    proto.graph.node.append(node("Abs", ["t1_2"], ["z"]))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("z", 1, ["batch", 4]))
    found = assert_becomes(proto, PASS, ["Relu", "Mul", "Neg", "Exp", "Neg", "Abs"], branch=False)
    outputs = [name for one in found.proto.graph.node for name in one.output]
    assert len(set(outputs)) == len(outputs)


def test_what_the_branch_hands_out_may_be_of_outside_or_a_constant() -> None:
    """Case 2."""
    proto = choice(True, [node("Identity", ["a"], ["t"])], ELSE)
    assert_becomes(proto, [PASS, "eliminate-noops"], ["Relu", "Exp"])
    held = {"k": floats(0, 1, 4)}
    constant = choice(True, [node("Expand", ["k", "s"], ["t"])], ELSE, {**held, "s": np.array([2, 4])})
    assert_becomes(constant, PASS, ["Expand", "Exp"], feeds={"x": floats(1, 2, 4)}, branch=False)


def test_an_output_of_the_graph_keeps_its_name() -> None:
    found = assert_becomes(choice(False, THEN, ELSE, {"k": floats(0, 4)}, last=True), PASS, ["Relu", "Abs"])
    assert found.proto.graph.node[-1].output == ["y"]


def test_a_condition_that_is_computed_stays() -> None:
    assert_stays(choice(None, THEN, ELSE, {"k": floats(0, 4)}), PASS)


def test_an_if_in_an_if() -> None:
    inner = node(
        "If", ["c"], ["t"], then_branch=branch("in", [node("Neg", ["a"], ["i"])]), else_branch=branch("out", ELSE)
    )
    proto = choice(True, [inner], [node("Exp", ["a"], ["o"])])
    assert_becomes(proto, PASS, ["Relu", "Neg", "Exp"])


def test_the_bodies_of_a_branch_that_came_out_are_rewritten_as_well() -> None:
    deep = [node("Relu", ["a"], ["d1"]), node("Relu", ["d1"], ["d2"]), node("Mul", ["d2", "x"], ["i"])]
    inner = node("If", ["taken"], ["t"], then_branch=branch("in", deep), else_branch=branch("out", ELSE))
    proto = choice(True, [inner], ELSE)
    proto.graph.input.append(onnx.helper.make_tensor_value_info("taken", onnx.TensorProto.BOOL, []))
    found = apply(proto, PASS, "merge-clips")
    assert found.operators == ["Relu", "If", "Abs", "Relu", "Mul", "Exp"], found.operators
    assert_same(proto, found.proto)


def test_bodies_in_the_branch_come_along() -> None:
    inner = in_branch(model([node("Neg", ["x"], ["y"])], X, ["y"]))
    chosen = inner.graph.node[0]
    proto = choice(True, [chosen], ELSE)
    proto.graph.input.append(onnx.helper.make_tensor_value_info("taken", onnx.TensorProto.BOOL, []))
    found = apply(proto, PASS)
    assert found.operators.count("If") == 1 and "Abs" not in found.operators
    assert_same(proto, found.proto)


def test_a_function_stays_as_it_is() -> None:
    imports = [onnx.helper.make_opsetid("", 21)]
    body = [node("Constant", [], ["c"], value=onnx.helper.make_tensor("", onnx.TensorProto.BOOL, [], [True])),
            node("If", ["c"], ["b"], then_branch=branch("t", [node("Neg", ["a"], ["i"])]),
                 else_branch=branch("e", ELSE))]  # fmt: skip
    function = onnx.helper.make_function("own", "F", ["a"], ["b"], body, imports)
    proto = model([node("F", ["x"], ["y"], domain="own")], X, ["y"], functions=[function], imports={"own": 1})
    found = apply(proto, PASS)
    assert found.reasons == ["it lies in a function, which can't hold constants"] and not found.done.trace.events
