"""Zeros that an LSTM, GRU or RNN takes as given are left out."""

import numpy as np
import onnx
import pytest

from rewriting_cases import Runtime, assert_becomes, assert_stays, floats, model, node

PASS = "fold-recurrent-states"
X = {"x": ("time", 2, 3)}
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def layer(op: str, *, bias: bool = False, state: object = None, cell: object = None, peepholes: object = None,
          before: tuple = (), inputs: dict = X) -> onnx.ModelProto:  # fmt: skip
    rows, hidden = GATES[op] * 4, 4
    weights = {"w": floats(0, 1, rows, 3), "r": floats(1, 1, rows, hidden)}
    names = ["x", "w", "r", "", "", "", "", ""]
    for place, name, held in ((3, "b", np.zeros((1, 2 * rows), np.float32) if bias else None), (5, "h", state),
                              (6, "c", cell),
                              (7, "p", peepholes)):  # fmt: skip
        if isinstance(held, np.ndarray):
            weights[name], names[place] = held, name
        elif isinstance(held, str):
            names[place] = held
    nodes = [*before, node(op, names[: 8 if op == "LSTM" else 6], ["y", "y_h"], hidden_size=hidden, name="layer")]
    return model(nodes, inputs, ["y", "y_h"], weights | {"s": [1, 2, 4], "zero": np.zeros((1, 1, 4), np.float32)})


ZEROS = np.zeros((1, 2, 4), np.float32)


@pytest.mark.parametrize("op", GATES)
def test_a_state_of_zeros_goes(op: str) -> None:
    """Case 1."""
    cell = {"cell": ZEROS} if op == "LSTM" else {}
    found = assert_becomes(layer(op, state=ZEROS, **cell), PASS, [op], oracle=Runtime, branch=False)
    assert list(found.proto.graph.node[0].input) == ["x", "w", "r"] and found.proto.graph.node[0].name == "layer"


@pytest.mark.parametrize("before", [
    (node("ConstantOfShape", ["s"], ["h0"]),), (node("Expand", ["zero", "s"], ["h0"]),),
    (node("ConstantOfShape", ["s"], ["h0"], value=onnx.helper.make_tensor("", 1, [1], [0.0])),),
    (node("Shape", ["x"], ["t"], start=1, end=2), node("Concat", ["one", "t", "four"], ["u"], axis=0),
     node("ConstantOfShape", ["u"], ["h0"])),
])  # fmt: skip
def test_the_scaffolding_of_exporters_goes(before: tuple) -> None:
    proto = layer("LSTM", state="h0", cell="h0", before=before)
    for name, held in (("one", [1]), ("four", [4])):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(held), name))
    assert_becomes(proto, PASS, ["LSTM"], oracle=Runtime, branch=False)


def test_a_bias_and_peepholes_of_zeros_go() -> None:
    """Case 2."""
    proto = layer("LSTM", bias=True, state=floats(5, 1, 2, 4), peepholes=np.zeros((1, 12), np.float32))
    found = assert_becomes(proto, PASS, ["LSTM"], oracle=Runtime, branch=False)
    assert list(found.proto.graph.node[0].input) == ["x", "w", "r", "", "", "h"]


@pytest.mark.parametrize("state", [floats(3, 1, 2, 4), np.full((1, 2, 4), 1e-30, np.float32)])
def test_other_states_stay(state: np.ndarray) -> None:
    assert_stays(layer("GRU", state=state), PASS)


def test_states_that_are_given_or_not_zero_stay() -> None:
    assert_stays(layer("GRU", state="h0", inputs={**X, "h0": (1, 2, 4)}), PASS)
    ones = node("ConstantOfShape", ["s"], ["h0"], value=onnx.helper.make_tensor("", 1, [1], [1.0]))
    assert_stays(layer("GRU", state="h0", before=(ones,)), PASS)
    computed = (node("Neg", ["zero"], ["z"]), node("Expand", ["z", "s"], ["h0"]))
    assert_stays(layer("GRU", state="h0", before=computed), PASS)
