"""What depends on constants alone is computed, and never makes the file larger."""

import numpy as np
import onnx
import pytest

from penstock.passes.fold_constants import SMALL
from rewriting_cases import Runtime, apply, assert_becomes, assert_stays, floats, in_branch, model, node

PASS = "fold-constants"
X = {"x": ("batch", 4)}


def with_x(*nodes: onnx.NodeProto, weights: dict, opset: int = 21) -> onnx.ModelProto:
    """The nodes end in k; x + k is the result."""
    return model([*nodes, node("Add", ["x", "k"], ["y"])], X, ["y"], weights, opset=opset)


CASES = {
    "arithmetic": (
        [node("Mul", ["a", "b"], ["m"]), node("Sub", ["m", "a"], ["k"])],
        {"a": floats(0, 4), "b": floats(1, 4)},
    ),
    "shapes": (
        [node("Transpose", ["a"], ["t"]), node("Slice", ["t", "s", "e"], ["k"])],
        {"a": floats(0, 4, 2), "s": [0], "e": [1]},
    ),
    "a product": ([node("MatMul", ["a", "b"], ["k"])], {"a": floats(0, 3), "b": floats(1, 3, 4)}),
    "whole numbers": ([node("Add", ["a", "a"], ["s"]), node("Cast", ["s"], ["k"], to=1)], {"a": np.arange(4)}),
    "a choice": (
        [node("Where", ["c", "a", "b"], ["k"])],
        {"c": np.array([True, False, True, True]), "a": 1.0, "b": floats(0, 4)},
    ),
    "half precision": ([node("Cast", ["a"], ["h"], to=10), node("Cast", ["h"], ["k"], to=1)], {"a": floats(0, 4)}),
    "a reduction": ([node("ReduceMean", ["a", "n"], ["k"], keepdims=0)], {"a": floats(0, 3, 4), "n": [0]}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_chain_of_constants_is_one(case: str) -> None:
    """Case 1."""
    nodes, weights = CASES[case]
    assert_becomes(with_x(*nodes, weights=weights), PASS, ["Add"], tolerance=1e-6)


def test_a_node_with_several_outputs() -> None:
    nodes = [
        node("Split", ["a"], ["p", "q"], num_outputs=2, axis=0),
        node("Add", ["x", "p"], ["s"]),
        node("Mul", ["s", "q"], ["y"]),
    ]
    assert_becomes(model(nodes, X, ["y"], {"a": floats(0, 2, 4)}), PASS, ["Add", "Mul"])


def test_a_scalar_stays_a_scalar() -> None:
    proto = model([node("Add", ["i", "i"], ["j"]), node("Gather", ["x", "j"], ["y"], axis=1)], X, ["y"], {"i": 1})
    found = assert_becomes(proto, PASS, ["Gather"])
    assert found.weight(found.proto.graph.node[0].input[1]).shape == ()


def test_numbers_that_are_none_are_kept() -> None:
    proto = with_x(node("Log", ["a"], ["k"]), weights={"a": np.array([-1, 0, 1, np.inf], np.float32)})
    found = assert_becomes(proto, PASS, ["Add"], oracle=Runtime, branch=False)
    assert np.isnan(found.weight(found.proto.graph.node[0].input[1])[0])


def large(op: str) -> onnx.ModelProto:
    wanted = [SMALL, 4]
    made = {"Expand": (["a", "s"], {"a": floats(0, 1, 4), "s": wanted}),
            "Tile": (["a", "s"], {"a": floats(0, 1, 4), "s": [SMALL, 1]}),
            "ConstantOfShape": (["s"], {"s": wanted})}[op]  # fmt: skip
    return model([node(op, made[0], ["k"], name="large"), node("ReduceSum", ["k"], ["t"], keepdims=0),
                  node("Add", ["x", "t"], ["y"])],
                 X, ["y"], made[1])  # fmt: skip


@pytest.mark.parametrize("op", ["Expand", "Tile", "ConstantOfShape"])
def test_much_out_of_little_stays(op: str) -> None:
    """Case 2."""
    going = {"Expand": 32, "Tile": 32, "ConstantOfShape": 16}[op]
    assert_stays(large(op), PASS, f"its result has {SMALL * 16:,} bytes, {going} would go: the file would grow")


def test_a_range_of_many_stays_and_of_few_goes() -> None:
    def ranged(limit: int) -> onnx.ModelProto:
        nodes = [node("Range", ["a", "b", "c"], ["r"]), node("ReduceSum", ["r"], ["t"], keepdims=0),
                 node("Cast", ["t"], ["k"], to=1),
                 node("Add", ["x", "k"], ["y"])]  # fmt: skip
        return model(nodes, X, ["y"], {"a": 0, "b": limit, "c": 1})

    assert_becomes(ranged(10), PASS, ["Add"])
    found = assert_stays(ranged(100_000), PASS, _only(ranged(100_000)))
    assert "Range" in found.operators


def _only(proto: onnx.ModelProto) -> str:
    (reason,) = apply(proto, PASS).reasons
    assert "would grow" in reason or "isn't known" in reason
    return reason


def test_a_large_weight_that_goes_makes_room() -> None:
    proto = model(
        [node("Transpose", ["w"], ["t"]), node("MatMul", ["x", "t"], ["y"])], X, ["y"], {"w": floats(0, 2000, 4)}
    )
    assert_becomes(proto, PASS, ["MatMul"])


def test_a_large_weight_that_others_read_stays() -> None:
    nodes = [node("Transpose", ["w"], ["t"]), node("MatMul", ["x", "t"], ["y"]), node("MatMul", ["y", "w"], ["z"])]
    proto = model(nodes, X, ["z"], {"w": floats(0, 2000, 4)})
    assert_stays(proto, PASS, "its result has 32,000 bytes, 0 would go: the file would grow")


def test_quantization_and_chance_stay() -> None:
    """Case 3."""
    weights = {"a": floats(0, 4), "s": np.float32(0.1), "z": np.int8(0), "q": np.arange(4).astype(np.int8)}
    assert_stays(with_x(node("DequantizeLinear", ["q", "s", "z"], ["k"]), weights=weights), PASS)
    two = [node("QuantizeLinear", ["a", "s", "z"], ["b"]), node("DequantizeLinear", ["b", "s", "z"], ["k"])]
    assert_stays(with_x(*two, weights=weights), PASS)
    assert_stays(with_x(node("RandomNormalLike", ["a"], ["k"]), weights=weights), PASS)
    assert_stays(with_x(node("Bernoulli", ["a"], ["k"]), weights={"a": np.full(4, 0.5, np.float32)}), PASS)


def test_what_the_reference_does_not_compute_stays() -> None:
    proto = with_x(node("Reshape", ["a", "s"], ["k"]), weights={"a": floats(0, 4), "s": [3, 1]})
    (reason,) = [place for place in _reasons(proto) if place]
    assert reason.startswith("it can't be computed here")


def _reasons(proto: onnx.ModelProto) -> list[str]:
    found = apply(proto, PASS)
    assert not found.done.trace.events
    return found.reasons


def test_an_operator_of_another_domain_stays() -> None:
    custom = node("Stretch", ["a"], ["k"], domain="own")
    proto = model([custom, node("Add", ["x", "k"], ["y"])], X, ["y"], {"a": floats(0, 4)}, imports={"own": 1})
    assert_stays(proto, PASS)


def test_an_input_with_a_default_is_no_constant() -> None:
    proto = model(
        [node("Neg", ["a"], ["k"]), node("Add", ["x", "k"], ["y"])], {**X, "a": (4,)}, ["y"], {"a": floats(0, 4)}
    )
    assert_stays(proto, PASS)


def test_an_output_keeps_its_node() -> None:
    proto = model([node("Neg", ["a"], ["y"])], X, ["y"], {"a": floats(0, 4)})
    assert_stays(proto, PASS, "it hands out, as an output of its graph, an input or a constant")


def test_constants_of_a_graph_outside_are_constants_in_a_body() -> None:
    inner = model([node("Neg", ["a"], ["k"]), node("Add", ["x", "k"], ["y"])], X, ["y"], {"a": floats(0, 4)})
    outer = in_branch(inner)
    branch = next(held.g for held in outer.graph.node[0].attribute if held.name == "then_branch")
    outer.graph.initializer.extend(branch.initializer)
    del branch.initializer[:]
    assert_becomes(outer, PASS, ["If", "Constant", "Add"], branch=False)


@pytest.mark.parametrize("opset", [8, 11, 13, 18, 21])
def test_old_forms_of_operators(opset: int) -> None:
    axes = {"axes": [0]} if opset < 13 else {}
    inputs = ["a"] if opset < 13 else ["a", "n"]
    weights = {"a": floats(0, 1, 4), **({} if opset < 13 else {"n": [0]})}
    proto = with_x(node("Squeeze", inputs, ["k"], **axes), weights=weights, opset=opset)
    assert_becomes(proto, PASS, ["Add"], branch=opset >= 13)
