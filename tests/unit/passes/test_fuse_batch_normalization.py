"""Multiplication and addition with constants in a row, one number for each channel, are a BatchNormalization."""

import numpy as np
import onnx
import pytest
from onnx import helper

from rewriting_cases import Runtime, assert_becomes, assert_stays, floats, model, node

PASS = "fuse-batch-normalization"
K = {
    "k": floats(0, 4, 1, 1),
    "m": floats(1, 1, 4, 1, 1),
    "p": np.abs(floats(2, 4, 1, 1)) + 0.5,
    "half": np.float32(0.5),
}
IMAGE = {"x": ("batch", 4, "height", 3)}
FEEDS = {"x": floats(9, 2, 4, 5, 3)}


def row(*steps: tuple[str, list[str]], inputs: dict = IMAGE, weights: dict = K, opset: int = 17) -> onnx.ModelProto:
    """Return these steps, each on the result of the one before (written as _), between a Sin and a Relu."""
    nodes, last = [node("Sin", ["x"], ["v"])], "v"
    for number, (op, names) in enumerate(steps):
        nodes.append(node(op, [last if name == "_" else name for name in names], [f"v{number}"], name=f"n{number}"))
        last = f"v{number}"
    return model([*nodes, node("Relu", [last], ["y"])], inputs, ["y"], weights, opset=opset)


ROWS = {
    "as exporters decompose it": [("Sub", ["_", "k"]), ("Mul", ["_", "m"]), ("Mul", ["_", "p"]), ("Add", ["_", "k"])],
    "two": [("Mul", ["_", "k"]), ("Add", ["m", "_"])],
    "from the other side": [("Mul", ["k", "_"]), ("Sub", ["m", "_"])],
    "with one number": [("Mul", ["_", "half"]), ("Add", ["_", "k"]), ("Neg", ["_"])],
    "divided": [("Sub", ["_", "k"]), ("Div", ["_", "p"])],
}


@pytest.mark.parametrize("case", ROWS)
def test_a_row_is_one(case: str) -> None:
    wanted = ["Sin", "BatchNormalization", "Relu"]
    found = assert_becomes(row(*ROWS[case]), PASS, wanted, tolerance=1e-6, feeds=FEEDS)
    assert found.proto.graph.node[1].name == f"n{len(ROWS[case]) - 1}"
    old = row(*ROWS[case], opset=9)  # where onnx's own evaluator normalizes by the batch
    assert_becomes(old, PASS, wanted, tolerance=1e-6, feeds=FEEDS, oracle=Runtime, branch=False)


@pytest.mark.parametrize("kind", ["float16", "float64"])
def test_of_other_types(kind: str) -> None:
    weights = {name: np.asarray(array).astype(kind) for name, array in K.items()}
    proto = row(*ROWS["divided"], inputs={"x": (kind, (2, 4, 5, 3))}, weights=weights)
    assert_becomes(proto, PASS, ["Sin", "BatchNormalization", "Relu"], tolerance=4e-3 if kind == "float16" else 1e-12)


def test_of_two_axes() -> None:
    proto = row(("Mul", ["_", "k"]), ("Add", ["_", "k"]), inputs={"x": ("batch", 4)}, weights={"k": floats(3, 4)})
    assert_becomes(proto, PASS, ["Sin", "BatchNormalization", "Relu"], tolerance=1e-6)


def test_it_begins_where_the_constants_fit() -> None:
    """The first constant is one for each column."""
    proto = row(("Mul", ["_", "c"]), *ROWS["divided"], weights={**K, "c": floats(5, 3)})
    assert_becomes(proto, PASS, ["Sin", "Mul", "BatchNormalization", "Relu"], tolerance=1e-6, feeds=FEEDS)


def test_it_ends_where_others_read() -> None:
    proto = row(*ROWS["as exporters decompose it"])
    proto.graph.output.append(helper.make_tensor_value_info("v1", 1, ["batch", 4, "height", 3]))
    wanted = ["Sin", "BatchNormalization", "BatchNormalization", "Relu"]
    assert_becomes(proto, PASS, wanted, tolerance=1e-6, feeds=FEEDS, branch=False)


STAYS = {
    "one alone": ([("Mul", ["_", "k"])], IMAGE, K, 17),
    "numbers alone": ([("Mul", ["_", "half"]), ("Add", ["_", "half"])], IMAGE, K, 17),
    "an old opset": (ROWS["two"], IMAGE, K, 7), "unknown channels": (ROWS["two"], {"x": (2, "channels", 5, 3)}, K, 17),
    "one channel": (ROWS["two"], {"x": (2, 1, 5, 3)}, K, 17),
    "one axis": ([("Mul", ["_", "k"]), ("Add", ["_", "k"])], {"x": (4,)}, {"k": floats(1, 4)}, 17),
    "for each column": ([("Mul", ["_", "c"]), ("Add", ["_", "c"])], IMAGE, {"c": floats(5, 3)}, 17),
    "it divides by x": ([("Div", ["k", "_"]), ("Add", ["_", "k"])], IMAGE, K, 17),
    "integers": ([("Mul", ["_", "i"]), ("Add", ["_", "i"])], None, {"i": np.arange(4).reshape(4, 1, 1)}, 17),
}  # fmt: skip


@pytest.mark.parametrize("case", STAYS)
def test_what_stays(case: str) -> None:
    steps, inputs, weights, opset = STAYS[case]
    if inputs is not None:
        assert_stays(row(*steps, inputs=inputs, weights=weights, opset=opset), PASS)
        return
    nodes = [node("Mul", ["x", "i"], ["v"]), node("Add", ["v", "i"], ["y"])]
    assert_stays(model(nodes, {"x": ("int64", (2, 4, 5, 3))}, ["y"], weights), PASS)


def test_digits_that_a_difference_keeps_are_not_given_up() -> None:
    weights = {"k": np.full((4, 1, 1), 5000, np.float32), "p": K["p"]}
    reason = "what is subtracted first is so large that digits of the difference would be missing"
    assert_stays(row(("Sub", ["_", "k"]), ("Div", ["_", "p"]), weights=weights), PASS, reason)


def test_a_division_by_nothing_stays() -> None:
    proto = row(("Sub", ["_", "k"]), ("Div", ["_", "z"]), weights={**K, "z": np.zeros((4, 1, 1), np.float32)})
    assert_stays(proto, PASS, "it divides by zero")
