"""`quantize --golden`: calibration samples held against the golden set of an earlier build."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from penstock import api, golden
from penstock.data import DataSettings
from penstock.errors import InputError, UsageError
from penstock.golden import Golden
from penstock.stages.quantize import QuantizeSettings

RNG = np.random.default_rng(0)
IMAGES = RNG.random((64, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def model(tiny: ModuleType, tmp_path: Path) -> Path:
    return Path(tiny.save(tiny.conv(), tmp_path / "m.onnx"))


def earlier(folder: Path, name: str, kind: str = "data") -> Path:
    made = Golden({"kind": kind}, "reference", ("y",), (4,), ({name: IMAGES[:4]},), ((np.zeros((4, 10), np.float32),),))
    folder.mkdir()
    golden.write(made, folder)
    return folder


def saved(tmp_path: Path, factor: float) -> DataSettings:
    np.savez(tmp_path / "d.npz", x=IMAGES * np.float32(factor))
    return DataSettings(data=str(tmp_path / "d.npz"))


@pytest.mark.parametrize("method", ["static", "ort"])
def test_data_of_one_scale_passes_and_of_another_is_refused(model: Path, tmp_path: Path, method: str) -> None:
    folder, settings = earlier(tmp_path / "golden", "x"), QuantizeSettings(method=method)
    api.quantize(model, tmp_path / "q.onnx", settings, data=saved(tmp_path, 1), golden=folder)
    assert (tmp_path / "q.onnx").exists()
    data = saved(tmp_path, 255)
    api.quantize(model, tmp_path / "pixels.onnx", settings, data=data)  # its own golden set has the same fault
    with pytest.raises(InputError, match="of another scale than the golden set"):
        api.quantize(model, tmp_path / "other.onnx", settings, data=data, golden=folder)
    assert not (tmp_path / "other.onnx").exists()


@pytest.mark.parametrize(("name", "kind", "told"), [("image", "data", "inputs image"), ("x", "seeded", "signature")])
def test_a_golden_set_that_tells_nothing_is_refused(
    model: Path, tmp_path: Path, name: str, kind: str, told: str
) -> None:
    with pytest.raises(InputError, match=told):
        api.quantize(
            model, tmp_path / "q.onnx", data=saved(tmp_path, 1), golden=earlier(tmp_path / "golden", name, kind)
        )


def test_a_damaged_golden_set_is_refused(model: Path, tmp_path: Path) -> None:
    folder = earlier(tmp_path / "golden", "x")
    (folder / "inputs.npz").write_bytes(b"")
    with pytest.raises(InputError, match="was changed after it was written"):
        api.quantize(model, tmp_path / "q.onnx", data=saved(tmp_path, 1), golden=folder)


def test_no_golden_set_without_effect(model: Path, tmp_path: Path) -> None:
    folder = earlier(tmp_path / "golden", "x")
    with pytest.raises(UsageError, match="no effect without --data"):
        api.quantize(model, tmp_path / "q.onnx", golden=folder)
    settings = QuantizeSettings(method="dynamic")
    with pytest.raises(UsageError, match="looks at no samples"):
        api.quantize(model, tmp_path / "q.onnx", settings, data=saved(tmp_path, 1), golden=folder)
