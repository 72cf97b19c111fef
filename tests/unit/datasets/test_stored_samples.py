"""Samples that stay in files: rows as numpy gives them, no memory for a large set, a file that is cut while in use."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from penstock.data import DataSettings, Samples, Selected, Split
from penstock.datasets import find
from penstock.datasets._stored import Spool, Stored
from penstock.errors import InputError, StoreError
from penstock.store import OwnFile

ROWS = np.random.default_rng(0).normal(size=(40, 3, 5)).astype(np.float32)


def spooled(rows: np.ndarray) -> Samples:
    spool = Spool()
    for start in range(0, len(rows), 7):
        spool.append(rows[start : start + 7])
    return spool.finish()


@pytest.mark.parametrize(
    "rows",
    [
        slice(None),
        slice(3, 9),
        slice(38, 60),
        slice(5, 5),
        slice(30, 2, -3),
        np.array([4, 4, -1, 0]),
        np.array([], np.int64),
        np.arange(40) % 3 == 0,
    ],
    ids=str,
)
def test_rows_are_those_of_the_array(rows: slice | np.ndarray) -> None:
    found = spooled(ROWS)
    assert (found.shape, found.dtype, found.ndim, found.nbytes, len(found)) == (ROWS.shape, ROWS.dtype, 3, 2400, 40)
    np.testing.assert_array_equal(found[rows], ROWS[rows])


def test_selected_rows_of_selected_rows() -> None:
    split = Split({"": spooled(ROWS)}, np.arange(40))
    part = split.take(np.arange(39, 0, -2)).take(np.array([0, 5, 2]))
    chosen = part.arrays[""]
    assert isinstance(chosen, Selected) and not isinstance(chosen.samples, Selected)
    assert (chosen.shape, chosen.nbytes, len(part)) == ((3, 3, 5), 180, 3)
    np.testing.assert_array_equal(chosen[:], ROWS[[39, 29, 35]])
    np.testing.assert_array_equal(part.labels, [39, 29, 35])


def test_a_row_beyond_the_end_is_an_error_as_with_an_array() -> None:
    with pytest.raises(IndexError):
        spooled(ROWS)[np.array([40])]


def saved(path: Path, rows: np.ndarray, save: Callable[..., None]) -> str:
    save(path, x=rows, y=np.arange(len(rows)) % 4)
    return str(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_of_any_length_takes_no_memory(tmp_path: Path, save: Callable[..., None]) -> None:
    rows = np.tile(ROWS, (40_000, 1, 1))  # 96 MB
    spec = saved(tmp_path / "large.npz", rows, save)
    del rows
    tracemalloc.start()
    try:
        dataset = find(spec, DataSettings())
        part = dataset.train.take(np.arange(0, len(dataset.train), 7))
        assert part.arrays[""][100:164].shape == (64, 3, 5)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(dataset.train.arrays[""], Stored)
    labels = 3 * 8 * len(dataset.train)
    assert peak < 32e6 + labels


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_the_digest_is_that_of_an_array_in_memory(
    tmp_path: Path, save: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = saved(tmp_path / "x.npz", ROWS, save)
    first = find(spec, DataSettings())
    monkeypatch.setattr("penstock.datasets._stored.HELD_BYTES", 1 << 20)
    again = find(spec, DataSettings())
    assert isinstance(again.train.arrays[""], np.ndarray)
    assert first.digest == again.digest
    np.testing.assert_array_equal(first.train.arrays[""][:], again.train.arrays[""])


def test_a_file_that_is_cut_while_it_is_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.datasets._stored.HELD_BYTES", 0)
    spec = saved(tmp_path / "x.npz", ROWS, np.savez)
    dataset = find(spec, DataSettings())
    with Path(spec).open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(InputError, match="cut while it was in use") as caught:
        dataset.train.arrays[""][:]
    assert caught.value.where == spec


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.datasets._stored.HELD_BYTES", 0)
    monkeypatch.setattr("penstock.store.nameless", lambda: OwnFile("/dev/full", "r+b"))
    with pytest.raises(StoreError, match="the disk is full"):
        find(saved(tmp_path / "x.npz", ROWS, np.savez_compressed), DataSettings())


@pytest.mark.parametrize("shape", [(-40, -3, 5), (40, -3, -5), (1,) * 70 + (40, 3, 5)])
def test_a_header_that_claims_what_can_not_be(tmp_path: Path, shape: tuple[int, ...]) -> None:
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        file.writestr("x.npy", head.getvalue() + ROWS.tobytes())
    with pytest.raises(InputError) as caught:
        find(str(tmp_path / "x.npz"), DataSettings())
    assert caught.value.id in ("unreadable-data", "data-empty") and "internal" not in caught.value.what


def test_a_label_without_axes(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=ROWS, y=np.array(3))
    with pytest.raises(InputError, match="one class index for each sample"):
        find(str(tmp_path / "x.npz"), DataSettings())
