"""Sizes: whatever the names stand for, arithmetic on products is arithmetic on numbers."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from penstock.rewriting import sizes
from penstock.rewriting.sizes import Product, Size

NAMES = ("batch", "h", "w", "b")
products = st.builds(
    lambda factor, names: Product(factor, tuple(sorted(names))),
    st.integers(1, 12), st.lists(st.sampled_from(NAMES), min_size=1, max_size=3),
)  # fmt: skip
known = st.one_of(st.integers(0, 40), products)
anything = st.one_of(known, st.none())
assignments = st.fixed_dictionaries({name: st.integers(0, 9) for name in NAMES})
positive = st.fixed_dictionaries({name: st.integers(1, 9) for name in NAMES})


def value(size: Size, assigned: dict[str, int]) -> int:
    assert size is not None
    return size if isinstance(size, int) else size.factor * math.prod(assigned[name] for name in size.names)


@given(known, known, assignments)
def test_times(a: Size, b: Size, assigned: dict[str, int]) -> None:
    assert value(sizes.times(a, b), assigned) == value(a, assigned) * value(b, assigned)
    assert sizes.times(a, b) == sizes.times(b, a)


@given(st.lists(known, max_size=5), assignments)
def test_product(items: list[Size], assigned: dict[str, int]) -> None:
    assert value(sizes.product(items), assigned) == math.prod(value(item, assigned) for item in items)


@given(anything, anything, positive)
def test_divided(a: Size, b: Size, assigned: dict[str, int]) -> None:
    found = sizes.divided(a, b)
    if found is not None:
        assert value(found, assigned) * value(b, assigned) == value(a, assigned)
    elif isinstance(a, int) and isinstance(b, int):
        assert b == 0 or a % b


@given(known, known, positive)
def test_dividing_takes_back_what_times_did(a: Size, b: Size, assigned: dict[str, int]) -> None:
    if b != 0 and a != 0:
        assert sizes.divided(sizes.times(a, b), b) == a


@given(anything, anything, st.sampled_from([1, -1]), assignments)
def test_plus(a: Size, b: Size, sign: int, assigned: dict[str, int]) -> None:
    found = sizes.plus(a, b, sign)
    if found is not None:
        assert value(found, assigned) == value(a, assigned) + sign * value(b, assigned)
    elif isinstance(a, int) and isinstance(b, int):
        raise AssertionError("numbers can always be added")


@given(products)
def test_a_name_says_the_same_wherever_it_stands(size: Product) -> None:
    assert sizes.named(str(size)) == size


@given(st.text())
def test_any_text_is_a_name(text: str) -> None:
    found = sizes.named(text)
    assert found.names and found.factor >= 0
    assert sizes.named(str(found)) == found


def test_a_text_that_is_no_product_is_one_name() -> None:
    for text in ("floor(h/2)*2", "a + b*c", "2*", "*", "a**b", "7*7", "batch"):
        assert sizes.named(text) == Product(1, (text,))
    assert sizes.named("w*3*h") == Product(3, ("h", "w"))


shapes = st.lists(st.lists(st.one_of(st.just(1), known), max_size=4), min_size=1, max_size=3)


@given(shapes, positive)
def test_broadcast(given_shapes: list[list[Size]], assigned: dict[str, int]) -> None:
    found = sizes.broadcast(given_shapes)
    assert found is not None
    numbers = [tuple(value(size, assigned) for size in shape) for shape in given_shapes]
    try:
        wanted = np.broadcast_shapes(*numbers)
    except ValueError:
        return  # no run gets that far
    assert len(found) == len(wanted)
    for size, number in zip(found, wanted, strict=True):
        assert size is None or value(size, assigned) == number


def test_broadcast_without_a_rank_is_unknown() -> None:
    assert sizes.broadcast([(1, 2), None]) is None
    assert sizes.broadcast([]) == ()


@given(anything, anything)
def test_equal_never_says_yes_of_what_is_not_known(a: Size, b: Size) -> None:
    assert sizes.equal(a, b) == (a is not None and b is not None and a == b)


def test_same() -> None:
    batch = Product(1, ("batch",))
    assert sizes.same((batch, 3), (batch, 3)) and sizes.same((), ())
    assert not sizes.same((batch, 3), (3, batch)) and not sizes.same((None,), (None,))
    assert not sizes.same((1,), (1, 1)) and not sizes.same(None, None)
