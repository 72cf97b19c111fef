"""Finding the source of a data set, and overriding its preprocessing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from penstock import registry
from penstock.data import DataSettings, Preprocessing
from penstock.datasets import find
from penstock.errors import InputError


@pytest.fixture
def images(tmp_path: Path) -> str:
    path = tmp_path / "images.npz"
    np.savez(path, x=np.zeros((2, 4, 5, 3), np.uint8), y=np.array([0, 1]))
    return str(path)


def test_every_source_has_a_summary_and_answers_to_odd_texts() -> None:
    found = {plugin.name: plugin for plugin in registry.describe("datasets")}
    assert set(found) >= {"callable", "cifar10", "digits", "folder", "npz"}
    for name, plugin in found.items():
        assert plugin.summary and not plugin.problem
        source = registry.load("datasets", name)
        for spec in ("", "\0", "~nobody-of-that-name/x", "a" * 10_000, "/"):
            assert source.claims(spec) in (True, False)  # type: ignore[attr-defined]


@pytest.mark.parametrize("spec", ["", "nothing-like-it", "no/such/folder", "zoo:digits"])
def test_nothing_reads_it(spec: str) -> None:
    with pytest.raises(InputError) as caught:
        find(spec, DataSettings())
    assert caught.value.id == "unknown-data"
    for name in ("callable", "cifar10", "digits", "folder", "npz"):
        assert f"{name}: " in caught.value.do


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no data source reads"):
        find(str(tmp_path), DataSettings())


def test_settings_replace_what_they_give(images: str) -> None:
    assert find(images, DataSettings()).preprocessing == Preprocessing()
    given = DataSettings(scale=0.5, mean=(1.0, 2.0, 3.0), std=(2.0,), layout="NCHW")
    preprocessing = find(images, given).preprocessing
    assert preprocessing == Preprocessing(0.5, (1.0, 2.0, 3.0), (2.0,), "NCHW")
    ready = preprocessing.apply(np.full((2, 4, 5, 3), 8, np.uint8))
    assert ready.shape == (2, 3, 4, 5)
    assert ready[0, :, 0, 0].tolist() == [1.5, 1.0, 0.5]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (DataSettings(mean=(0.5, 0.5)), "--mean has 2 values"),
        (DataSettings(std=(1.0,) * 4), "--std has 4 values"),
        (DataSettings(std=(1.0, 0.0, 1.0)), "above 0"),
    ],
)
def test_preprocessing_that_does_not_fit(images: str, settings: DataSettings, says: str) -> None:
    with pytest.raises(InputError) as caught:
        find(images, settings)
    assert says in caught.value.what


def test_no_layout_for_flat_samples(tmp_path: Path) -> None:
    path = tmp_path / "flat.npz"
    np.savez(path, x=np.zeros((2, 4)))
    with pytest.raises(InputError, match="layout NCHW"):
        find(str(path), DataSettings(layout="NCHW"))
