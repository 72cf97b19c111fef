"""What a quantized variant was made by stands in its key in the cache: another maker, another variant."""

import importlib
import importlib.metadata
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from penstock import running, store, synthetic_feeds, transforms
from penstock.data import DataSettings
from penstock.frontends import Source
from penstock.stages import quantize
from penstock.stages.export import ExportSettings
from penstock.stages.quantize import QuantizeSettings
from penstock.store import Cache


@pytest.fixture
def cached(tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], bool]:
    """Make a variant by a method that copies the model; tell whether it came out of the cache."""
    path = tiny.save(tiny.mlp(), tmp_path / "m.onnx")
    cache = Cache(tmp_path / "cache")
    parent = transforms.export_source(Source(str(path)), ExportSettings(), lambda: None, "", cache)
    feeds = running.role_feeds(path, DataSettings(), 0).calibrate
    monkeypatch.setattr(quantize, "quantize", lambda model, batches, settings, into: shutil.copy(model, into) and {})

    def made(method: str) -> bool:
        done = transforms.quantize_variant(parent, feeds, QuantizeSettings(method=method), cache)
        assert isinstance(done, transforms.Transformed)
        return done.cached

    return made


def changed(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """Let the source of a module have another digest."""
    file, real = Path(str(importlib.import_module(module).__file__)), store.file_digest
    monkeypatch.setattr(store, "file_digest", lambda path: "changed" if path == file else real(path))


@pytest.mark.parametrize(
    "module",
    [
        "penstock.quantization.grid",
        "penstock.quantization.half.convert",
        "penstock.passes.fold_batchnorm",
        "penstock.passes._order",
        "penstock.rewriting.run",
        "penstock.opsets.whole",
    ],
)
def test_code_that_makes_the_result_is_in_the_key(
    module: str, cached: Callable[[str], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [cached("fp16"), cached("fp16")] == [False, True]
    changed(monkeypatch, module)
    assert [cached("fp16"), cached("fp16")] == [False, True]


def test_the_library_of_a_method_is_in_the_key(cached: Callable[[str], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    real, at = importlib.metadata.version, "1.0"
    monkeypatch.setattr(importlib.metadata, "version", lambda name: at if name == "nncf" else real(name))
    assert [cached("nncf"), cached("static"), cached("nncf"), cached("static")] == [False, False, True, True]
    at = "2.0"
    assert [cached("nncf"), cached("static")] == [False, True]  # which doesn't run it


@pytest.mark.parametrize("module", ["penstock.passes.fold_batchnorm", "penstock.rewriting.run"])
def test_synthetic_samples_are_made_anew_where_the_passes_change(
    module: str, tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny.save(tiny.conv(), tmp_path / "m.onnx")
    roles = running.role_feeds(path, DataSettings(), 0)
    made: list[Path] = []
    real = synthetic_feeds._make
    monkeypatch.setattr(synthetic_feeds, "_make", lambda path, *rest: made.append(path) or real(path, *rest))
    small = DataSettings(calibrate=2)
    for _ in range(2):
        synthetic_feeds.of_model(path, roles, small, 0, Cache(tmp_path / "cache"))
    assert len(made) == 1
    changed(monkeypatch, module)
    found = synthetic_feeds.of_model(path, roles, small, 0, Cache(tmp_path / "cache"))
    assert len(made) == 2 and np.isfinite(found.calibrate.rows(0, 1)["x"]).all()
