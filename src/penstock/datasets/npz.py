"""An .npz file: x (or inputs, images) and y (or labels), x_test and y_test; or one array for each input of the model.

Whatever is not a label is an input. A sole input may have any name; several are named as the model names them. A name
that ends in ``_test`` is the part to evaluate, one that ends in ``_train`` is the same as the bare name.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.data import Dataset, DataSettings, Preprocessing, Split
from penstock.datasets import _checks
from penstock.errors import InputError
from penstock.progress import SILENT, Progress

if TYPE_CHECKING:
    import numpy as np

LABELS = ("y", "labels")
WRITE = "write it with numpy.savez(path, x=images, y=labels)"


def claims(spec: str) -> bool:
    """Tell whether ``spec`` names an .npz file, whether or not it is there."""
    return spec.lower().endswith(".npz")


def need(spec: str) -> None:
    """Raise ``InputError`` where the file isn't there."""
    if not Path(spec).expanduser().is_file():
        raise InputError("no-such-file", "there is no such file", where=spec, do="check --data")


def open(spec: str, settings: DataSettings, progress: Progress = SILENT) -> Dataset:
    """Read the arrays; objects are refused, nothing is unpickled.

    Raises ``InputError`` for a file that is absent, damaged or too large, for arrays that don't fit each other, and
    for samples or labels that are no finite numbers.
    """
    path = Path(spec).expanduser()
    train, test = _sorted_out(_read(path), spec)
    parts = [_split(part, spec) for part in (train, test)]
    first, second = parts
    if first is None:
        raise InputError("data-empty", "there are no arrays of samples", where=spec, do=WRITE)
    if second is not None:
        _checks.same_form(first, second, spec)
    classes = _checks.numbered_classes(first, second)
    return Dataset(path.name, first, second, classes, Preprocessing(), _checks.digest(first, second))


def _read(path: Path) -> dict[str, np.ndarray]:
    import numpy as np

    if not path.is_file():
        raise InputError("no-such-data", "there is no such file", where=str(path), do="check the path given to --data")
    try:
        with zipfile.ZipFile(path) as file:
            size = sum(member.file_size for member in file.infolist())
        if size > _checks.LIMIT_BYTES:
            raise _checks.too_large(size, str(path))
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files if isinstance(arrays[name], np.ndarray)}
    except InputError:
        raise
    except Exception as error:  # a parser meets arbitrary bytes: whatever it raises is about the file
        reason = "it holds Python objects" if "allow_pickle" in str(error) else str(error) or type(error).__name__
        raise InputError(
            "unreadable-data", f"the .npz can't be read: {reason}", where=str(path), do=f"{WRITE}, numbers only"
        ) from error


def _sorted_out(arrays: dict[str, np.ndarray], where: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Deal the arrays to the two parts, under their bare names."""
    parts: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] = ({}, {})
    for name, array in arrays.items():
        bare = name.removesuffix("_train").removesuffix("_test")
        part = parts[name.endswith("_test")]
        if bare in part:
            what = f"{bare!r} and {bare + '_train'!r} are both there"
            raise InputError("data-ambiguous", what, where=where, do=WRITE)
        part[bare] = array
    return parts


def _split(part: dict[str, np.ndarray], where: str) -> Split | None:
    """Check one part; ``None`` where it is absent. A sole input goes under ""."""
    if not part:
        return None
    given = [name for name in LABELS if name in part]
    if len(given) > 1:
        raise InputError("data-ambiguous", "both 'y' and 'labels' are there", where=where, do="keep one of them")
    labels = part[given[0]] if given else None
    inputs = {name: array for name, array in part.items() if name not in LABELS}
    if len(inputs) == 1:
        inputs = {"": next(iter(inputs.values()))}
    return _checks.split(inputs, labels, where)
