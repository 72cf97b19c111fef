"""Data sources: one file each, found by the registry; each offers what ``penstock.data.DatasetSource`` asks for."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import cast

from penstock import apart, registry
from penstock.data import Dataset, DatasetSource, DataSettings, Preprocessing
from penstock.errors import InputError, MissingError
from penstock.progress import SILENT, Progress


def find(spec: str, settings: DataSettings, progress: Progress = SILENT) -> Dataset:
    """Open the data set ``spec`` with the first source that reads it; settings override its preprocessing.

    Raises ``InputError`` where no source reads it or something is wrong with it, ``MissingError`` for an absent extra.
    """
    name, chosen = _named(spec)
    foreign = apart.foreign("datasets", name)
    if foreign:
        apart.open_first(name, spec, settings)
    with registry.blamed("datasets", name), apart.own_streams() if foreign else contextlib.nullcontext():
        dataset = chosen.open(spec, settings, progress)
    if foreign:
        apart.need_dataset(name, dataset)
    return replace(dataset, preprocessing=_overridden(dataset, settings, spec))


def source(spec: str) -> DatasetSource:
    """Find the first source that reads ``spec``. Raises ``InputError`` where none does."""
    return _named(spec)[1]


def _named(spec: str) -> tuple[str, DatasetSource]:
    understood = []
    for name in registry.claimants("datasets"):
        try:
            candidate = cast(DatasetSource, registry.load("datasets", name))
        except MissingError:
            continue  # a broken plug-in of somebody else's; `penstock list` tells what is wrong with it
        if _claims(candidate, spec):
            return name, candidate
        understood.append(f"{name}: {((candidate.__doc__ or '').strip().splitlines() or [''])[0]}")
    what = f"no data source reads {spec!r}" if spec else "no data set is given"
    if "/" in spec and ":" not in spec and not Path(spec).expanduser().exists():
        what = f"there is no file or folder {spec!r}"
    raise InputError("unknown-data", what, where="--data", do="\n".join(["these are read:", *understood]))


def _claims(source: DatasetSource, spec: str) -> bool:
    try:
        return source.claims(spec) is True  # a text that says no is no yes
    except Exception:  # a third party's fault breaks no other source
        return False


def _overridden(dataset: Dataset, settings: DataSettings, where: str) -> Preprocessing:
    """Return the data set's preprocessing with what the settings say in its place; check that it fits the arrays."""
    own = dataset.preprocessing
    result = Preprocessing(
        settings.scale or own.scale, settings.mean or own.mean, settings.std or own.std, settings.layout or own.layout
    )
    if result == own:
        return own
    if dataset.whole:
        what = "the data is given as the whole of what a run reads, and no preprocessing is declared for it"
        raise InputError("bad-preprocessing", what, where=where, do="do it in the function that gives the data")
    if any(value <= 0 for value in result.std):
        raise InputError(
            "bad-preprocessing", f"the standard deviations {result.std} must be above 0", where=where, do="check --std"
        )
    for name, array in dataset.train.arrays.items():
        shown = f"input {name!r}, " if name else ""
        for flag, values in (("--mean", result.mean), ("--std", result.std)):
            if len(values) > 1 and array.shape[1:][-1:] != (len(values),):
                raise InputError(
                    "bad-preprocessing",
                    f"{flag} has {len(values)} values, but the last axis of the samples {array.shape[1:]} isn't "
                    "that long",
                    where=shown + where,
                    do="give one value for each channel; the channels are the samples' last axis",
                )
        if result.layout == "NCHW" and array.ndim < 3:
            raise InputError(
                "bad-preprocessing",
                f"layout NCHW moves the last axis to the front, and samples of shape {array.shape[1:]} have no other",
                where=shown + where,
                do="give --layout as-is",
            )
    return result
