"""Orders of axes: what a tensor looks like in a world where its axes are in another order.

An *order* ``p`` of a value ``v`` says that another value ``v'`` holds the same elements with ``v = Transpose(v', p)``:
axis ``i`` of ``v`` is axis ``p[i]`` of ``v'``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from penstock.rewriting.site import attribute
from penstock.rewriting.sizes import Size, equal

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

Order = tuple[int, ...]


def order_of(node: ir.Node, rank: int | None) -> Order | None:
    """Return the order of axes that a Transpose gives; without one it reverses them."""
    order = attribute(node, "perm")
    if order is not None:
        return tuple(int(axis) for axis in order)
    return None if rank is None else tuple(reversed(range(rank)))


def inverse(order: Order) -> Order:
    """Return the order that takes it back."""
    return tuple(order.index(axis) for axis in range(len(order)))


def after(order: Order, then: Sequence[int]) -> Order:
    """Return the order of ``Transpose(v, then)`` where ``order`` is that of ``v``."""
    return tuple(order[axis] for axis in then)


def reordered(items: Sequence[Any], order: Order) -> list[Any]:
    """Put one thing for each axis of ``v`` in the order of the axes of ``v'``."""
    return [items[axis] for axis in inverse(order)]


def keeps(shape: Sequence[Size] | None, order: Order) -> bool:
    """Whether ``v'`` is ``v`` itself: no axis moves, or only axes of size 1 in a way that leaves the shape."""
    if shape is None or len(shape) != len(order):
        return order == tuple(range(len(order)))
    last = -1
    for place, size in zip(order, shape, strict=True):
        if size != 1:
            if place < last:
                return False
            last = place
    return order == tuple(range(len(order))) or all(map(equal, reordered(shape, order), shape))


def without(order: Order, gone: set[int]) -> Order:
    """Return the order that is left when axes of ``v`` go."""
    kept = [place for axis, place in enumerate(order) if axis not in gone]
    return tuple(sorted(kept).index(place) for place in kept)


def within(order: Order, new: set[int]) -> Order:
    """Return the order when axes come to ``v``, at the same places in ``v'``."""
    kept = [axis for axis in range(len(order) + len(new)) if axis not in new]
    places = iter(order)
    return tuple(axis if axis in new else kept[next(places)] for axis in range(len(order) + len(new)))


def turned_constant(array: Array, order: Order) -> Array:
    """Return a constant that broadcasts to ``v`` as one that broadcasts to ``v'``."""
    whole = array.reshape((1,) * (len(order) - array.ndim) + array.shape).transpose(inverse(order))
    while whole.ndim > array.ndim and whole.shape[0] == 1:
        whole = whole[0]
    return whole
