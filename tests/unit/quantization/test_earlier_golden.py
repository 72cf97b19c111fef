"""`quantize --golden`: calibration samples held against the golden set of an earlier build."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest

from penstock import api, golden, store
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
    with pytest.raises(UsageError, match="calibrates nothing"):
        api.quantize(model, tmp_path / "q.onnx", settings, data=saved(tmp_path, 1), golden=folder)


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        (IMAGES[:4, :, :7], "shape"),
        (IMAGES[:4].astype(np.float64), "wants float32"),
        (IMAGES[:4] * np.nan, "NaN"),
        (IMAGES[:4] * 0, "nothing in the 4"),
        (np.array([["a"]]), "wants float32"),
    ],
)
def test_a_golden_set_that_can_not_be_compared_is_refused(
    model: Path, tmp_path: Path, inputs: np.ndarray, told: str
) -> None:
    made = Golden({"kind": "data"}, "reference", ("y",), (4,), ({"x": inputs},), ((np.zeros((4, 5), np.float32),),))
    (tmp_path / "golden").mkdir()
    golden.write(made, tmp_path / "golden")
    with pytest.raises(InputError, match=told) as caught:
        api.quantize(model, tmp_path / "q.onnx", data=saved(tmp_path, 1), golden=tmp_path / "golden")
    assert caught.value.id == "bad-golden" and not (tmp_path / "q.onnx").exists()


@pytest.mark.parametrize("damage", ["logits", "no logits", "text", "empty", "compressed"])
def test_a_golden_set_of_somebody_else(model: Path, tmp_path: Path, damage: str) -> None:
    folder = earlier(tmp_path / "golden", "x")
    facts = json.loads((folder / "golden.json").read_text())
    if damage == "logits":
        facts["logits"] = 5
    elif damage == "no logits":
        del facts["logits"]
    elif damage == "text":
        (folder / "inputs.npz").write_bytes(b"PK and so on")
    elif damage == "empty":
        (folder / "inputs.npz").write_bytes(b"")
    else:
        np.savez_compressed(folder / "inputs.npz", **{"0/x": np.zeros((4, 3, 500, 500), np.float32)})
    facts["inputs_sha256"] = store.file_digest(folder / "inputs.npz")
    (folder / "golden.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match="the golden set can't be read") as caught:
        api.quantize(model, tmp_path / "q.onnx", data=saved(tmp_path, 1), golden=folder)
    assert caught.value.id == "bad-golden"


def test_a_golden_set_is_not_written_over(model: Path, tmp_path: Path) -> None:
    folder = earlier(tmp_path / "golden", "x")
    with pytest.raises(UsageError, match="golden"):
        api.quantize(model, folder / "golden.json", data=saved(tmp_path, 1), golden=folder)


def test_a_model_whose_inputs_go_elsewhere_first(tiny: ModuleType, tmp_path: Path) -> None:
    """Then the inputs themselves are held against those of the golden set: here a Relu is first."""
    made = tiny.conv()
    made.graph.node.insert(0, onnx.helper.make_node("Relu", ["x"], ["r0"], name="first"))
    made.graph.node[1].input[0] = "r0"
    path = Path(tiny.save(made, tmp_path / "relu.onnx"))
    folder = earlier(tmp_path / "golden", "x")
    with pytest.raises(InputError, match="the mean of 'x'"):
        api.quantize(path, tmp_path / "q.onnx", data=saved(tmp_path, 255), golden=folder)
