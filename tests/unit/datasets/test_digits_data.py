"""The digits: the same pixels everywhere, no original in two parts."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from penstock.data import Dataset, DataSettings
from penstock.datasets import digits, find
from penstock.errors import MissingError

DIGEST = "2a8019905bc5225bdf4c36d1faa4daaa6ae34d7df3a7710b717b1a6c43738034"


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    pytest.importorskip("sklearn")
    return find("digits", DataSettings())


def test_shapes_and_classes(dataset: Dataset) -> None:
    assert dataset.train.arrays[""].shape == (1200, 32, 32, 3)
    assert dataset.evaluate is not None and dataset.evaluate.arrays[""].shape == (597, 32, 32, 3)
    assert dataset.train.arrays[""].dtype == np.uint8
    assert dataset.classes == tuple("0123456789")
    assert dataset.train.labels is not None
    originals = np.bincount(np.concatenate([dataset.train.labels, dataset.evaluate.labels]))
    assert np.abs(np.bincount(dataset.train.labels) - originals * 1200 / 1797).max() < 1.5


def test_the_pixels_are_frozen(dataset: Dataset) -> None:
    assert dataset.digest == DIGEST


def test_preprocessing_centres_the_pixels(dataset: Dataset) -> None:
    ready = dataset.preprocessing.apply(dataset.train.arrays[""])
    assert ready.shape == (1200, 3, 32, 32)
    assert abs(float(ready.mean())) < 0.05
    assert abs(float(ready.std()) - 1) < 0.05


def test_copies_differ_and_keep_their_labels(dataset: Dataset) -> None:
    images, labels = digits.distorted(2, seed=1)
    assert images.shape == (2400, 32, 32, 3) and images.dtype == np.uint8
    np.testing.assert_array_equal(labels, np.tile(dataset.train.labels, 2))
    own = dataset.train.arrays[""]
    assert not any(np.array_equal(images[row], own[row % 1200]) for row in range(0, 2400, 100))
    assert not np.array_equal(images[0], images[1200])
    np.testing.assert_array_equal(digits.distorted(1, seed=1)[0], images[:1200])
    assert not np.array_equal(digits.distorted(1, seed=2)[0], images[:1200])


def test_sampling_is_bilinear() -> None:
    image = np.arange(64.0).reshape(1, 8, 8)
    row = np.array([[[0.0, 0.5, 7.0, -1.0, 7.5, 20.0]]])
    column = np.array([[[0.0, 0.5, 7.0, 3.0, 7.0, 3.0]]])
    sampled = digits._sample(image, row, column)[0, 0]
    np.testing.assert_allclose(sampled[:4], [0.0, (0 + 1 + 8 + 9) / 4, 63.0, 0.0])
    np.testing.assert_allclose(sampled[4], 63 / 2)  # half beyond the edge
    np.testing.assert_allclose(sampled[5], 0.0, atol=0.02)


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingError) as caught:
        find("digits", DataSettings())
    assert "penstock[demo]" in caught.value.do
