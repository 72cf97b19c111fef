"""``--exclude`` takes names and patterns, in every method alike."""

from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest

from penstock import calibration
from penstock.errors import UsageError
from penstock.quantization.prepare import fitting
from penstock.stages.quantize import QuantizeSettings, quantize

ROWS = np.random.default_rng(0).normal(size=(48, 6)).astype(np.float32)
OWN = {
    "dynamic": {"force_small": True}, "weight-only": {"least_weights": 0, "weight_bits": 8, "weight_rounding": "rtn"},
}  # fmt: skip
METHODS = ("static", "ort", "dynamic", "weight-only", "fp16")  # of a net as small nothing can be bf16


def made(tiny: ModuleType, folder: Path, method: str, *exclude: str) -> tuple[onnx.ModelProto, dict]:
    settings = QuantizeSettings(method=method, exclude=exclude, **OWN.get(method, {}))  # type: ignore[arg-type]
    samples = calibration.of_list([{"x": ROWS}])
    facts = quantize(tiny.save(tiny.mlp(), folder / "m.onnx"), samples, settings, folder / f"{'_'.join(exclude)}.onnx")
    return onnx.load(folder / f"{'_'.join(exclude)}.onnx"), dict(facts)


def test_which_names_fit() -> None:
    names = ("conv1", "conv2", "head[0]", "fc")
    assert fitting(names, ("conv*",)) == {"conv1", "conv2"}
    assert fitting(names, ("conv?", "fc")) == {"conv1", "conv2", "fc"}
    assert fitting(names, ("head[0]",)) == {"head[0]"}, "a name is a name, whatever it holds"
    assert fitting(names, ("CONV*", "con")) == frozenset()


@pytest.mark.parametrize("method", METHODS)
def test_a_pattern_is_its_names(method: str, tiny: ModuleType, tmp_path: Path) -> None:
    by_name, _ = made(tiny, tmp_path, method, "second")
    by_pattern, _ = made(tiny, tmp_path, method, "sec?nd*")
    everything, _ = made(tiny, tmp_path, method)
    assert by_pattern.SerializeToString() == by_name.SerializeToString() != everything.SerializeToString()


@pytest.mark.parametrize("method", METHODS)
def test_a_pattern_that_fits_nothing_is_refused(method: str, tiny: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no node named 'third\*'") as caught:
        made(tiny, tmp_path, method, "third*")
    assert caught.value.id == "unknown-node"
