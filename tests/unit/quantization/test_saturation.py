"""Saturation on CPUs without VNNI: the emulation against plain arithmetic, and that 7 bits avoid it."""

from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from penstock import calibration
from penstock.quantization.saturation import SAFE_BITS, clipped, lacks_vnni
from penstock.stages.quantize import QuantizeSettings, quantize

RNG = np.random.default_rng(0)


def test_two_products_are_clipped_as_the_instruction_does() -> None:
    integers, weights = (
        np.array([[255, 255, 255, 1]], np.uint8),
        np.array([[127, 127, -128, 0], [64, 64, 1, 1]], np.int8),
    )
    got, want, share = clipped(integers, weights)
    assert want.tolist() == [[255 * 254 - 255 * 128, 255 * 128 + 256]]
    assert got.tolist() == [[32767 - 255 * 128, 255 * 128 + 256]] and share == 0.25


def test_seven_bits_never_clip() -> None:
    top = (1 << (SAFE_BITS - 1)) - 1
    integers = np.full((1, 64), 255, np.uint8)
    for value in (top, -top):
        _, _, share = clipped(integers, np.full((3, 64), value, np.int8))
        assert share == 0


@pytest.mark.parametrize(
    ("target", "flags", "lacks"),
    [
        ("avx2", ("avx512_vnni",), True), ("avx512", (), True), ("vnni", (), False),
        ("host", ("avx2", "fma"), True), ("host", ("avx2", "avx512_vnni"), False), ("host", ("asimd",), False),
        ("host", ("avx2", "avx_vnni"), False),
    ],
)  # fmt: skip
def test_it_is_known_from_the_features_of_the_cpu(target: str, flags: tuple[str, ...], lacks: bool) -> None:
    assert lacks_vnni(target, flags) is lacks


@pytest.mark.parametrize(("target", "most"), [("avx2", 63), ("vnni", 127)])
def test_weights_keep_to_the_bits_of_the_target(target: str, most: int, tiny: ModuleType, tmp_path: Path) -> None:
    source = tiny.save(tiny.mlp(), tmp_path / "m.onnx")
    rows = RNG.normal(size=(64, 6)).astype(np.float32)
    facts = quantize(
        source, calibration.of_list([{"x": rows}]), QuantizeSettings(target_cpu=target), tmp_path / "q.onnx"
    )
    held = [numpy_helper.to_array(one) for one in onnx.load(tmp_path / "q.onnx").graph.initializer]
    assert max(np.abs(array.astype(int)).max() for array in held if array.dtype == np.int8) == most
    assert any("has no VNNI" in str(note) for note in facts["notes"]) is (target == "avx2")  # type: ignore[union-attr]
