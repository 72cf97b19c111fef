"""Nodes that do nothing go; nodes that look like it stay."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from rewriting_cases import apply, assert_becomes, assert_stays, floats, model, node

X = {"x": ("batch", 3, 4)}
PASS = "eliminate-noops"


def between(*nodes: onnx.NodeProto, weights: dict | None = None, inputs: dict | None = None, opset: int = 21,
            more: tuple[str, ...] = ()) -> onnx.ModelProto:  # fmt: skip
    """Relu → the nodes, from m to n → Neg."""
    held = [node("Relu", ["x"], ["m"]), *nodes, node("Neg", ["n"], ["y"])]
    return model(held, {**X, **(inputs or {})}, ["y", *more], weights, opset=opset)


NOTHING = {
    "1 Identity": (node("Identity", ["m"], ["n"]), {}),
    "1 Dropout": (node("Dropout", ["m"], ["n"]), {}),
    "1 Dropout with a ratio": (node("Dropout", ["m", "r"], ["n"]), {"r": 0.5}),
    "1 Dropout not in training": (node("Dropout", ["m", "r", "t"], ["n"]), {"r": 0.5, "t": np.array(False)}),
    "1 Cast": (node("Cast", ["m"], ["n"], to=TensorProto.FLOAT), {}),
    "1 CastLike": (node("CastLike", ["m", "w"], ["n"]), {"w": 1.0}),
    "2 Reshape": (node("Reshape", ["m", "s"], ["n"]), {"s": [-1, 3, 4]}),
    "2 Reshape that copies": (node("Reshape", ["m", "s"], ["n"]), {"s": [0, 0, 0]}),
    "2 Expand": (node("Expand", ["m", "s"], ["n"]), {"s": [1, 3, 4]}),
    "2 Tile": (node("Tile", ["m", "s"], ["n"]), {"s": [1, 1, 1]}),
    "2 Slice": (node("Slice", ["m", "s", "e", "a"], ["n"]), {"s": [0, -4], "e": [2**62, 9], "a": [0, 2]}),
    "3 Transpose": (node("Transpose", ["m"], ["n"], perm=[0, 1, 2]), {}),
    "3 Pad": (node("Pad", ["m", "p"], ["n"]), {"p": [0] * 6}),
    "3 Concat": (node("Concat", ["m"], ["n"], axis=1), {}),
    "3 Sum": (node("Sum", ["m"], ["n"]), {}),
    "3 Max": (node("Max", ["m"], ["n"]), {}),
    "3 Split": (node("Split", ["m"], ["n"], axis=1, num_outputs=1), {}),
    "4 Add": (node("Add", ["m", "z"], ["n"]), {"z": [[0.0] * 4]}),
    "4 Add before": (node("Add", ["z", "m"], ["n"]), {"z": 0.0}),
    "4 Sub": (node("Sub", ["m", "z"], ["n"]), {"z": 0.0}),
    "4 Mul": (node("Mul", ["k", "m"], ["n"]), {"k": [1.0]}),
    "4 Div": (node("Div", ["m", "k"], ["n"]), {"k": 1.0}),
    "4 Pow": (node("Pow", ["m", "k"], ["n"]), {"k": 1.0}),
    "6 Where": (node("Where", ["c", "m", "w"], ["n"]), {"c": np.ones((1, 4), bool), "w": floats(0, 3, 4)}),
    "6 Where not": (node("Where", ["c", "w", "m"], ["n"]), {"c": np.array(False), "w": floats(0, 3, 4)}),
}


@pytest.mark.parametrize("case", NOTHING)
def test_what_does_nothing_goes(case: str) -> None:
    nothing, weights = NOTHING[case]
    assert_becomes(between(nothing, weights=weights), PASS, ["Relu", "Neg"])


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_a_pool_that_looks_at_one_place(op: str) -> None:
    """Case 5."""

    def pool(**attributes: object) -> onnx.ModelProto:
        held = [node("Relu", ["x"], ["m"]), node(op, ["m"], ["n"], **attributes), node("Neg", ["n"], ["y"])]
        return model(held, {"x": ("batch", 3, 6, 6)}, ["y"])

    assert_becomes(pool(kernel_shape=[1, 1]), PASS, ["Relu", "Neg"])
    assert_stays(pool(kernel_shape=[1, 1], strides=[2, 2]), PASS)
    assert_stays(pool(kernel_shape=[3, 3], pads=[1, 1, 1, 1]), PASS)


def test_flatten_squeeze_and_unsqueeze_of_the_same_shape() -> None:
    flat = model([node("Relu", ["x"], ["m"]), node("Flatten", ["m"], ["n"]), node("Neg", ["n"], ["y"])],
                 {"x": ("batch", 4)}, ["y"])  # fmt: skip
    assert_becomes(flat, PASS, ["Relu", "Neg"])
    assert_becomes(
        between(node("Squeeze", ["m", "a"], ["n"]), weights={"a": np.zeros(0, np.int64)}), PASS, ["Relu", "Neg"]
    )


STAYS = {
    "Cast to another type": (node("Cast", ["m"], ["n"], to=TensorProto.DOUBLE), {}),
    "a reversed axis": (node("Slice", ["m", "s", "e", "a", "t"], ["n"]), {"s": [-1], "e": [-99], "a": [2], "t": [-1]}),
    "Slice of a part": (node("Slice", ["m", "s", "e", "a"], ["n"]), {"s": [0], "e": [3], "a": [2]}),
    "Slice of an axis of unknown size": (node("Slice", ["m", "s", "e", "a"], ["n"]), {"s": [0], "e": [2], "a": [0]}),
    "Reshape that moves": (node("Reshape", ["m", "s"], ["n"]), {"s": [-1, 4, 3]}),
    "Transpose that moves": (node("Transpose", ["m"], ["n"], perm=[0, 2, 1]), {}),
    "Pad": (node("Pad", ["m", "p"], ["n"]), {"p": [0, 0, 0, 0, 0, 1]}),
    "Concat of two": (node("Concat", ["m", "m"], ["n"], axis=1), {}),
    "Add that enlarges": (node("Add", ["m", "z"], ["n"]), {"z": np.zeros((2, 1, 3, 4), np.float32)}),
    "Add that may enlarge": (node("Add", ["m", "z"], ["n"]), {"z": np.zeros((7, 3, 4), np.float32)}),
    "0 − m": (node("Sub", ["z", "m"], ["n"]), {"z": 0.0}),
    "1 / m": (node("Div", ["k", "m"], ["n"]), {"k": 1.0}),
    "1 ** m": (node("Pow", ["k", "m"], ["n"]), {"k": 1.0}),
    "not all ones": (node("Mul", ["m", "k"], ["n"]), {"k": [1.0, 1.0, 1.0, 2.0]}),
    "Where of both": (node("Where", ["c", "m", "w"], ["n"]), {"c": np.array([True, False, True, True]), "w": 0.0}),
    "Where that enlarges": (node("Where", ["c", "m", "w"], ["n"]), {"c": np.array(True), "w": floats(0, 2, 1, 3, 4)}),
    "Tile": (node("Tile", ["m", "s"], ["n"]), {"s": [1, 2, 1]}),
}


@pytest.mark.parametrize("case", STAYS)
def test_what_does_something_stays(case: str) -> None:
    something, weights = STAYS[case]
    assert_stays(between(something, weights=weights), PASS)


def test_training_stays() -> None:
    dropout = node("Dropout", ["m", "r", "t"], ["n"])
    weights = {"r": 0.5, "t": np.array(True)}
    assert_stays(between(dropout, weights=weights), PASS, "training_mode is true")
    open_ = between(dropout, weights={"r": 0.5}, inputs={"t": ("bool", ())})
    assert_stays(open_, PASS, "training_mode is not constant")
    default = between(dropout, weights=weights, inputs={"t": ("bool", ())})
    assert_stays(default, PASS, "training_mode is not constant")
    assert_stays(between(node("Dropout", ["m"], ["n"]), opset=6), PASS)


def test_a_mask_that_is_read_keeps_its_dropout() -> None:
    proto = between(node("Dropout", ["m"], ["n", "mask"]), more=("mask",))
    assert_stays(proto, PASS, "its second output is used")


def test_a_default_that_a_caller_may_override_is_no_constant() -> None:
    assert_stays(between(node("Add", ["m", "z"], ["n"]), weights={"z": 0.0}, inputs={"z": ()}), PASS)


def test_an_input_is_handed_out_by_a_node() -> None:
    proto = model([node("Identity", ["x"], ["y"])], X, ["y"])
    assert_stays(proto, PASS, "it hands out, as an output of its graph, an input or a constant")
    twice = model([node("Relu", ["x"], ["y"]), node("Identity", ["y"], ["z"])], X, ["y", "z"])
    assert_stays(twice, PASS, "its input is an output of its graph too")


def test_minus_zero_becomes_zero() -> None:
    """Adding 0 turns −0 into 0, which are equal: case 4 says so."""
    proto = model(
        [node("Neg", ["x"], ["m"]), node("Add", ["m", "z"], ["n"]), node("Abs", ["n"], ["y"])], X, ["y"], {"z": 0.0}
    )
    assert_becomes(proto, PASS, ["Neg", "Abs"], feeds={"x": np.zeros((2, 3, 4), np.float32)})


def test_a_whole_chain_of_them_goes() -> None:
    chain = [node("Identity", ["m"], ["a"]), node("Dropout", ["a"], ["b"]), node("Mul", ["b", "k"], ["c"]),
             node("Identity", ["c"], ["n"])]  # fmt: skip
    assert_becomes(between(*chain, weights={"k": 1.0}), PASS, ["Relu", "Neg"])


def test_the_first_output_of_a_loop_body_keeps_its_node() -> None:
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Identity", ["go"], ["on"]), node("Identity", ["s"], ["a"]), node("Relu", ["a"], ["t"])], "body",
        [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), info("s", 1, ["batch", 3, 4])],
        [info("on", TensorProto.BOOL, []), info("t", 1, ["batch", 3, 4])],
    )  # fmt: skip
    proto = model([node("Loop", ["n", "", "x"], ["y"], body=body)], X, ["y"], {"n": 2})
    found = apply(proto, PASS)
    assert found.operators == ["Loop", "Identity", "Relu"]


@pytest.mark.parametrize("opset", [11, 17, 18, 23])
@pytest.mark.parametrize("read", ["a", "b"])
def test_a_split_into_parts_is_no_noop_though_one_part_alone_is_read(opset: int, read: str) -> None:
    """It says no sizes, so it has one input; the parts are of equal size."""
    attributes = {"axis": 1} | ({"num_outputs": 2} if opset >= 18 else {})
    nodes = [node("Split", ["x"], ["a", "b"], **attributes), node("Relu", [read], ["y"])]
    assert_stays(model(nodes, {"x": (2, 6)}, ["y"], opset=opset), PASS)
    whole = node("Split", ["x"], ["a"], **{**attributes, **({"num_outputs": 1} if opset >= 18 else {})})
    found = apply(model([whole, node("Relu", ["a"], ["y"])], {"x": (2, 6)}, ["y"], opset=opset), PASS)
    assert found.operators == ["Relu"]
