"""What every data source checks before its arrays become a data set: types, shapes, lengths, numbers, labels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from penstock.data import Samples, Split
from penstock.datasets._stored import Stored
from penstock.errors import InputError

if TYPE_CHECKING:
    import numpy as np

LIMIT_BYTES = 4 << 30  # what is larger than this was not meant to be
CHUNK_BYTES = 4 << 20  # what is looked at at a time
MOST_CLASSES = 100_000


def too_large(size_bytes: int, where: str) -> InputError:
    """Build the error for a data set beyond the limit."""
    return InputError(
        "data-too-large",
        f"the data set takes {size_bytes / (1 << 30):.1f} GiB or more; the limit is {LIMIT_BYTES >> 30} GiB",
        where=where,
        do="give fewer samples: a few thousand are enough to calibrate and to evaluate",
    )


def samples(value: Any, where: str) -> Samples:
    """Check raw samples ``(N, …)`` and return them in native byte order: what lies in a file as it is, else an array.

    Raises ``InputError`` for no samples, for values that are no real numbers, and for NaN or infinity.
    """
    import numpy as np

    array = value if isinstance(value, Stored) else np.asarray(value)
    if array.dtype.kind not in "buif" or array.dtype.itemsize > 8:
        raise InputError(
            "data-wrong-dtype",
            f"the samples are of type {array.dtype}, which is no type of real numbers",
            where=where,
            do="save them as uint8, float32 or another numeric type, all of one shape",
        )
    if array.ndim == 0:
        raise InputError(
            "data-wrong-shape",
            "the samples have no axes; the first axis counts the samples",
            where=where,
            do="give an array of shape (samples, …)",
        )
    if 0 in array.shape:
        raise InputError(
            "data-empty",
            f"there are no samples: the array's shape is {array.shape}",
            where=where,
            do="check how the data set was written",
        )
    if array.dtype.kind == "f":
        _refuse_non_finite(array, where)
    return array if isinstance(array, Stored) else array.astype(array.dtype.newbyteorder("="), copy=False)


def chunks(array: Samples) -> Iterator[np.ndarray]:
    """Yield all samples in order, a few megabytes at a time."""
    size = max(CHUNK_BYTES * len(array) // max(array.nbytes, 1), 1)
    for start in range(0, len(array), size):
        yield array[start : start + size]


def _refuse_non_finite(array: Samples, where: str) -> None:
    import numpy as np

    count, first, seen = 0, 0, 0
    for chunk in chunks(array):
        with np.errstate(over="ignore"):  # beyond float32 is infinite to the model, so it is refused as well
            bad = ~np.isfinite(chunk.astype(np.float32, copy=False))
        if bad.any():
            if not count:
                first = seen + int(np.argmax(bad.reshape(len(chunk), -1).any(1)))
            count += int(bad.sum())
        seen += len(chunk)
    if count:
        raise InputError(
            "data-not-finite",
            f"{count} values are NaN, infinite or beyond float32; the first is in sample {first}",
            where=where,
            do="drop or repair these samples",
        )


def labels(value: Any, count: int, where: str) -> np.ndarray:
    """Check labels for ``count`` samples and return them as ``(count,)`` int64. Raises ``InputError``."""
    import numpy as np

    array = np.asarray(value)
    if array.dtype.kind not in "ui":
        raise InputError(
            "labels-wrong-dtype",
            f"the labels are of type {array.dtype}; they must be whole numbers, the indices of the classes",
            where=where,
            do="save them with .astype('int64')",
        )
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise InputError(
            "labels-wrong-shape",
            f"the labels have the shape {array.shape}; one class index for each sample is expected",
            where=where,
            do="turn one-hot labels into indices with .argmax(1)",
        )
    if len(array) != count:
        raise InputError(
            "data-lengths-differ",
            f"there are {count} samples and {len(array)} labels",
            where=where,
            do="give one label for each sample",
        )
    if int(array.min()) < 0 or int(array.max()) >= MOST_CLASSES:
        raise InputError(
            "labels-out-of-range",
            f"the labels go from {array.min()} to {array.max()}; class indices go from 0 to {MOST_CLASSES - 1}",
            where=where,
            do="number the classes 0, 1, 2, …",
        )
    return array.astype(np.int64)


def split(arrays: Mapping[str, Any], label_values: Any, where: str) -> Split:
    """Check one part of a data set, arrays by input name and labels or ``None``. Raises ``InputError``."""
    checked = {name: samples(value, f"{where}, array {name!r}" if name else where) for name, value in arrays.items()}
    if not checked:
        raise InputError("data-empty", "there are no arrays of samples", where=where, do="name the samples 'x'")
    counts = {name: len(array) for name, array in checked.items()}
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{name!r} has {count}" for name, count in counts.items())
        raise InputError(
            "data-lengths-differ",
            f"the inputs differ in their number of samples: {shown}",
            where=where,
            do="give every input the same number of samples",
        )
    count = next(iter(counts.values()))
    return Split(checked, None if label_values is None else labels(label_values, count, where))


def same_form(train: Split, evaluate: Split, where: str) -> None:
    """Check that both parts have the same inputs, shapes and types. Raises ``InputError``."""
    for name, array in train.arrays.items():
        other = evaluate.arrays.get(name)
        if other is None or other.shape[1:] != array.shape[1:] or other.dtype != array.dtype:
            found = "missing" if other is None else f"{other.dtype} of shape {other.shape[1:]}"
            raise InputError(
                "data-parts-differ",
                f"the samples to train on are {array.dtype} of shape {array.shape[1:]}, those to evaluate are {found}",
                where=where + (f", input {name!r}" if name else ""),
                do="write both parts in the same way",
            )


def numbered_classes(*parts: Split | None) -> tuple[str, ...]:
    """Name the classes by their indices, up to the greatest label; empty where nothing is labelled."""
    greatest = [int(part.labels.max()) for part in parts if part is not None and part.labels is not None]
    return tuple(str(index) for index in range(max(greatest) + 1)) if greatest else ()


def digest(*parts: Split | None) -> str:
    """Return the SHA-256 over every array's name, type, shape and bytes, and the labels, as hex."""
    import numpy as np

    total = hashlib.sha256()
    for part in parts:
        if part is None:
            total.update(b"none\n")
            continue
        labelled: dict[str, Samples] = {} if part.labels is None else {"labels": part.labels}
        for kind, arrays in (("input", part.arrays), ("labels", labelled)):
            for name, array in sorted(arrays.items()):
                total.update(f"{kind} {name!r} {array.dtype.str} {array.shape}\n".encode())
                for chunk in chunks(array):
                    total.update(np.ascontiguousarray(chunk).data)
    return total.hexdigest()
