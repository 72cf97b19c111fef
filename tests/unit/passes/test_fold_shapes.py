"""Shapes that are known before a run become constants."""

import numpy as np
import onnx
import pytest

from penstock.passes.fold_shapes import as_numbers
from penstock.rewriting import Refusal
from penstock.rewriting.sizes import Product
from rewriting_cases import Runtime, apply, assert_becomes, assert_same, assert_stays, model, node

PASS = "fold-shapes"
X = {"x": ("batch", 3, 4)}


def shaped(
    *nodes: onnx.NodeProto, weights: dict | None = None, inputs: dict = X, last: str = "Reshape", opset: int = 21
) -> onnx.ModelProto:
    """Compute ``wanted`` out of the shape of x, and use it."""
    held = [node("Relu", ["x"], ["a"]), *nodes, node(last, ["a", "wanted"], ["b"]), node("Neg", ["b"], ["y"])]
    return model(held, inputs, ["y"], {"zero": [0], "one": [1], "minus": [-1], **(weights or {})}, opset=opset)


GATHERED = node("Shape", ["z"], ["s"]), node("Gather", ["s", "zero"], ["n"])


def test_the_chain_that_flattens() -> None:
    """Case 2: Shape → Gather → Concat → Reshape, with the batch unknown."""
    proto = shaped(
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["n"]),
        node("Concat", ["n", "minus"], ["wanted"], axis=0),
    )
    found = assert_becomes(proto, PASS, ["Relu", "Reshape", "Neg"])
    assert found.weight(found.proto.graph.node[1].input[1]).tolist() in ([0, -1], [0, 12])


def test_scalars_and_slices() -> None:
    nodes = [
        node("Shape", ["a"], ["s"]), node("Gather", ["s", "i"], ["n"]), node("Unsqueeze", ["n", "zero"], ["n1"]),
        node("Slice", ["s", "one", "end"], ["rest"]), node("ReduceProd", ["rest"], ["p"], keepdims=1),
        node("Concat", ["n1", "p"], ["wanted"], axis=0),
    ]  # fmt: skip
    proto = shaped(*nodes, weights={"i": 0, "end": [2**62]})
    assert_becomes(proto, PASS, ["Relu", "Reshape", "Neg"])


def test_a_scalar_becomes_a_constant_without_axes() -> None:
    """Gather by a number takes the axis away, by a list of one number it doesn't: case 1 has to tell them apart."""
    nodes = [node("Shape", ["x"], ["s"]), node("Gather", ["s", "two"], ["n"]), node("Sub", ["n", "k"], ["i"]),
             node("Gather", ["x", "i"], ["y"], axis=1)]  # fmt: skip
    proto = model(nodes, X, ["y"], {"two": 2, "k": 3})
    found = assert_becomes(proto, PASS, ["Gather"])
    assert found.weight(found.proto.graph.node[0].input[1]).shape == ()


def test_a_static_shape_is_a_constant_whatever_reads_it() -> None:
    """Cases 1 and 4."""
    nodes = [node("Shape", ["x"], ["s"]), node("Cast", ["s"], ["f"], to=1), node("Mul", ["f", "f"], ["y"])]
    assert_becomes(model(nodes, {"x": (2, 3)}, ["y"]), PASS, ["Cast", "Mul"])
    size = [node("Size", ["x"], ["s"]), node("Cast", ["s"], ["f"], to=1), node("Mul", ["f", "f"], ["y"])]
    assert_becomes(model(size, {"x": (2, 3)}, ["y"]), PASS, ["Cast", "Mul"])
    part = [node("Shape", ["x"], ["s"], start=1), node("Cast", ["s"], ["f"], to=1), node("Mul", ["f", "f"], ["y"])]
    assert_becomes(model(part, X, ["y"]), PASS, ["Cast", "Mul"])


def test_a_dynamic_shape_stays_where_something_else_reads_it() -> None:
    nodes = [node("Shape", ["x"], ["s"]), node("Cast", ["s"], ["f"], to=1), node("Mul", ["f", "f"], ["y"])]
    assert_stays(model(nodes, X, ["y"]), PASS)


def test_the_shape_of_an_expand() -> None:
    """Case 3."""
    proto = shaped(*GATHERED, node("Concat", ["n", "k"], ["wanted"], axis=0),
                   weights={"k": [5, 4]}, inputs={"x": ("batch", 1, 4), "z": ("batch",)}, last="Expand")  # fmt: skip
    found = assert_becomes(proto, PASS, ["Relu", "Expand", "Neg"], branch=False)
    assert found.weight(found.proto.graph.node[1].input[1]).tolist() == [1, 5, 1], "4 is the size of that axis anyway"


def test_an_expand_to_an_unknown_size_stays() -> None:
    proto = shaped(*GATHERED, node("Concat", ["n", "k"], ["wanted"], axis=0),
                   weights={"k": [5, 4]}, inputs={"x": (1, 1, 4), "z": ("batch",)}, last="Expand")  # fmt: skip
    assert_stays(proto, PASS)


def test_two_unknown_sizes_that_move_stay() -> None:
    nodes = [node("Shape", ["x"], ["s"]), node("Gather", ["s", "swap"], ["wanted"])]
    proto = shaped(*nodes, weights={"swap": [1, 0]}, inputs={"x": ("n", "m")})
    assert_stays(proto, PASS, "2 of the sizes aren't known before a run")


def test_two_unknown_sizes_that_stay_in_place_are_copied() -> None:
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Slice", ["s", "zero", "end"], ["n"]),
        node("Concat", ["n", "k"], ["wanted"], axis=0),
    ]
    proto = shaped(*nodes, weights={"end": [2], "k": [2, 2]}, inputs={"x": ("n", "m", 4)})
    found = assert_becomes(proto, PASS, ["Relu", "Reshape", "Neg"])
    assert found.weight(found.proto.graph.node[1].input[1]).tolist() == [0, 0, 2, 2]


def test_a_shape_that_a_caller_gives_stays() -> None:
    proto = model([node("Reshape", ["x", "wanted"], ["y"])], {**X, "wanted": ("int64", (2,))}, ["y"])
    assert_stays(proto, PASS)


def test_zeros_that_mean_zero_stay() -> None:
    nodes = [node("Shape", ["x"], ["s"]), node("Reshape", ["x", "s"], ["y"], allowzero=1)]
    feeds = {"x": np.zeros((0, 3, 4), np.float32)}
    proto = model(nodes, X, ["y"])
    found = assert_becomes(proto, PASS, ["Reshape"], oracle=Runtime, branch=False)
    assert Runtime(found.proto).run(None, feeds)[0].shape == (0, 3, 4)


def test_an_output_keeps_its_node() -> None:
    proto = model([node("Shape", ["x"], ["y"])], {"x": (2, 3)}, ["y"])
    assert_stays(proto, PASS, "it hands out, as an output of its graph, an input or a constant")


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Max", "Min"])
def test_arithmetic_of_32_bits_stays_in_32_bits(op: str) -> None:
    nodes = [node("Shape", ["x"], ["s"]), node("Cast", ["s"], ["t"], to=6), node(op, ["t", "k"], ["u"]),
             node("Neg", ["u"], ["v"]),
             node("Add", ["i", "v"], ["y"])]  # fmt: skip
    inputs = {"x": (5, 7), "i": ("int32", (2,))}
    assert_becomes(model(nodes, inputs, ["y"], {"k": np.array([2, 3], np.int32)}), PASS, ["Add"])


def test_numbers_beyond_32_bits_stay() -> None:
    """What a Cast to 32 bits cuts off is not known as what it was, nor is what a product overflows to."""
    nodes = [node("Shape", ["x"], ["s"]), node("Mul", ["s", "k"], ["b"]), node("Cast", ["b"], ["c"], to=6),
             node("Cast", ["s"], ["t"], to=6), node("Mul", ["t", "i32"], ["d"]), node("Add", ["c", "d"], ["e"]),
             node("Add", ["i", "e"], ["y"])]  # fmt: skip
    weights = {"k": [1 << 31], "i32": np.array([1 << 30], np.int32)}
    proto = model(nodes, {"x": (5,), "i": ("int32", (1,))}, ["y"], weights)
    found = apply(proto, PASS)
    assert found.operators == ["Cast", "Mul", "Add", "Add"]
    assert_same(proto, found.proto, oracle=Runtime)


def test_as_numbers() -> None:
    n, m = Product(1, ("n",)), Product(1, ("m",))
    assert as_numbers((n, 3), (n, 3)) == [0, 3]
    assert as_numbers((3, n), (n, 3)) == [3, -1]
    assert as_numbers((n, m), (n, m, 4)) == [0, 0]
    assert as_numbers((n, -1), (n,)) == [0, -1], "the model's own -1 stays"
    with pytest.raises(Refusal, match="may be 0"):  # an empty batch leaves nothing to work a -1 out from
        as_numbers((n, None), (n,))
    with pytest.raises(Refusal, match="2 of the sizes"):
        as_numbers((m, n), (n, m))
    with pytest.raises(Refusal):
        as_numbers((n, m), None)
