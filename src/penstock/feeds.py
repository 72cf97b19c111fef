"""Feeds: samples in a model's own form, named, checked and cut into batches, from data or from a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock import inputs, roles
from penstock.data import OneRun
from penstock.errors import InputError
from penstock.jsonable import to_json
from penstock.signature import Signature

if TYPE_CHECKING:
    import numpy as np

    from penstock.data import Dataset, DataSettings, Preprocessing, Split
    from penstock.jsonable import Json

SEEDED_LIMIT_BYTES = 64_000_000  # a golden set that was made up is no better for being larger


@dataclass(frozen=True, slots=True)
class Feeds:
    """``count`` samples for a model. ``description`` says what they are, for every record made with them."""

    description: Mapping[str, Json]
    count: int
    labels: np.ndarray | None  # (count,) int64
    fixed_batch: int | None
    rows: Callable[[int, int], dict[str, np.ndarray]]  # [start, stop) in the model's form
    numbers: np.ndarray | None = None  # (count,) of the samples in the user's data; absent where they were made up
    whole: bool = False  # a sample is all that one run reads, without an axis that counts samples

    def batches(self, size: int, *, whole: bool = False) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Yield ``(real samples, feeds)``.

        A model of fixed batch gets that size, its last batch filled up by repetition. ``whole`` lets a last
        batch that would be smaller than the others overlap the one before.
        """
        size = self.fixed_batch or min(size, max(self.count, 1))
        for start in range(0, self.count, size):
            stop = min(start + size, self.count)
            if stop - start < size and whole and start:
                start = stop - size
            feeds = self.rows(start, stop)
            if stop - start < size and self.fixed_batch:
                feeds = inputs.resize_batch(feeds, size)
            yield stop - start, feeds

    def first(self, size: int) -> dict[str, np.ndarray]:
        """Return one batch of exactly ``size`` samples (a fixed batch: of that size), repeated as needed."""
        if self.whole:  # there is no other size
            return self.rows(0, 1)
        size = self.fixed_batch or size
        return inputs.resize_batch(self.rows(0, min(size, self.count)), size)


@dataclass(frozen=True, slots=True)
class RoleFeeds:
    """The four roles of one build's data."""

    golden: Feeds
    calibrate: Feeds
    select: Feeds | None  # absent without labels
    evaluate: Feeds | None
    classes: tuple[str, ...]
    preprocessing: Preprocessing | None


def from_seed(
    signature: Signature,
    bounds: Mapping[str, int],
    settings: DataSettings,
    seed: int,
    sizes: Mapping[str, int] | None = None,
) -> RoleFeeds:
    """Make golden and calibration inputs out of the signature; there is nothing to evaluate.

    ``sizes`` are those of dynamic axes, by :func:`penstock.inputs.size_key`.
    """

    def draw(batch: int, number: int) -> dict[str, np.ndarray]:
        return inputs.seeded(signature, batch=batch, seed=number, sizes=sizes, bounds=bounds)

    def make(count: int, offset: int, role: str) -> Feeds:
        def rows(start: int, stop: int) -> dict[str, np.ndarray]:
            import numpy as np

            batch = signature.fixed_batch
            if batch is not None:  # one seed a batch, so that any batch can be made by itself
                return draw(batch, seed + offset + start // batch)
            one = [draw(1, seed + offset + i) for i in range(start, stop)]
            scalars = {spec.name for spec in signature.inputs if spec.shape == ()}
            return {
                name: array if name in scalars else np.concatenate([feeds[name] for feeds in one])
                for name, array in one[0].items()
            }

        note = "made from the input signature, not real data"
        described: dict[str, Json] = {"kind": "seeded", "role": role, "seed": seed, "samples": count, "note": note}
        described |= {"sizes": dict(sizes)} if sizes else {}
        return Feeds(described, count, None, signature.fixed_batch, rows)

    size = sum(array.nbytes for array in draw(1, seed).values())
    batch = signature.fixed_batch or 1
    golden = max(min(settings.golden, batch * (SEEDED_LIMIT_BYTES // max(size, 1))), batch)
    calibrate = min(settings.calibrate, golden)
    return RoleFeeds(make(golden, 1, "golden"), make(calibrate, 1_000_003, "calibrate"), None, None, (), None)


def from_data(dataset: Dataset, signature: Signature, settings: DataSettings, seed: int) -> RoleFeeds:
    """Deal a data set into its roles and fit it to the model. Raises ``InputError`` where they don't fit."""
    import numpy as np

    train, evaluate = dataset.train, dataset.evaluate
    dealt, left = _dealt(dataset, settings, seed)
    rest = np.arange(len(evaluate)) if evaluate is not None else left
    evaluate = evaluate if evaluate is not None else train.take(rest)

    def make(split: Split, role: str, index: np.ndarray) -> Feeds:
        called = names(split, signature, dataset.name)
        single = {spec.name for spec in signature.inputs if spec.shape == ()}  # such a model takes a sample at a time

        def rows(start: int, stop: int) -> dict[str, np.ndarray]:
            made = {called[key]: array for key, array in dataset.feeds(split, start, stop).items()}
            if not dataset.whole:
                numbers = {key: array for key, array in split.arrays.items() if called[key] in single}
                made |= {called[key]: array[start : start + 1][0] for key, array in numbers.items() if array.ndim == 1}
            found = {spec.name: made[spec.name] for spec in signature.inputs}
            return OneRun(found) if dataset.whole else found

        check_fit(rows(0, 1), signature, dataset.name, whole=dataset.whole)
        described: dict[str, Json] = {
            "kind": "data", "role": role, "name": dataset.name, "digest": dataset.digest, "samples": len(split),
            "of": len(train if role != "evaluate" or dataset.evaluate is None else dataset.evaluate),
            "seed": seed, "rows_sha256": hashlib.sha256(np.ascontiguousarray(index, dtype="<i8").tobytes()).hexdigest(),
            "preprocessing": to_json(dataset.preprocessing),
        }  # fmt: skip
        described |= {"whole": True} if dataset.whole else {}
        batch = 1 if dataset.whole else signature.fixed_batch
        return Feeds(described, len(split), split.labels, batch, rows, index, dataset.whole)

    labelled = train.labels is not None
    return RoleFeeds(
        make(train.take(dealt.golden), "golden", dealt.golden),
        make(train.take(dealt.calibrate), "calibrate", dealt.calibrate),
        make(train.take(dealt.select), "select", dealt.select) if labelled and len(dealt.select) else None,
        make(evaluate, "evaluate", rest) if evaluate.labels is not None and len(evaluate) else None,
        dataset.classes,
        dataset.preprocessing,
    )


def _dealt(dataset: Dataset, settings: DataSettings, seed: int) -> tuple[roles.Roles, np.ndarray]:
    """Deal the training samples into roles; return them, and the rows that are left over, ascending."""
    import numpy as np

    train = dataset.train
    count = len(train)
    golden, calibrate, select = settings.golden, settings.calibrate, settings.select
    if train.labels is None:  # nothing selects or evaluates then: what isn't golden calibrates
        golden = min(golden, max(count // 8, 1))
        calibrate, select = min(calibrate, count - golden), 0
        least, why = 2, "one to calibrate on, and one to hold results against"
    else:  # a small set gives each role its share; without a test set of its own, evaluate needs one too
        share = 4 if dataset.evaluate is None else 2
        golden, calibrate, select = min(golden, count // 8), min(calibrate, count // share), min(select, count // 4)
        least, why = 8, "each plays one role only: golden, calibrate, select or evaluate"
    if golden < 1 or calibrate < 1:
        held = f"{count} sample{'' if count == 1 else 's'}" + ("" if train.labels is None else " with labels")
        do = f"give at least {least}" + ("" if train.labels is None else ", or leave the labels out: then 2 are enough")
        raise InputError("too-few-samples", f"{dataset.name} has {held}, and {least} are the least: {why}", do=do)
    dealt = roles.deal(train.labels, count, seed=seed, golden=golden, calibrate=calibrate, select=select)
    return dealt, np.setdiff1d(np.arange(count), np.concatenate([dealt.golden, dealt.calibrate, dealt.select]))


def training_rows(dataset: Dataset, settings: DataSettings, seed: int) -> np.ndarray:
    """Return the rows of the training samples that may be trained on, ascending: those of no role that judges.

    These are the calibration samples and what is left over, which is the evaluate role's where the data set has no test
    set of its own.
    """
    import numpy as np

    dealt, left = _dealt(dataset, settings, seed)
    return np.sort(np.concatenate([dealt.calibrate, left] if dataset.evaluate is not None else [dealt.calibrate]))


def names(split: Split, signature: Signature, dataset: str) -> dict[str, str]:
    """Map the data set's array names to the model's inputs."""
    wanted = [spec.name for spec in signature.inputs]
    if len(split.arrays) == 1 and len(wanted) == 1:
        return {next(iter(split.arrays)): wanted[0]}
    if set(split.arrays) == set(wanted):
        return {name: name for name in wanted}
    given = ", ".join(name or "one unnamed array" for name in split.arrays)
    what = f"{dataset} gives {given}; the model wants {', '.join(wanted)}"
    raise InputError("data-does-not-fit", what, do="give one array per input, under the input's name")


def check_fit(sample: Mapping[str, np.ndarray], signature: Signature, dataset: str, *, whole: bool = False) -> None:
    """Raise ``InputError`` where samples are of another type or shape than a model reads; ``dataset`` gives them."""
    counted = 0 if whole else 1  # axes that count samples
    do = "declare the preprocessing ([data] scale, mean, std, layout, image_size), or give data in the model's form"
    for spec in signature.inputs:
        array = sample[spec.name]
        shown = f"{array.dtype}{list(array.shape[counted:])}"
        if str(array.dtype) != spec.dtype:
            what = f"{dataset} gives {shown} per sample; the model's input {spec.text()} wants {spec.dtype}"
            raise InputError("data-does-not-fit", what, do=do)
        if spec.shape is None:
            continue
        fits = len(array.shape) == len(spec.shape) and all(
            not isinstance(want, int) or want == have
            for want, have in zip(spec.shape[counted:], array.shape[counted:], strict=True)
        )
        if not fits:
            shape = list(array.shape[counted:])
            what = f"{dataset} gives samples of shape {shape}; the model's input is {spec.text()}"
            raise InputError("data-does-not-fit", what, do=do)


def has_classes(signature: Signature) -> bool:
    """Tell whether top-1 means something: the first output is ``(N, classes)`` of floats, with two classes or more."""
    output = signature.outputs[0]
    if output.shape is None or len(output.shape) != 2 or not output.dtype.startswith(("float", "bfloat")):
        return False
    return not isinstance(output.shape[1], int) or output.shape[1] >= 2


def check_classes(feeds: RoleFeeds, signature: Signature, dataset: str) -> None:
    """Raise ``InputError`` when the model's first output has another number of classes than the data.

    Classes that are mere numbers may be fewer: a small sample need not hold the last one.
    """
    output = signature.outputs[0]
    if not feeds.classes or not output.shape or len(output.shape) != 2 or not isinstance(output.shape[1], int):
        return
    numbered = feeds.classes == tuple(str(i) for i in range(len(feeds.classes)))
    if output.shape[1] != len(feeds.classes) and not (numbered and output.shape[1] > len(feeds.classes)):
        what = f"{dataset} has {len(feeds.classes)} classes, the model's output {output.text()} has {output.shape[1]}"
        raise InputError("wrong-class-count", what, do="give the data set that the model was trained for")
