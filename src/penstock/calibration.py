"""Calibration samples: gone through as often as a quantizer needs them, in batches that fit the model."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, cast

from penstock.data import OneRun
from penstock.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from penstock.feeds import Feeds
    from penstock.jsonable import Json
    from penstock.store import Cache

Batch = Mapping[str, "np.ndarray"]
FEW = 32  # samples below which a user is told how few there are
SYNTHETIC, RANDOM = "synthetic (BatchNorm statistics)", "random"  # what samples are where there is no data


@dataclass(frozen=True, slots=True)
class Batches:
    """Feeds in the model's form. Going through them gives every sample once; the last batch may be smaller.

    A model of fixed batch gets that size, its last batch filled up with samples that were there before.
    """

    again: Callable[[], Iterator[Batch]]
    equal: Callable[[], Iterator[Batch]]
    count: int  # samples
    description: Mapping[str, Json] = field(default_factory=dict)
    size: int = 0  # of a batch
    golden: Batches | None = None  # what the result will be held against, to see that both are of one scale
    cache: Cache | None = None  # where a quantizer may keep what it saw
    numbers: np.ndarray | None = None  # (count,) of the samples in the user's data
    reached: dict[str, np.ndarray] = field(default_factory=dict, compare=False)  # what check saw; see reaches

    def __iter__(self) -> Iterator[Batch]:
        """Begin anew."""
        return self.again()

    def some(self, most: int) -> Batches:
        """Return the first batches, of about ``most`` samples in all, for what doesn't need every one."""
        if self.count <= most:
            return self
        number = max(1, most // max(self.size, 1))
        held = min(number * max(self.size, 1), self.count)
        return replace(
            self, again=lambda: itertools.islice(self.again(), number),
            equal=lambda: itertools.islice(self.equal(), number), count=held, description={}, reached={},
        )  # fmt: skip

    def called(self, sample: int) -> str:
        """Name a sample by its place, and by its place in the user's data, which is dealt in another order."""
        return called(sample, self.numbers)

    def whole(self) -> Iterator[Batch]:
        """Yield batches of equal size, for a library that asks for it: the last may overlap the one before."""
        return self.equal()


def of_feeds(feeds: Feeds, size: int, *, golden: Feeds | None = None, cache: Cache | None = None) -> Batches:
    """Cut the samples of a role into batches of ``size``."""
    return Batches(
        lambda: (batch for _, batch in feeds.batches(size)),
        lambda: (batch for _, batch in feeds.batches(size, whole=True)),
        feeds.count, feeds.description, feeds.fixed_batch or size,
        None if golden is None else of_feeds(golden, size), cache, feeds.numbers,
    )  # fmt: skip


def tried(feeds: Feeds, size: int) -> list[Batch]:
    """Return what a model is tried on before it is calibrated: a sample, and a batch of each size that there is.

    To try all samples would cost as much as the calibration, and a copy of them on the disk.
    """
    found: list[Batch] = [feeds.first(1)]
    if feeds.fixed_batch is not None:  # there is one size, and that sample stands in a batch of it
        return found
    found += [batch for _, batch in itertools.islice(feeds.batches(size), 1)]
    if left := feeds.count % max(min(size, feeds.count), 1):
        found.append(feeds.rows(feeds.count - left, feeds.count))
    return found


def of_list(batches: Iterable[Batch]) -> Batches:
    """Go through batches that are at hand, as they are."""
    held = batches if isinstance(batches, (list, tuple)) else list(batches)
    sizes = [size(batch) for batch in held]
    return Batches(lambda: iter(held), lambda: iter(held), sum(sizes), size=max(sizes, default=0))


def called(sample: int, numbers: np.ndarray | None) -> str:
    """Name a calibration sample; ``numbers`` are those of the samples in the user's data."""
    known = numbers is not None and sample < len(numbers)
    return f"calibration sample {sample}" + (f" ({numbers[sample]} of the data)" if known else "")  # type: ignore[index]  # known


def size(batch: Batch) -> int:
    """Return the number of samples in a batch: the length of its inputs' first axis, 1 without any, 1 of one run."""
    if isinstance(batch, OneRun):
        return 1
    return max((len(array) for array in batch.values() if array.ndim), default=1)


def reaches(batches: Batches) -> Mapping[str, np.ndarray]:
    """Return the largest magnitude in each sample, (n,), of each float input that has a row for each sample.

    Kept from :func:`check`: data is read from where it lies once less.
    """
    if not batches.reached:
        check(batches)
    return batches.reached


def check(batches: Iterable[Batch]) -> None:
    """Raise ``InputError`` for a sample that holds NaN or infinity, and where all samples are one number everywhere.

    Made-up samples may be: of a number without bounds, say.
    """
    import numpy as np

    numbers = batches.numbers if isinstance(batches, Batches) else None
    made_up = isinstance(batches, Batches) and batches.description.get("kind") == "seeded"
    held: dict[str, tuple[float, float, int]] = {}  # of each input: the least value, the greatest, how many
    start, varied = 0, made_up
    reached: dict[str, list[np.ndarray]] = {}
    for batch in batches:
        count_here = size(batch)
        for name, array in batch.items():
            if array.dtype.kind not in "biuf":  # neither compared nor finite
                varied = True
            elif array.size:
                by_sample = array.ndim > 0 and len(array) == count_here
                rows = array.reshape(count_here if by_sample else 1, -1)
                lows, highs = rows.min(axis=1), rows.max(axis=1)
                low, high = lows.min(), highs.max()
                if not (np.isfinite(low) and np.isfinite(high)):
                    raise _not_finite(name, rows, start, numbers)
                least, most, count = held.get(name, (low, high, 0))
                held[name] = (min(least, low), max(most, high), count + array.size)
                if by_sample and array.dtype.kind == "f":
                    reached.setdefault(name, []).append(np.maximum(highs, -lows))
        start += count_here
    if not varied and held and all(low == high and count > 1 for low, high, count in held.values()):
        values = ", ".join(f"{name!r} is {float(low):g}" for name, (low, _, _) in held.items())
        what = f"there is nothing in the {start} calibration samples: {values} everywhere"
        raise InputError("constant-samples", what, do="look at how the data was made, and at --scale, --mean and --std")
    if isinstance(batches, Batches):
        batches.reached.update({name: np.concatenate(parts) for name, parts in reached.items()})


def _not_finite(name: str, array: np.ndarray, start: int, numbers: np.ndarray | None) -> InputError:
    """Name the first sample, a row of ``(n, …)``, that isn't finite; ``start`` is the number of the batch's first."""
    import numpy as np

    rows = ~np.isfinite(array)
    row = int(np.argmax(rows.any(axis=1)))
    kind = "NaN" if np.isnan(array[row]).any() else "infinity"
    what = f"{called(start + row, numbers)} has {kind} in its input {name!r} ({int(rows[row].sum())} values)"
    return InputError("not-finite", what, do="take the sample out of the data")


def explained(error: InputError, model: Path | str, batches: Iterable[Batch], instead: str = "") -> InputError:
    """Return an error of a model that can't be run on samples with its place and a cure; any other as it is."""
    if error.id not in ("run-failed", "runtime-refuses"):
        return error
    made_up = isinstance(batches, Batches) and batches.description.get("kind") == "seeded"
    told = "see that the samples suit the model"
    if made_up:
        told = "the inputs are made up and may not suit the model: give real ones with --data"
    return InputError(error.id, error.what, where=str(model), do=f"{told}; or {instead}" if instead else told)


def few(batches: Batches) -> str:
    """Say how few samples there are; "" where they suffice."""
    if batches.count >= FEW:
        return ""
    whole = batches.description.get("of")
    told = f"only {batches.count} calibration sample{'' if batches.count == 1 else 's'}"
    return told if whole is None else f"{told} of the {whole} that there are"


def accounted(facts: dict[str, Json], batches: Batches) -> dict[str, Json]:
    """Return a quantizer's facts with what its samples were, and a note where they were made up or are few.

    A method that looked at no samples has nothing to tell of them.
    """
    described = batches.description
    if not facts.get("calibration_samples"):
        return facts
    notes = [*cast("list[Json]", facts.get("notes") or [])]
    if described.get("kind") != "seeded":
        told = few(batches)  # which a method that knows how stable its scales are has said already
        if told and not any(str(note).startswith(told) for note in notes):
            notes.append(f"{told}; give {FEW} or more")
        return {**facts, **({"calibration": "data"} if "kind" in described else {}), "notes": notes}
    if "statistics" in described:
        statistics = cast("dict[str, Json]", described["statistics"])
        notes.append(f"no data: the samples were made up to meet {met(statistics)}; give real ones with --data")
        return {**facts, "calibration": SYNTHETIC, "statistics": statistics, "notes": notes}
    why = f" ({described['no_statistics']})" if "no_statistics" in described else ""
    notes.append(f"no data: the ranges come from random inputs and may not fit real ones{why}; give some with --data")
    return {**facts, "calibration": RANDOM, "notes": notes}


def met(statistics: Mapping[str, Json]) -> str:
    """Say how well samples meet the statistics that they were made for."""
    made, random = (cast("dict[str, float]", statistics[key]) for key in ("made", "random"))
    count = cast("int", statistics["normalizations"])
    return (
        f"the statistics of {count} BatchNormalization{'' if count == 1 else 's'} (means are off by "
        f"{made['mean_off']:.2f} of a standard deviation, deviations by {made['deviation_off']:.0%}; those of random "
        f"inputs by {random['mean_off']:.2f} and {random['deviation_off']:.0%})"
    )
