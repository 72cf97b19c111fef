"""Every real model can be inspected; where the architecture is published, so are its figures."""

import os
from pathlib import Path

import pytest

from penstock.stages.inspect import inspect

SHARED = Path(os.environ.get("PENSTOCK_SHARED", Path(__file__).parents[3] / "shared")) / "models"
NAMES = sorted(path.parent.name for path in SHARED.glob("*/model.onnx"))


@pytest.mark.shared
@pytest.mark.parametrize("name", NAMES)
def test_every_model_is_inspected(name: str) -> None:
    found = inspect(SHARED / name / "model.onnx")
    assert found.nodes == sum(use.count for use in found.operators)
    assert found.weight_bytes <= found.size_bytes
    assert found.parameters == sum(layer.parameters for layer in found.layers)
    assert found.peak.bytes > 0 or found.peak.unknown_values
    assert len(found.unknown) == sum(layer.macs is None for layer in found.layers)
    assert not [note for note in found.notes if "can't" in note or "failed" in note]


@pytest.mark.shared
def test_published_figures() -> None:
    # YOLOX-Nano at 416: 0.91 M parameters, 1.08 GFLOPs (counted as 2·MACs), by its authors' table
    yolox = inspect(SHARED / "yolox-nano" / "model.onnx")
    assert round(yolox.parameters / 1e6, 1) == 0.9
    assert abs(2 * yolox.macs / 1e9 - 1.08) < 0.06
    # super-resolution at 224: 5×5×64, 3×3×64×64, 3×3×64×32, 3×3×32×9 at every pixel
    pixel = 25 * 64 + 9 * 64 * 64 + 9 * 64 * 32 + 9 * 32 * 9
    assert inspect(SHARED / "super-resolution-10" / "model.onnx").macs == 224 * 224 * pixel
    # MNIST-8: 5×5 convolutions of 1→8 and 8→16 channels at 28 and 14, then 256×10
    mnist = inspect(SHARED / "mnist-8" / "model.onnx")
    assert mnist.macs == 28 * 28 * 8 * 25 + 14 * 14 * 16 * 8 * 25 + 2560
    assert mnist.parameters == 8 * 25 + 8 + 16 * 8 * 25 + 16 + 2560 + 10


@pytest.mark.shared
def test_custom_domains_are_named() -> None:
    assert inspect(SHARED / "espcn-qonnx-quant" / "model.onnx").custom_domains == ("onnx.brevitas",)
    assert inspect(SHARED / "openseeface-landmarks" / "model.onnx").custom_domains == ("com.microsoft",)
