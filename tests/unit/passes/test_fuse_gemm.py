"""A MatMul and an Add become a Gemm."""

import numpy as np
import onnx
import pytest

from rewriting_cases import assert_becomes, assert_stays, floats, model, node

PASS = "fuse-gemm"
A = {"a": ("m", 4)}


def dense(bias: tuple[int, ...] | None = (6,), *, first: bool = False, inputs: dict = A, opset: int = 21,
          more: tuple = (),
          outputs: tuple[str, ...] = ("y",), b: np.ndarray | None = None) -> onnx.ModelProto:  # fmt: skip
    weights = {"b": floats(0, 4, 6) if b is None else b} | ({} if bias is None else {"c": floats(1, *bias)})
    nodes = [
        node("MatMul", ["a", "b"], ["p"]),
        node("Add", ["c", "p"] if first else ["p", "c"], ["y"], name="add"),
        *more,
    ]
    return model(nodes, inputs, list(outputs), weights, opset=opset)


@pytest.mark.parametrize("bias", [(6,), (1,), (1, 6), (1, 1)])
@pytest.mark.parametrize("first", [False, True])
def test_a_bias_that_fits(bias: tuple[int, ...], first: bool) -> None:
    """Cases 1 and 5."""
    found = assert_becomes(dense(bias, first=first), PASS, ["Gemm"], tolerance=1e-6)
    held = {one.name: list(one.dims) for one in found.proto.graph.initializer}
    assert held[found.proto.graph.node[0].input[2]] == [bias[-1]], "quantizers want a bias of one axis"


def test_a_bias_that_is_computed() -> None:
    assert_becomes(dense(None, inputs={**A, "c": ("m", 6)}), PASS, ["Gemm"], tolerance=1e-6)
    assert_becomes(dense(None, inputs={**A, "c": ("m", 1)}), PASS, ["Gemm"], tolerance=1e-6)


@pytest.mark.parametrize("opset", [7, 9, 11, 13])
def test_a_number_alone_is_an_input_from_opset_11_on(opset: int) -> None:
    if opset < 11:
        assert_stays(dense((), opset=opset), PASS)
    else:
        assert_becomes(dense((), opset=opset), PASS, ["Gemm"], tolerance=1e-6, branch=False)


FIT = "what is added isn't known to fit the product's two axes"


@pytest.mark.parametrize(
    "inputs", [{**A, "c": ("n", 6)}, {**A, "c": ("m", "n")}, {**A, "c": (7, 1, 6)}, {**A, "c": ("n",)}]
)
def test_what_may_enlarge_the_product_stays(inputs: dict) -> None:
    assert_stays(dense(None, inputs=inputs), PASS, FIT)


def test_other_ranks_stay() -> None:
    """Case 2."""
    assert_stays(dense(inputs={"a": ("m", 2, 4)}), PASS, "the product's factors have 3 and 2 axes; Gemm takes 2 each")
    assert_stays(
        dense(None, inputs={"a": (4,), "c": (6,)}), PASS, "the product's factors have 1 and 2 axes; Gemm takes 2 each"
    )


def test_whole_numbers_stay() -> None:
    inputs = {"a": ("int64", ("m", 4)), "c": ("int64", (6,))}
    assert_stays(dense(None, inputs=inputs, b=np.ones((4, 6), np.int64)), PASS)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_floats(dtype: str) -> None:
    inputs = {"a": (dtype, ("m", 4)), "c": (dtype, (6,))}
    assert_becomes(dense(None, inputs=inputs, b=floats(0, 4, 6).astype(dtype)), PASS, ["Gemm"], tolerance=1e-2)


def test_transposes_become_flags() -> None:
    """Case 3, twice over and back."""
    nodes = [
        node("Transpose", ["a"], ["at"]),
        node("Transpose", ["b"], ["bt"], perm=[1, 0]),
        node("Gemm", ["at", "bt", "c"], ["y"], alpha=0.5),
    ]
    weights = {"c": floats(1, 6)}
    found = assert_becomes(model(nodes, {"a": (4, "m"), "b": (6, 4)}, ["y"], weights), PASS, ["Gemm"], tolerance=1e-6)
    held = {item.name: item.i or item.f for item in found.proto.graph.node[0].attribute}
    assert held == {"alpha": 0.5, "transA": 1, "transB": 1}
    back = [node("Transpose", ["a"], ["at"]), node("Gemm", ["at", "b"], ["y"], transA=1)]
    found = assert_becomes(model(back, {"a": ("m", 4), "b": (4, 6)}, ["y"]), PASS, ["Gemm"], tolerance=1e-6)
    assert not found.proto.graph.node[0].attribute


def test_a_transpose_that_others_read_stays() -> None:
    nodes = [node("Transpose", ["a"], ["at"]), node("Gemm", ["at", "b"], ["y"]), node("Neg", ["at"], ["z"])]
    assert_stays(model(nodes, {"a": (4, "m"), "b": (4, 6)}, ["y", "z"]), PASS)


def test_a_product_that_others_read_stays() -> None:
    """Case 4."""
    assert_stays(dense(more=(node("Neg", ["p"], ["z"]),), outputs=("y", "z")), PASS, "the product has 2 consumers")
    assert_stays(dense(outputs=("y", "p")), PASS, "the product is an output of its graph")


def test_a_product_outside_a_loop_stays_there() -> None:
    info = onnx.helper.make_tensor_value_info
    body = onnx.helper.make_graph(
        [node("Identity", ["go"], ["on"]), node("Add", ["p", "c"], ["t"], name="add")], "body",
        [info("i", onnx.TensorProto.INT64, []), info("go", onnx.TensorProto.BOOL, [])],
        [info("on", onnx.TensorProto.BOOL, []), info("t", 1, ["m", 6])],
    )  # fmt: skip
    nodes = [node("MatMul", ["a", "b"], ["p"]), node("Loop", ["n", ""], ["y"], body=body)]
    proto = model(nodes, A, ["y"], {"b": floats(0, 4, 6), "c": floats(1, 6), "n": 3})
    assert_stays(proto, PASS, "the product is read in the body of a Loop, at every turn")
