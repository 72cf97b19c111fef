"""Outliers: calibration samples whose input reaches far beyond that of all others, a dead pixel or a click.

One such sample would widen the first layers' grids for all that come after, or shift the means that biases are
corrected by. Whoever asks for ``minmax`` or ``moving-average`` gets all that was seen; every other way looks at the
samples without them, and says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.calibration import Batch, Batches, size
from penstock.data import OneRun

if TYPE_CHECKING:
    from penstock.jsonable import Json

    Array = np.ndarray[Any, np.dtype[Any]]

USUAL = 98.0  # per cent of the samples whose input is usual
FAR = 3.0  # times the usual extreme: a sample beyond stands out
LEAST = 32  # samples among which one can stand out


@dataclass(frozen=True, slots=True)
class Outlier:
    """A sample that stands out: its number, the input, how far it reaches and how far the others do."""

    sample: int
    called: str
    name: str
    reaches: float
    usual: float

    @property
    def text(self) -> str:
        """Say it in words."""
        return (
            f"{self.called} stands out: {self.name!r} reaches {self.reaches:.4g} in it and "
            f"{self.usual:.4g} in the others; it is left out (--ranges minmax takes it in)"
        )


def find(batches: Batches) -> list[Outlier]:
    """Return the samples that stand out, at most one in fifty."""
    reached: dict[str, list[Array]] = {}
    start = 0
    for batch in batches:
        real = _real(batches, start, size(batch))
        for name, array in batch.items():
            if array.dtype.kind == "f" and array.ndim and array.size:
                rows = array.reshape(1, -1) if isinstance(batch, OneRun) else array[:real].reshape(real, -1)
                reached.setdefault(name, []).append(np.maximum(rows.max(axis=1), -rows.min(axis=1)))
        start += size(batch)
    found = []
    for name, parts in reached.items():
        ends = np.concatenate(parts).astype(np.float64)
        if len(ends) < LEAST:
            continue
        usual = float(np.percentile(ends, USUAL, method="lower"))
        far = np.flatnonzero(ends > FAR * usual) if usual > 0 else ()
        found += [Outlier(int(i), batches.called(int(i)), name, float(ends[i]), usual) for i in far]
    return found


def without(batches: Batches, outliers: list[Outlier]) -> Batches:
    """Return the batches with each of those samples replaced by its neighbour, so that a fixed batch stays whole.

    Where a batch holds no other sample, the batch before it stands in, or the one after.
    """
    if not outliers:
        return batches
    gone = {one.sample for one in outliers}

    def cleaned(given: Iterator[Batch]) -> Iterator[Batch]:
        start, waiting = 0, 0
        before: Batch | None = None
        for batch in given:
            count = size(batch)
            real = _real(batches, start, count)  # what fills up a batch repeats its samples in order
            usual = [place for place in range(count) if start + place % real not in gone]
            index = np.arange(count)
            for place in set(range(count)) - set(usual):
                index[place] = usual[0] if usual else place
            start += count
            if usual:
                before = batch if len(usual) == count else _taken(batch, index, count)
                yield from [before] * (1 + waiting)
                waiting = 0
            elif before is None:
                waiting += 1
            else:
                yield _taken(before, index % size(before), size(before))

    told: dict[str, Json] = {**batches.description, "left_out": [*sorted(gone)]} if batches.description else {}
    return replace(
        batches, again=lambda: cleaned(batches.again()), equal=lambda: cleaned(batches.equal()), description=told
    )


def _real(batches: Batches, start: int, count: int) -> int:
    """Return how many samples a batch holds beside those that fill it up."""
    return max(min(count, batches.count - start), 1)


def _taken(batch: Batch, index: Array, count: int) -> Batch:
    found = {name: array[index] if array.ndim and len(array) == count else array for name, array in batch.items()}
    return OneRun(found) if isinstance(batch, OneRun) else found
