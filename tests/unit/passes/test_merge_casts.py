"""Casts that follow each other join where the first loses nothing."""

import numpy as np
import onnx
import pytest
from onnx import helper

from penstock.passes.merge_casts import WIDER
from rewriting_cases import KINDS, Runtime, assert_becomes, assert_stays, model, node

PASS = "merge-casts"


def casts(start: str, middle: str, end: str) -> onnx.ModelProto:
    nodes = [node("Identity", ["x"], ["a"]), node("Cast", ["a"], ["b"], to=KINDS[middle]),
             node("Cast", ["b"], ["c"], to=KINDS[end]), node("Identity", ["c"], ["y"])]  # fmt: skip
    return model(nodes, {"x": (start, (6,))}, ["y"])


@pytest.mark.parametrize(("start", "middle", "end"), [
    ("int32", "int64", "float32"), ("float16", "float32", "float64"), ("bool", "int64", "float32"),
    ("uint8", "float32", "int32"), ("int8", "float16", "int64"), ("float32", "float64", "float16"),
    ("int16", "float32", "bool"),
])  # fmt: skip
def test_the_first_that_loses_nothing_goes(start: str, middle: str, end: str) -> None:
    """Case 1."""
    found = assert_becomes(casts(start, middle, end), PASS, ["Identity", "Cast", "Identity"], oracle=Runtime)
    assert found.proto.graph.node[1].attribute[0].i == KINDS[end]


@pytest.mark.parametrize(("start", "middle"), [("float16", "float32"), ("int32", "int64"), ("bool", "float32")])
def test_there_and_back_goes(start: str, middle: str) -> None:
    """Case 2."""
    assert_becomes(casts(start, middle, start), PASS, ["Identity", "Identity"])


@pytest.mark.parametrize(("start", "middle", "end"), [
    ("float32", "int64", "float32"), ("float32", "float16", "float32"), ("int64", "int32", "int64"),
    ("float64", "float32", "float64"), ("int64", "float64", "int64"), ("int8", "uint8", "int32"),
    ("int32", "float32", "int64"), ("float32", "bool", "float32"),
])  # fmt: skip
def test_the_first_that_may_lose_something_stays(start: str, middle: str, end: str) -> None:
    """Case 3."""
    names = [helper.tensor_dtype_to_string(KINDS[kind]).rpartition(".")[2] for kind in (start, middle)]
    reason = f"the Cast before it, from {names[0]} to {names[1]}, may lose something"
    assert_stays(casts(start, middle, end), PASS, reason)


def test_what_others_read_as_well_stays_for_them() -> None:
    proto = casts("int32", "int64", "float32")
    proto.graph.node.append(node("Neg", ["b"], ["z"]))
    proto.graph.output.append(helper.make_tensor_value_info("z", KINDS["int64"], [6]))
    found = assert_becomes(proto, PASS, ["Identity", "Cast", "Cast", "Identity", "Neg"])
    assert [list(one.input) for one in found.proto.graph.node][2] == ["a"]


def test_the_table_holds_only_pairs_that_lose_nothing() -> None:
    """Every value of the narrow type that is near a border of its precision comes back as it was."""
    types = {helper.tensor_dtype_to_string(kind).rpartition(".")[2]: np.dtype(name) for name, kind in KINDS.items()}
    for narrow, wider in WIDER.items():
        if narrow not in types:
            continue
        dtype = types[narrow]
        if dtype.kind == "f":
            info = np.finfo(dtype)
            values = np.array([info.max, info.min, info.tiny, info.eps, 1 + info.eps, np.inf, -np.inf, 0], dtype)
        elif dtype.kind == "b":
            values = np.array([True, False])
        else:
            limits = np.iinfo(dtype)
            values = np.array([limits.min, limits.min + 1, 0, 1, limits.max - 1, limits.max], dtype)
        for name in wider & types.keys():
            assert (values.astype(types[name]).astype(dtype) == values).all(), (narrow, name)
            if dtype.kind in "iu" and types[name].kind in "iu":
                assert (values.astype(types[name]).astype(object) == values.astype(object)).all(), (narrow, name)
