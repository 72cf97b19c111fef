"""What dynamo writes without its own optimizer comes down to what its clean export has, and to less for one runtime."""

import importlib.util
from pathlib import Path

import pytest

from penstock.stages.optimize import MAIN, OptimizeSettings, optimize

NETS = Path(__file__).parents[2] / "benchmarks" / "nets.py"
NODES = {"cifar10": 17, "senet": 46, "encoder": 79, "lstm": 9}  # that we reach; benchmarks/raw_exports.py has more nets


@pytest.fixture(scope="module")
def export() -> object:
    spec = importlib.util.spec_from_file_location("nets", NETS)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.export


@pytest.mark.torch
@pytest.mark.parametrize("name", NODES)
def test_a_raw_export_is_as_small_as_a_clean_one(name: str, export: object, tmp_path: Path) -> None:
    for kind in ("dynamo", "raw-dynamo"):
        (tmp_path / kind).mkdir()
        path = export(name, kind, tmp_path / f"{kind}.onnx")
        done = optimize(path, OptimizeSettings(strict=True), tmp_path / kind)
        assert done.nodes_after == NODES[name], kind
        assert done.proof.state == "proved" and done.settled


@pytest.mark.torch
def test_one_runtime_needs_less(export: object, tmp_path: Path) -> None:
    path = export("cifar10", "raw-dynamo", tmp_path / "raw.onnx")
    done = optimize(path, OptimizeSettings(strict=True, runtime="ort"), tmp_path)
    assert (done.nodes_before, done.nodes_after) == (25, 17)
    assert done.specialised is not None and done.specialised.nodes[-1] == 11 and not done.specialised.refused
    assert done.proof.state == "proved" and (tmp_path / MAIN).is_file()
