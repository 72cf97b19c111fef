"""The slices of a focus layer are a SpaceToDepth."""

import itertools

import onnx
import pytest

from rewriting_cases import Runtime, assert_becomes, assert_stays, floats, model, node

PASS = "fuse-space-to-depth"


def focus(
    order: list[tuple[int, int]], *, block: int = 2, by_two: bool = False, last: onnx.NodeProto | None = None,
    shape: tuple = ("batch", 3, 6, 8), axis: int = 1, weights: dict | None = None,
) -> onnx.ModelProto:  # fmt: skip
    nodes, held = (
        [],
        {"two": [block] * 2, "a": [2, 3], "end": [2**62] * 2, "h": [2], "w": [3], "e1": [2**62], "one": [block]},
    )
    for number, (row, column) in enumerate(order):
        name = f"s{number}"
        held |= {f"at{row}{column}": [row, column], f"r{row}": [row], f"c{column}": [column]}
        if by_two:
            nodes += [node("Slice", ["x", f"r{row}", "e1", "h", "one"], [f"h{number}"]),
                      node("Slice", [f"h{number}", f"c{column}", "e1", "w", "one"], [name])]  # fmt: skip
        else:
            nodes.append(node("Slice", ["x", f"at{row}{column}", "end", "a", "two"], [name]))
    nodes.append(node("Concat", [f"s{number}" for number in range(len(order))], ["m"], axis=axis))
    nodes.append(last or node("Relu", ["m"], ["y"]))
    return model(nodes, {"x": shape}, ["y"], {**held, **(weights or {})})


ROWS = [(0, 0), (0, 1), (1, 0), (1, 1)]
YOLO = [(0, 0), (1, 0), (0, 1), (1, 1)]


@pytest.mark.parametrize("by_two", [False, True])
def test_row_by_row_it_is_one(by_two: bool) -> None:
    """Case 1."""
    assert_becomes(focus(ROWS, by_two=by_two), PASS, ["SpaceToDepth", "Relu"], branch=False)


def test_squares_of_three() -> None:
    order = list(itertools.product(range(3), range(3)))
    assert_becomes(focus(order, block=3, shape=("batch", 2, 6, 9)), PASS, ["SpaceToDepth", "Relu"])


@pytest.mark.parametrize("bias", [False, True])
def test_another_order_goes_into_the_weights(bias: bool) -> None:
    """Case 2."""
    conv = node("Conv", ["m", "k", *(["b"] if bias else [])], ["y"], name="stem", pads=[1, 1, 1, 1])
    proto = focus(YOLO, last=conv, weights={"k": floats(0, 5, 12, 3, 3), "b": floats(1, 5)})
    found = assert_becomes(proto, PASS, ["SpaceToDepth", "Conv"], tolerance=1e-5, oracle=Runtime)
    assert found.proto.graph.node[1].name == "stem"


def test_another_order_before_something_else_gets_a_gather() -> None:
    assert_becomes(focus(YOLO), PASS, ["SpaceToDepth", "Gather", "Relu"])
    grouped = node("Conv", ["m", "k"], ["y"], group=2)
    proto = focus(YOLO, last=grouped, weights={"k": floats(0, 4, 6, 3, 3)})
    assert_becomes(proto, PASS, ["SpaceToDepth", "Gather", "Conv"], tolerance=1e-5, oracle=Runtime, branch=False)


def test_what_only_looks_like_it_stays() -> None:
    assert_stays(focus([(0, 0), (0, 1), (1, 0), (1, 0)]), PASS)
    assert_stays(focus([*ROWS, (0, 0)]), PASS)
    assert_stays(focus(ROWS, axis=2), PASS)
    assert_stays(focus(ROWS[:1]), PASS)


def test_images_that_are_not_divisible_or_of_unknown_size() -> None:
    assert_stays(focus(ROWS, shape=("batch", 3, "h", 8)), PASS)
    found = assert_stays(focus(ROWS, shape=(1, "c", 6, 8)), PASS, "the size of the image isn't known")
    assert "SpaceToDepth" not in found.operators
