"""Nodes that compute the same become one: all at once where they read the same, each later where they come to do so."""

import onnx
import pytest

from rewriting_cases import apply, assert_same, in_branch, model, node, random_feeds

X = {"x": ("batch", 4)}
PASS = "eliminate-common-subexpressions"


def many(*ops: str) -> onnx.ModelProto:
    """Each operator reads x, and the sum of all is handed out."""
    nodes = [node(op, ["x"], [f"v{number}"], name=f"n{number}") for number, op in enumerate(ops)]
    return model([*nodes, node("Sum", [f"v{number}" for number in range(len(ops))], ["y"])], X, ["y"])


def test_the_first_takes_all_others_along_in_one_change() -> None:
    proto = many("Relu", "Abs", "Relu", "Neg", "Relu", "Abs")
    found = apply(proto, PASS)
    assert found.operators == ["Relu", "Abs", "Neg", "Sum"]
    assert [event.what for event in found.done.trace.events] == ["2 nodes are the same as v0", "the same as v1"]
    assert [len(event.removed) for event in found.done.trace.events] == [2, 1]
    assert_same(proto, found.proto)


@pytest.mark.parametrize(("op", "beside"), [("Exp", []), ("Add", ["x"])])
def test_nodes_that_come_to_read_the_same_follow_in_the_same_sweep(op: str, beside: list[str]) -> None:
    """An Add reads x first, whose readers were noted before they came to be the same: they are met one by one."""
    nodes = [node("Relu", ["x"], [f"a{i}"]) for i in range(3)]
    nodes += [node(op, [*beside, f"a{i}"], [f"b{i}"]) for i in range(3)]
    proto = model([*nodes, node("Sum", ["b0", "b1", "b2"], ["y"])], X, ["y"])
    found = apply(proto, PASS)
    assert found.operators == ["Relu", op, "Sum"] and found.done.rounds == 3
    assert len(found.done.trace.events) == (3 if beside else 2)
    assert_same(proto, found.proto)


def test_the_first_may_be_what_a_graph_hands_out() -> None:
    proto = model([*(node("Relu", ["x"], [name]) for name in "yab"), node("Add", ["a", "b"], ["z"])], X, ["y", "z"])
    found = apply(proto, PASS)
    assert found.operators == ["Relu", "Add"]
    assert_same(proto, found.proto)


def test_each_graph_has_its_own() -> None:
    """One in a branch may not take the place of one outside, nor the other way round."""
    nodes = [*(node("Relu", ["x"], [name]) for name in "ab"), node("Add", ["a", "b"], ["y"])]
    proto = in_branch(model(nodes, X, ["y"]))
    (choose,) = proto.graph.node
    outer = [node("Relu", ["x"], ["o"]), choose, node("Relu", ["x"], ["p"]), node("Sum", ["o", "p", "if_y"], ["z"])]
    del proto.graph.node[:]
    proto.graph.node.extend(outer)
    proto.graph.output[0].name = "z"
    found = apply(proto, PASS)
    assert sorted(found.operators) == ["Add", "Constant", "If", "Relu", "Relu", "Sum"]
    assert_same(proto, found.proto, feeds=random_feeds(proto))


def test_zero_is_not_minus_zero() -> None:
    nodes = [node("LeakyRelu", ["x"], ["a"], alpha=0.0), node("LeakyRelu", ["x"], ["b"], alpha=-0.0),
             node("Reciprocal", ["a"], ["c"]), node("Reciprocal", ["b"], ["d"]),
             node("Max", ["c", "d"], ["y"])]  # fmt: skip
    assert apply(model(nodes, X, ["y"]), PASS).operators.count("LeakyRelu") == 2
