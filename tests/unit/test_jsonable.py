"""Dataclasses to JSON and back, strictly."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.jsonable import Json, dumps, from_json, to_json


@dataclass(frozen=True, slots=True)
class Inner:
    kind: Literal["a", "b"]
    share: float


@dataclass(frozen=True, slots=True)
class Outer:
    name: str
    count: int
    inner: Inner
    many: tuple[Inner, ...] = ()
    pair: tuple[int, str] = (1, "x")
    limit: float | None = None
    free: Mapping[str, Json] = field(default_factory=dict)


FULL = Outer("n", 3, Inner("a", 0.5), (Inner("b", math.inf),), (2, "y"), 1.0, {"k": [1, {"deep": None}], "s": "t"})


def test_round_trip_through_text() -> None:
    assert from_json(Outer, json.loads(dumps(FULL))) == FULL


def test_non_finite_floats_become_texts_and_come_back() -> None:
    data = to_json([math.nan, math.inf, -math.inf, 1.5])
    assert data == ["nan", "inf", "-inf", 1.5]
    assert math.isnan(from_json(Inner, {"kind": "a", "share": "nan"}).share)


def test_numpy_values_become_plain_ones() -> None:
    given = {
        "a": np.float32(0.5),
        "b": np.int64(3),
        "c": np.array([[1, 2]]),
        "d": np.bool_(True),
        "e": np.float64("inf"),
    }
    assert to_json(given) == {"a": 0.5, "b": 3, "c": [[1, 2]], "d": True, "e": "inf"}


def test_dumps_is_canonical() -> None:
    assert dumps({"b": 1, "a": {"d": 2, "c": 3}}) == dumps({"a": {"c": 3, "d": 2}, "b": 1})
    assert dumps({"set": {"b", "a"}}) == dumps({"set": ["a", "b"]})


def test_any_text_can_be_encoded() -> None:
    text = "weird \udcff name"  # what Python makes of a file name that is no UTF-8
    assert json.loads(dumps({"file": text}).encode())["file"] == text


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": 3}, "expected str"),
        ({"count": "3"}, "expected int"),
        ({"count": True}, "expected int"),
        ({"count": 1.0}, "expected int"),
        ({"extra": 1}, "no field 'extra'"),
        ({"inner": {"kind": "c", "share": 1}}, "none of"),
        ({"inner": {"kind": "a"}}, "lacks the field 'share'"),
        ({"inner": {"kind": "a", "share": "half"}}, "half"),
        ({"inner": {"kind": "a", "share": True}}, "expected float"),
        ({"inner": []}, "expected an object"),
        ({"many": {}}, "expected a list"),
        ({"pair": [1]}, "zip"),
        ({"free": []}, "expected an object"),
        ({"limit": "much"}, "fits none"),
    ],
)
def test_a_wrong_shape_is_refused(change: dict[str, Json], told: str) -> None:
    data = to_json(FULL)
    assert isinstance(data, dict)
    with pytest.raises(ValueError, match=told):
        from_json(Outer, data | change)


def test_missing_required_field() -> None:
    with pytest.raises(ValueError, match="lacks the field 'name'"):
        from_json(Outer, {"count": 1, "inner": {"kind": "a", "share": 1}})


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(plain)
def test_plain_json_is_left_as_it_is(value: Json) -> None:
    assert json.loads(dumps(value)) == value
