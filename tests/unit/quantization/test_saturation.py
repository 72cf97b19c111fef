"""Saturation on CPUs without VNNI: the emulation against plain arithmetic, and that 7 bits avoid it."""

import platform
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from penstock import calibration
from penstock.quantization.saturation import SAFE_BITS, Saturation, clipped, lacks_vnni, note
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


def bright(tiny: ModuleType, folder: Path, **settings: str) -> Mapping[str, object]:
    """Quantize a network whose inputs are near 1 and whose weights are all alike: nearly every sum would be clipped."""
    model = tiny.mlp()
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 2:
            tensor.CopyFrom(numpy_helper.from_array(np.full(tuple(tensor.dims), 0.5, np.float32), tensor.name))
    rows = np.random.default_rng(0).uniform(0.9, 1.0, size=(64, 6)).astype(np.float32)
    made = QuantizeSettings(target_cpu="avx2", rounding="nearest", **settings)  # type: ignore[arg-type]
    return quantize(tiny.save(model, folder / "m.onnx"), calibration.of_list([{"x": rows}]), made, folder / "q.onnx")


def test_int8_activations_are_shifted_to_unsigned_and_measured(tiny: ModuleType, tmp_path: Path) -> None:
    unsigned, signed = bright(tiny, tmp_path, activations="uint8"), bright(tiny, tmp_path, activations="int8")
    assert unsigned["saturation"], "else the case is none"
    assert signed["saturation"] == unsigned["saturation"]
    assert any("layers would clip sums" in str(one) for one in signed["notes"])  # type: ignore[attr-defined]


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="on x86 alone")
def test_onnxruntime_makes_unsigned_activations_of_signed_ones(tiny: ModuleType, tmp_path: Path) -> None:
    import onnxruntime

    bright(tiny, tmp_path, activations="int8")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "fused.onnx"), 4
    onnxruntime.InferenceSession(tmp_path / "q.onnx", options, providers=["CPUExecutionProvider"])
    model = onnx.load(tmp_path / "fused.onnx")
    held = {one.name: one.data_type for one in model.graph.initializer}
    zeros = {held[node.input[2]] for node in model.graph.node if node.op_type in ("QuantizeLinear", "QGemm")}
    assert zeros == {onnx.TensorProto.UINT8}


def test_what_was_not_measured_is_not_told_as_harmless(tiny: ModuleType, tmp_path: Path) -> None:
    told = [str(one) for one in bright(tiny, tmp_path, activations="int8", format="qoperator")["notes"]]  # type: ignore[attr-defined]
    assert any("so that no sum of products is clipped" in one for one in told)
    assert not any("with 8" in one for one in told)
    assert "would have been clipped" not in note([], "avx2")
    assert "would have been clipped (layers looked at: 1)" in note([Saturation("a", 0.0, np.inf)], "avx2")
