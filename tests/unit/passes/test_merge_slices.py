"""Slices that cut a tensor into pieces become a Split."""

import numpy as np
import onnx
import pytest

from penstock.passes._order import run_unasked
from rewriting_cases import Runtime, apply, assert_becomes, assert_same, assert_stays, model, node

PASS = "merge-slices"


def pieces(*cuts: tuple[int, int], axis: int = 1, size: int | str = 10, opset: int = 21, extra: dict | None = None,
           ) -> onnx.ModelProto:  # fmt: skip
    """Relu, a Slice for each (start, end) in this order, and an Exp behind each."""
    nodes, weights = [node("Relu", ["x"], ["m"])], {"a": [axis]}
    for i, (start, end) in enumerate(cuts):
        if opset >= 10:
            weights |= {f"s{i}": [start], f"e{i}": [end]}
            more = [] if extra is None else list(extra)
            nodes.append(node("Slice", ["m", f"s{i}", f"e{i}", "a", *more], [f"c{i}"]))
        else:
            nodes.append(node("Slice", ["m"], [f"c{i}"], starts=[start], ends=[end], axes=[axis]))
        nodes.append(node("Exp", [f"c{i}"], [f"y{i}"]))
    names = [f"y{i}" for i in range(len(cuts))]
    used = weights if opset >= 10 else {}
    return model(nodes, {"x": ("batch", size, 4)}, names, {**used, **(extra or {})}, opset=opset)


@pytest.mark.parametrize("opset", [9, 10, 12, 13, 21])
def test_pieces_without_a_gap_are_a_split(opset: int) -> None:
    """Case 1: in their order, and in another."""
    found = assert_becomes(pieces((0, 3), (3, 4), (4, 10), opset=opset), PASS, ["Relu", "Split", "Exp", "Exp", "Exp"],
                           branch=opset > 12)  # fmt: skip
    assert len(found.proto.graph.node[1].output) == 3
    assert_becomes(
        pieces((4, 10), (0, 3), (3, 4), opset=opset), PASS, ["Relu", "Split", "Exp", "Exp", "Exp"], branch=False
    )


@pytest.mark.parametrize("cuts", [((0, -4), (-4, 2**62)), ((-10, 6), (6, 99)), ((0, 5), (5, 10))])
def test_ends_are_counted_from_both_sides(cuts: tuple[tuple[int, int], ...]) -> None:
    assert_becomes(pieces(*cuts), PASS, ["Relu", "Split", "Exp", "Exp"])


def test_the_same_piece_again_stays_for_another_pass() -> None:
    proto = pieces((0, 5), (5, 10), (5, 10))
    assert_becomes(proto, PASS, ["Relu", "Split", "Exp", "Exp", "Slice", "Exp"], branch=False)
    found = apply(proto, "deduplicate-initializers", "eliminate-common-subexpressions", PASS)
    assert found.operators.count("Split") == 1 and "Slice" not in found.operators


REFUSED = {
    "a gap": pieces((0, 3), (4, 10)),
    "an end missing": pieces((0, 3), (3, 9)),
    "a beginning missing": pieces((1, 3), (3, 10)),
    "an overlap": pieces((0, 4), (3, 10)),
    "one alone": pieces((0, 5)),
    "the whole": pieces((0, 10), (0, 10)),
    "an unknown size": pieces((0, 3), (3, 2**62), size="n"),
    "steps": pieces((0, 5), (5, 10), extra={"t": np.array([2])}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_pieces_stay(case: str) -> None:
    assert_stays(REFUSED[case], PASS)


def test_two_axes_at_once_stay() -> None:
    weights = {"a": [1, 2], "s": [0, 0], "e": [5, 2], "s2": [5, 2], "e2": [10, 4]}
    nodes = [node("Slice", ["x", "s", "e", "a"], ["p"]), node("Slice", ["x", "s2", "e2", "a"], ["q"]),
             node("Exp", ["p"], ["y"]), node("Exp", ["q"], ["z"])]  # fmt: skip
    assert_stays(model(nodes, {"x": ("batch", 10, 4)}, ["y", "z"], weights), PASS)


def test_an_axis_that_stays_whole_may_be_named() -> None:
    weights = {"a": [0, 1], "s": [0, 0], "e": [2**62, 5], "s2": [0, 5], "e2": [2**62, 10]}
    nodes = [node("Slice", ["x", "s", "e", "a"], ["p"]), node("Slice", ["x", "s2", "e2", "a"], ["q"]),
             node("Exp", ["p"], ["y"]), node("Exp", ["q"], ["z"])]  # fmt: skip
    assert_becomes(model(nodes, {"x": ("batch", 10, 4)}, ["y", "z"], weights), PASS, ["Split", "Exp", "Exp"])


def test_a_piece_that_is_an_output_keeps_its_name() -> None:
    weights = {"a": [1], "s": [0], "e": [5], "s2": [5], "e2": [10]}
    nodes = [node("Slice", ["x", "s", "e", "a"], ["y"]), node("Slice", ["x", "s2", "e2", "a"], ["z"])]
    found = assert_becomes(model(nodes, {"x": ("batch", 10, 4)}, ["y", "z"], weights), PASS, ["Split"])
    assert found.proto.graph.node[0].output == ["y", "z"]


@pytest.mark.parametrize("end", [-(2**63), -(2**62), -(2**62) + 1, -9])
@pytest.mark.parametrize("step", [1, -1])
def test_an_end_far_below_zero_is_the_beginning(end: int, step: int) -> None:
    """With a step forward nothing is left, with one backward everything up to the first."""
    weights = {"s": [0 if step > 0 else 8], "e": [end], "a": [1], "t": [step], "f": [3]}
    nodes = [node("Slice", ["x", "s", "e", "a", "t"], ["p"]), node("Slice", ["p", "s", "f", "a"], ["q"]),
             node("Shape", ["p"], ["z"]), node("Relu", ["q"], ["y"])]  # fmt: skip
    proto = model(nodes, {"x": (2, 4)}, ["y", "z"], weights)
    found = apply(proto, *run_unasked())
    assert_same(proto, found.proto, oracle=Runtime)
