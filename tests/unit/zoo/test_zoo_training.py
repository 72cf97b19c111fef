"""Training a network of the zoo: what it writes, how it resumes, what it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from penstock import store, zoo
from penstock.data import DataSettings
from penstock.errors import InputError
from penstock.progress import SILENT
from penstock.zoo.recipe import Recipe

RECIPE = Recipe(epochs=2, batch=300, bfloat16=False, peak_learning_rate=0.01, mean=(0.5,) * 3, std=(0.25,) * 3)
SETTINGS = DataSettings(scale=1 / 255, mean=(0.5,) * 3, std=(0.25,) * 3, layout="NCHW")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write 600 images to train on and 20 to test, and put a small recipe into the zoo."""
    small = zoo.Trained("small", RECIPE, "digits.safetensors", select=24)
    monkeypatch.setattr(zoo, "RECIPES", {"digits": small})
    rng = np.random.default_rng(0)
    path = tmp_path / "data.npz"
    np.savez(
        path,
        x=rng.integers(0, 256, (600, 32, 32, 3), np.uint8), y=np.arange(600) % 10,
        x_test=rng.integers(0, 256, (20, 32, 32, 3), np.uint8), y_test=np.arange(20) % 10,
    )  # fmt: skip
    return str(path)


class Interrupts:
    """Progress that gives Ctrl-C after so many epochs, and counts them."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.epochs: list[int] = []

    def begin(self, stage: str, note: str = "") -> None: ...

    def step(self, done: int, total: int, note: str = "") -> None:
        self.epochs.append(done)
        if done == self.after:
            raise KeyboardInterrupt

    def end(self, note: str = "") -> None: ...


@pytest.mark.torch
def test_an_interrupted_run_goes_on_and_ends_the_same(tmp_path: Path, data: str) -> None:
    pytest.importorskip("torch")
    from safetensors.numpy import load_file

    from penstock.zoo.training import train

    with pytest.raises(KeyboardInterrupt):
        train("digits", data, SETTINGS, tmp_path / "a", Interrupts(after=1))
    assert not (tmp_path / "a" / "digits.safetensors").exists()
    resumed = Interrupts(after=0)
    card = train("digits", data, SETTINGS, tmp_path / "a", resumed)
    assert resumed.epochs == [2]
    whole = train("digits", data, SETTINGS, tmp_path / "b", SILENT)
    first, second = (load_file(tmp_path / name / "digits.safetensors") for name in "ab")
    for name, tensor in first.items():
        np.testing.assert_allclose(tensor, second[name], rtol=1e-4, atol=1e-5)
    assert card.held_out_samples == 24 and card.trained_samples == 576 and card.test_samples == 20
    assert card.test_interval[0] <= card.test_accuracy <= card.test_interval[1]
    assert card.command == "penstock zoo train digits --data DIR"
    assert card.weights_sha256 == store.file_digest(tmp_path / "a" / "digits.safetensors")
    assert dataclasses.replace(whole, weights_sha256="") == dataclasses.replace(card, weights_sha256="")
    written = json.loads((tmp_path / "a" / "digits.json").read_text())
    assert written["data_digest"] == card.data_digest and written["recipe"]["epochs"] == 2


@pytest.mark.torch
@pytest.mark.parametrize(
    ("arrays", "settings", "id"),
    [
        ({"x": np.zeros((600, 28, 28, 3), np.uint8)}, SETTINGS, "data-wrong-shape"),
        ({"x": np.zeros((600, 32, 32, 3), np.float32)}, SETTINGS, "data-wrong-shape"),
        ({"y": np.arange(600) % 9}, SETTINGS, "data-wrong-classes"),
        ({"x_test": None, "y_test": None}, SETTINGS, "data-wrong-classes"),
        ({"y_test": None}, SETTINGS, "data-wrong-classes"),
        ({}, DataSettings(), "data-wrong-preprocessing"),
        ({"x": np.zeros((590, 32, 32, 3), np.uint8), "y": np.arange(590) % 10}, SETTINGS, "data-too-small"),
    ],
    ids=range(7),
)
def test_data_that_does_not_fit(
    tmp_path: Path, data: str, arrays: dict[str, np.ndarray | None], settings: DataSettings, id: str
) -> None:
    pytest.importorskip("torch")
    from penstock.zoo.training import train

    given: dict[str, np.ndarray | None] = {
        "x": np.zeros((600, 32, 32, 3), np.uint8), "y": np.arange(600) % 10,
        "x_test": np.zeros((9, 32, 32, 3), np.uint8), "y_test": np.arange(9),
    }  # fmt: skip
    given |= arrays
    for name in ("x", "y"):  # both parts alike, so that it is the recipe that refuses
        value = given[name]
        if value is not None and given[name + "_test"] is not None:
            given[name + "_test"] = value[:9]
    np.savez(data, **{name: array for name, array in given.items() if array is not None})  # type: ignore[arg-type]
    with pytest.raises(InputError) as caught:
        train("digits", data, settings, tmp_path / "out", SILENT)
    assert caught.value.id == id
    assert caught.value.do
    assert not (tmp_path / "out").exists()
