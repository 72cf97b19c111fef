"""Calibration samples on their way to a quantizer: what the model is tried on, how they are cut, what is said of them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from penstock import api, calibration, trial
from penstock.cli import run
from penstock.data import DataSettings
from penstock.stages.quantize import QuantizeSettings

RNG = np.random.default_rng(0)


def rows(count: int) -> np.ndarray:
    return RNG.normal(size=(count, 6)).astype(np.float32)


@pytest.mark.parametrize(
    ("batch", "count", "sizes"),
    [("n", 64, [1, 32, 24]), ("n", 73, [1, 32]), ("n", 4, [1, 3]), (4, 64, [4])],
)
def test_a_model_is_tried_on_a_batch_of_each_size(
    batch: str | int, count: int, sizes: list[int], tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def survive(model: Path, runs: Sequence[Mapping[str, np.ndarray]], where: str) -> None:
        tried.extend(len(feeds["x"]) for feeds in runs)

    monkeypatch.setattr(trial, "survive", survive)
    np.savez(tmp_path / "d.npz", x=rows(count))
    model = tiny.save(tiny.mlp(batch), tmp_path / "m.onnx")
    api.quantize(model, tmp_path / "q.onnx", QuantizeSettings(method="ort"), data=DataSettings(str(tmp_path / "d.npz")))
    assert tried == sizes


def test_what_fails_on_a_sample_that_was_not_tried_is_an_error(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tiny.save(tiny.gather(), tmp_path / "m.onnx")
    ids = RNG.integers(0, 11, (150, 4))
    np.savez("d.npz", ids=ids)
    numbers = api.role_feeds(path, DataSettings("d.npz"), 0).calibrate.numbers
    assert numbers is not None
    ids[numbers[40]] = 4000  # beyond the table, in the second batch
    np.savez("d.npz", ids=ids)
    tried = calibration.tried(api.role_feeds(path, DataSettings("d.npz"), 0).calibrate, 32)
    assert all((feeds["ids"] < 11).all() for feeds in tried)
    assert run(["quantize", "m.onnx", "--data", "d.npz", "-o", "q.onnx", "--json", "-q"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["id"] == "run-failed" and error["where"] == "m.onnx" and "see that the samples suit" in error["do"]
    assert not Path("q.onnx").exists()


def test_batches_of_a_model_of_fixed_batch_have_that_size(tiny: ModuleType, tmp_path: Path) -> None:
    path = tiny.save(tiny.mlp(1), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=rows(80))
    batches = calibration.of_feeds(api.role_feeds(path, DataSettings(str(tmp_path / "d.npz")), 0).calibrate, 32)
    some = batches.some(16)
    assert (batches.size, some.count, sum(len(batch["x"]) for batch in some)) == (1, 16, 16)
