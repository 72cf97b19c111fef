"""Outliers: calibration samples whose input reaches far beyond that of all others, a dead pixel or a click.

One such sample would widen the first layers' grids for all that come after, or shift the means that biases are
corrected by. Whoever asks for ``minmax`` gets all that was seen; every other way looks at the samples without them, and
says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.calibration import Batch, Batches, size

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
    for batch in batches:
        for name, array in batch.items():
            if array.dtype.kind == "f" and array.ndim and array.size:
                rows = array.reshape(len(array), -1)
                reached.setdefault(name, []).append(np.maximum(rows.max(axis=1), -rows.min(axis=1)))
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
    """Return the batches with each of those samples replaced by its neighbour, so that a fixed batch stays whole."""
    if not outliers:
        return batches
    gone = {one.sample for one in outliers}

    def cleaned(given: Iterator[Batch]) -> Iterator[Batch]:
        start = 0
        for batch in given:
            count = size(batch)
            index = np.arange(count)
            for place in range(count):
                if start + place in gone:
                    index[place] = next((i for i in range(count) if start + i not in gone), place)
            start += count
            hit = bool((index != np.arange(count)).any())
            yield {k: a[index] if a.ndim and len(a) == count else a for k, a in batch.items()} if hit else batch

    told: dict[str, Json] = {**batches.description, "left_out": [*sorted(gone)]} if batches.description else {}
    return replace(
        batches, again=lambda: cleaned(batches.again()), equal=lambda: cleaned(batches.equal()), description=told
    )
