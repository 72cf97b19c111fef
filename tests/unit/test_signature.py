"""Signatures and the text form of an input."""

import pytest

from penstock.errors import UsageError
from penstock.signature import Signature, TensorSpec, parse_input


@pytest.mark.parametrize(
    ("text", "spec", "sizes"),
    [
        ("x:float32[batch,3,32,32]", TensorSpec("x", "float32", ("batch", 3, 32, 32)), {}),
        (" x:float32[batch, 3, h=64, w=48] ", TensorSpec("x", "float32", ("batch", 3, "h", "w")), {"h": 64, "w": 48}),
        ("ids:int64[4]", TensorSpec("ids", "int64", (4,)), {}),
        ("s:bool[]", TensorSpec("s", "bool", ()), {}),
        ("a/b.c:float16[n]", TensorSpec("a/b.c", "float16", ("n",)), {}),
    ],
)
def test_inputs_are_read(text: str, spec: TensorSpec, sizes: dict[str, int]) -> None:
    assert parse_input(text) == (spec, sizes)


@pytest.mark.parametrize(
    "text",
    ["", "x", "x:float32", "x[1]", ":float32[1]", "x:float32[1", "x:float32[0]", "x:float32[-1]", "x:float32[3=4]",
     "x:float32[h=]", "x:float32[h=b]", "x:float32[h=0]", "x:float32[a b]", "x:float32[1]]", "x:FLOAT[1]",
     "x:float33[batch]"],
)  # fmt: skip
def test_what_does_not_parse_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_input(text)
    assert caught.value.do


def test_text_is_read_back() -> None:
    spec = TensorSpec("x", "float32", ("batch", 3, 8))
    assert spec.text() == "x:float32[batch,3,8]" and parse_input(spec.text())[0] == spec
    assert TensorSpec("x", "float32", None).text() == "x:float32[…]"
    assert TensorSpec("x", "float32", (None, 2)).text() == "x:float32[?,2]"


@pytest.mark.parametrize(
    ("shapes", "fixed"),
    [
        ([("batch", 3)], None),
        ([(None, 3)], None),
        ([(4, 3)], 4),
        ([("n", 3), (4, 3)], 4),
        ([None], None),
        ([()], 1),
        ([], None),
    ],
)
def test_fixed_batch(shapes: list, fixed: int | None) -> None:
    inputs = tuple(TensorSpec(f"x{i}", "float32", shape) for i, shape in enumerate(shapes))
    assert Signature(inputs, ()).fixed_batch == fixed
