"""Multiplication and addition with constants go into the linear operator before them."""

import numpy as np
import onnx
import pytest

from rewriting_cases import Runtime, assert_becomes, assert_stays, floats, model, node

PASS = "fold-affine"
CONV = {"x": ("batch", 3, 6, 6)}
W = {"w": floats(0, 4, 3, 3, 3), "b": floats(1, 4)}


def conv(
    *nodes: onnx.NodeProto, weights: dict, bias: bool = True, inputs: dict = CONV, **attributes: object
) -> onnx.ModelProto:
    """A Conv from x to c, and the nodes from there to y."""
    held = [node("Conv", ["x", "w", *(["b"] if bias else [])], ["c"], name="conv", **attributes), *nodes]
    return model(held, inputs, ["y"], {**W, **weights})


CHANNELS = floats(2, 1, 4, 1, 1)
STEPS = {
    "1 Mul": (["c", "k"], CHANNELS), "1 Mul before": (["k", "c"], CHANNELS), "1 Mul by a number": (["c", "k"], 0.5),
    "1 Mul without the batch": (["c", "k"], CHANNELS[0]), "1 Div": (["c", "k"], CHANNELS + 3),
    "2 Add": (["c", "k"], CHANNELS), "2 Add a number": (["k", "c"], np.float32(2)), "2 Sub": (["c", "k"], CHANNELS),
    "3 Sub from": (["k", "c"], CHANNELS),
}  # fmt: skip


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("case", STEPS)
def test_into_a_conv(case: str, bias: bool) -> None:
    inputs, constant = STEPS[case]
    proto = conv(node(case.split()[1], inputs, ["y"]), weights={"k": constant}, bias=bias)
    found = assert_becomes(proto, PASS, ["Conv"], tolerance=1e-5, branch=bias)
    assert found.proto.graph.node[0].name == "conv" and found.proto.graph.node[0].output == ["y"]


def test_the_sizes_of_the_image_need_not_be_known() -> None:
    """One number for each channel can't enlarge it; a number for each place could."""
    image = {"x": ("batch", 3, "height", "width")}
    steps = [node("Mul", ["c", "k"], ["d"]), node("Add", ["d", "k"], ["y"])]
    feeds = {"x": floats(3, 2, 3, 9, 7)}
    proto = conv(*steps, weights={"k": CHANNELS[0]}, inputs=image, strides=[2, 2])
    assert_becomes(proto, PASS, ["Conv"], tolerance=1e-5, feeds=feeds)
    wide = conv(node("Mul", ["c", "k"], ["y"]), weights={"k": floats(1, 1, 4, 1, 2)}, inputs=image, strides=[2, 2])
    assert_stays(wide, PASS, WIDE)


def test_a_chain_goes_whole() -> None:
    nodes = [node("Mul", ["c", "k"], ["d"]), node("Sub", ["m", "d"], ["e"]), node("Div", ["e", "n"], ["y"])]
    weights = {"k": CHANNELS, "m": floats(5, 4, 1, 1), "n": CHANNELS + 4}
    assert_becomes(conv(*nodes, weights=weights, pads=[1, 1, 1, 1], strides=[2, 2]), PASS, ["Conv"], tolerance=1e-5)


@pytest.mark.parametrize("group", [1, 2])
def test_into_a_transposed_conv(group: int) -> None:
    weights = {"w": floats(0, 4, 4 // group, 3, 3), "k": CHANNELS}
    nodes = [
        node("ConvTranspose", ["x", "w"], ["c"], group=group),
        node("Mul", ["c", "k"], ["d"]),
        node("Add", ["d", "k"], ["y"]),
    ]
    proto = model(nodes, {"x": (2, 4, 5, 5)}, ["y"], weights)
    assert_becomes(proto, PASS, ["ConvTranspose"], tolerance=1e-5, oracle=Runtime, branch=False)


@pytest.mark.parametrize("trans", [0, 1])
def test_into_a_gemm(trans: int) -> None:
    weights = {
        "w": floats(0, 6, 4) if trans else floats(0, 4, 6),
        "b": floats(1, 6),
        "k": floats(2, 6),
        "m": floats(3, 1, 6),
    }
    nodes = [node("Gemm", ["x", "w", "b"], ["c"], transB=trans, alpha=0.5, beta=3.0), node("Mul", ["c", "k"], ["d"]),
             node("Add", ["m", "d"], ["y"])]  # fmt: skip
    assert_becomes(model(nodes, {"x": ("batch", 4)}, ["y"], weights), PASS, ["Gemm"], tolerance=1e-5)


def test_into_a_matmul_of_any_rank() -> None:
    nodes = [node("MatMul", ["x", "w"], ["c"]), node("Mul", ["c", "k"], ["y"])]
    weights = {"w": floats(0, 4, 6), "k": floats(2, 6)}
    assert_becomes(model(nodes, {"x": ("batch", 3, 4)}, ["y"], weights), PASS, ["MatMul"], tolerance=1e-5)


def test_an_addition_behind_a_matmul_is_for_another_pass() -> None:
    nodes = [node("MatMul", ["x", "w"], ["c"]), node("Add", ["c", "k"], ["y"])]
    assert_stays(model(nodes, {"x": ("batch", 4)}, ["y"], {"w": floats(0, 4, 6), "k": floats(2, 6)}), PASS)


WIDE = "the constant isn't one number for each channel"
REFUSED = {
    "by column": ("Mul", ["c", "k"], floats(0, 1, 1, 1, 4), WIDE),
    "by row": ("Add", ["c", "k"], floats(0, 4, 1), WIDE),
    "by batch": ("Mul", ["c", "k"], floats(0, 2, 1, 1, 1), WIDE),
    "another axis": ("Mul", ["c", "k"], floats(0, 1, 1, 1, 1, 1), WIDE),
    "not linear": ("Div", ["k", "c"], CHANNELS, None),
    "by nothing": ("Div", ["c", "k"], np.float32(0), None),
    "whole numbers": ("Mul", ["c", "k"], floats(0, 1, 4, 4, 4), WIDE),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_stays(case: str) -> None:
    op, inputs, constant, reason = REFUSED[case]
    assert_stays(conv(node(op, inputs, ["y"]), weights={"k": constant}), PASS, reason)


def test_a_result_that_others_read_stays() -> None:
    proto = conv(node("Mul", ["c", "k"], ["y"]), weights={"k": CHANNELS})
    proto.graph.output.append(onnx.helper.make_tensor_value_info("c", 1, ["batch", 4, 4, 4]))
    assert_stays(proto, PASS, "the output of Conv is an output of its graph")
    proto = conv(node("Mul", ["c", "k"], ["d"]), node("Add", ["d", "c"], ["y"]), weights={"k": CHANNELS})
    assert_stays(proto, PASS, "the output of Conv has 2 consumers")


def test_weights_that_are_no_constants_stay() -> None:
    proto = conv(node("Mul", ["c", "k"], ["y"]), weights={"k": CHANNELS}, inputs={**CONV, "w": (4, 3, 3, 3)})
    assert_stays(proto, PASS, "the weight of Conv is an input with a default, which a caller may override")
    proto = conv(node("Mul", ["c", "k"], ["y"]), weights={"k": CHANNELS}, inputs={**CONV, "b": (4,)})
    assert_stays(proto, PASS, "the bias of Conv is an input with a default, which a caller may override")


def test_an_overflow_of_half_precision_stays() -> None:
    held = {"w": np.full((4, 3, 1, 1), 60000, np.float16), "k": np.float16(2)}
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Mul", ["c", "k"], ["y"])]
    assert_stays(
        model(nodes, {"x": ("float16", (1, 3, 2, 2))}, ["y"], held), PASS, "the folded weights overflow FLOAT16"
    )


# --- into what comes after


def before(
    *nodes: onnx.NodeProto, op: str = "Conv", weights: dict, shape: tuple = (2, 4, 5, 5), **attributes: object
) -> onnx.ModelProto:
    """Relu from x to r, the nodes from there to s, and a linear operator."""
    held = {
        "w": floats(0, 4, 2, 3, 3)
        if op == "ConvTranspose"
        else floats(0, 6, 4, 3, 3)
        if op == "Conv"
        else floats(0, 4, 6)
    }
    held |= {"b": floats(1, 2 if op == "ConvTranspose" else 6)}
    last = node(op, ["s", "w", *(["b"] if op != "MatMul" else [])], ["y"], name="linear", **attributes)
    return model([node("Relu", ["x"], ["r"]), *nodes, last], {"x": shape}, ["y"], held | weights)


PER = floats(2, 1, 4, 1, 1)
AFTER = {
    "Mul": ([node("Mul", ["r", "k"], ["s"])], {}), "Mul by a number": ([node("Mul", ["half", "r"], ["s"])], {}),
    "Mul, and it pads": ([node("Mul", ["r", "k"], ["s"])], {"pads": [1, 1, 1, 1]}),
    "Div, and it pads": ([node("Div", ["r", "k"], ["s"])], {"auto_pad": "SAME_UPPER"}),
    "Neg": ([node("Neg", ["r"], ["s"])], {"pads": [1, 1, 1, 1]}), "Add": ([node("Add", ["r", "k"], ["s"])], {}),
    "a whole row": ([node("Sub", ["r", "k"], ["t"]), node("Mul", ["t", "k"], ["u"]), node("Mul", ["u", "half"], ["v"]),
                     node("Sub", ["k", "v"], ["s"])], {}),
}  # fmt: skip


@pytest.mark.parametrize("case", AFTER)
def test_into_the_conv_after_them(case: str) -> None:
    nodes, attributes = AFTER[case]
    proto = before(*nodes, weights={"k": PER, "half": np.float32(0.5)}, **attributes)
    assert_becomes(proto, PASS, ["Relu", "Conv"], tolerance=1e-5, oracle=Runtime)


@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
def test_into_the_product_after_them(op: str) -> None:
    nodes = [node("Sub", ["r", "k"], ["t"]), node("Mul", ["t", "k"], ["s"])]
    proto = before(*nodes, op=op, weights={"k": floats(2, 4)}, shape=("batch", 4))
    wanted = ["Relu", "Gemm"] if op == "Gemm" else ["Relu", "MatMul", "Add"]
    assert_becomes(proto, PASS, wanted, tolerance=1e-5)


def test_into_the_transposed_conv_after_them() -> None:
    proto = before(node("Mul", ["r", "k"], ["s"]), op="ConvTranspose", weights={"k": PER}, strides=[2, 2])
    assert_becomes(proto, PASS, ["Relu", "ConvTranspose"], tolerance=1e-5, oracle=Runtime)
    proto = before(node("Add", ["r", "k"], ["s"]), op="ConvTranspose", weights={"k": PER})
    assert_stays(proto, PASS, "each place of what a ConvTranspose makes would get another share of the offset")


def test_what_stays_before_a_linear_operator() -> None:
    border = "the offset would be missing where the Conv pads"
    added = node("Add", ["r", "k"], ["s"])
    assert_stays(before(added, weights={"k": PER}, pads=[0, 0, 1, 1]), PASS, border)
    assert_stays(before(node("Mul", ["r", "k"], ["s"]), weights={"k": floats(2, 5)}), PASS, WIDE)
    larger = before(node("Mul", ["r", "k"], ["s"]), weights={"k": PER}, shape=(2, 1, 5, 5))  # one channel becomes four
    assert_stays(larger, PASS, WIDE)
    shared = before(node("Mul", ["r", "k"], ["s"]), weights={"k": PER})
    shared.graph.output.append(onnx.helper.make_tensor_value_info("s", 1, [2, 4, 5, 5]))
    assert_stays(shared, PASS)
    assert_stays(before(node("Div", ["k", "r"], ["s"]), weights={"k": PER}), PASS)
    weight = before(node("Mul", ["x", "k"], ["s"]), weights={"k": PER})
    weight.graph.node[-1].input[0], weight.graph.node[-1].input[1] = "w2", "s"  # it is the weights that are multiplied
    weight.graph.initializer.append(onnx.numpy_helper.from_array(floats(1, 2, 4, 7, 7), "w2"))
    weight.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("x", 1, [6, 4, 3, 3]))
    weight.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", 1, [2, 6, 5, 5]))
    assert_stays(weight, PASS)


@pytest.mark.parametrize("shape", [(4,), (4, 4, 5)])
@pytest.mark.parametrize("op", ["Mul", "Add"])
def test_not_into_weights_that_have_other_than_two_axes(op: str, shape: tuple[int, ...]) -> None:
    nodes = [node(op, ["x", "k"], ["s"]), node("MatMul", ["s", "w"], ["y"])]
    proto = model(nodes, {"x": (4, 4)}, ["y"], {"w": floats(0, *shape), "k": floats(2, 4)})
    assert_stays(proto, PASS, f"the weight of MatMul has {len(shape)} axes")


def test_a_mean_that_is_large_stays_before_the_product() -> None:
    nodes = [node("Sub", ["r", "k"], ["t"]), node("Div", ["t", "half"], ["s"])]
    proto = before(
        *nodes, op="Gemm", weights={"k": np.full(4, 5000, np.float32), "half": np.float32(0.5)}, shape=("batch", 4)
    )
    found = assert_becomes(proto, PASS, ["Relu", "Sub", "Gemm"], tolerance=1e-5, feeds={"x": 5000 + floats(3, 2, 4)})
    assert found.reasons == ["what is added first is so large that digits of the sum would be missing"]
