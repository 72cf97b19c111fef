"""Transposes join or cancel, and become Reshapes beside Reshapes."""

import itertools

import onnx
import pytest

from rewriting_cases import assert_becomes, assert_stays, floats, model, node

PASS = "merge-transposes"
X = {"x": ("batch", 3, 4, 5)}


def two(first: list[int] | None, second: list[int] | None, inputs: dict = X) -> onnx.ModelProto:
    given = [{} if order is None else {"perm": order} for order in (first, second)]
    nodes = [node("Relu", ["x"], ["a"]), node("Transpose", ["a"], ["b"], **given[0]),
             node("Transpose", ["b"], ["c"], **given[1]), node("Neg", ["c"], ["y"])]  # fmt: skip
    return model(nodes, inputs, ["y"])


@pytest.mark.parametrize("first", list(itertools.permutations(range(3))))
def test_all_pairs_of_three_axes(first: tuple[int, ...]) -> None:
    """Case 1, with the identity among the results."""
    for second in itertools.permutations(range(3)):
        cancels = [first[axis] for axis in second] == [0, 1, 2]
        wanted = ["Relu", "Neg"] if cancels else ["Relu", "Transpose", "Neg"]
        assert_becomes(two([*first], [*second], {"x": ("n", 3, 4)}), PASS, wanted, branch=False)


def test_there_and_back_between_layouts() -> None:
    assert_becomes(two([0, 2, 3, 1], [0, 3, 1, 2]), PASS, ["Relu", "Neg"])


def test_without_an_order_all_axes_are_reversed() -> None:
    assert_becomes(two(None, None), PASS, ["Relu", "Neg"])
    found = assert_becomes(two(None, [0, 1, 3, 2]), PASS, ["Relu", "Transpose", "Neg"])
    assert list(found.proto.graph.node[1].attribute[0].ints) == [3, 2, 0, 1]


def test_two_that_cancel_go_though_others_read_the_first() -> None:
    proto = two([0, 2, 3, 1], [0, 3, 1, 2])
    proto.graph.node.append(node("Abs", ["b"], ["z"]))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("z", 1, ["batch", 4, 5, 3]))
    assert_becomes(proto, PASS, ["Relu", "Transpose", "Neg", "Abs"], branch=False)


def test_two_that_join_stay_where_others_read_the_first() -> None:
    proto = two([0, 2, 3, 1], [0, 1, 3, 2])
    proto.graph.node.append(node("Abs", ["b"], ["z"]))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("z", 1, ["batch", 4, 5, 3]))
    assert_stays(proto, PASS, "the Transpose before it has 2 consumers")


def test_one_that_moves_axes_of_size_one_becomes_a_reshape_beside_a_reshape() -> None:
    """Case 2: after one, and before one."""
    weights = {"s": [0, 1, 12], "t": [0, 12]}
    after = model([node("Reshape", ["x", "s"], ["a"]), node("Transpose", ["a"], ["b"], perm=[0, 2, 1]),
                   node("Neg", ["b"], ["y"])],
                  {"x": ("batch", 3, 4)}, ["y"], weights)  # fmt: skip
    assert_becomes(after, PASS, ["Reshape", "Reshape", "Neg"])
    before = model([node("Relu", ["x"], ["a"]), node("Transpose", ["a"], ["b"], perm=[0, 2, 1]),
                    node("Reshape", ["b", "t"], ["y"])],
                   {"x": ("batch", 1, 12)}, ["y"], weights)  # fmt: skip
    assert_becomes(before, PASS, ["Relu", "Reshape", "Reshape"])


def test_alone_it_stays_a_transpose() -> None:
    proto = model(
        [node("Transpose", ["x"], ["a"], perm=[0, 2, 1]), node("Neg", ["a"], ["y"])], {"x": ("batch", 1, 12)}, ["y"]
    )
    assert_stays(proto, PASS)


def test_axes_of_unknown_size_are_not_taken_for_one() -> None:
    proto = model([node("Transpose", ["x"], ["a"], perm=[1, 0]), node("Reshape", ["a", "s"], ["y"])], {"x": ("n", 4)},
                  ["y"], {"s": [-1]})  # fmt: skip
    assert_stays(proto, PASS)


def test_the_weight_of_a_product_is_no_place_for_it() -> None:
    nodes = [node("Transpose", ["x"], ["a"], perm=[1, 0]), node("MatMul", ["a", "w"], ["y"])]
    assert_stays(model(nodes, {"x": (4, "n")}, ["y"], {"w": floats(0, 4, 2)}), PASS)
