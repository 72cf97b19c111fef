"""Calibration samples: gone through as often as a quantizer needs them, in batches that fit the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from penstock.feeds import Feeds
    from penstock.jsonable import Json

Batch = Mapping[str, "np.ndarray"]


@dataclass(frozen=True, slots=True)
class Batches:
    """Feeds in the model's form. Going through them gives every sample once; the last batch may be smaller.

    A model of fixed batch gets that size, its last batch filled up with samples that were there before.
    """

    again: Callable[[], Iterator[Batch]]
    equal: Callable[[], Iterator[Batch]]
    count: int  # samples
    description: Mapping[str, Json] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Batch]:
        """Begin anew."""
        return self.again()

    def whole(self) -> Iterator[Batch]:
        """Yield batches of equal size, for a library that asks for it: the last may overlap the one before."""
        return self.equal()


def of_feeds(feeds: Feeds, size: int) -> Batches:
    """Cut the samples of a role into batches of ``size``."""
    return Batches(
        lambda: (batch for _, batch in feeds.batches(size)),
        lambda: (batch for _, batch in feeds.batches(size, whole=True)),
        feeds.count, feeds.description,
    )  # fmt: skip


def of_list(batches: Iterable[Batch]) -> Batches:
    """Go through batches that are at hand, as they are."""
    held = batches if isinstance(batches, (list, tuple)) else list(batches)
    count = sum(size(batch) for batch in held)
    return Batches(lambda: iter(held), lambda: iter(held), count)


def size(batch: Batch) -> int:
    """Return the number of samples in a batch: the length of its inputs' first axis, 1 without any."""
    return max((len(array) for array in batch.values() if array.ndim), default=1)
