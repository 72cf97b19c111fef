"""fp16 and bf16 on models of third parties: each comes out close to its source, or is refused with a reason.

What comes with ONNX Runtime (``onnxruntime.transformers.float16``) converts the same models, in a process of its own,
as a result of its may crash the runtime.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from conftest import SHARED
from half_models import decibels, no_cast_after_a_cast
from penstock import running
from penstock.data import DataSettings
from penstock.errors import InputError
from penstock.stages.quantize import QuantizeSettings, quantize

pytestmark = [pytest.mark.shared, pytest.mark.slow]
SOME = DataSettings(calibrate=8, golden=8)
LIMIT = 70.0  # dB: what rounding the result alone would leave of it, less a little
NOISE = 2.0  # dB between two ways that round otherwise
NAMES = [
    "byte-bidi-lstm", "dtln-model1", "gtcrn-simple", "magika-v3-3", "mnist-8", "motor-fault-extdata",
    "neudet-v5-fp32", "resnet-tiny-fp32-extdata", "yunet-n-dynamic",
]  # fmt: skip
REFUSED = {
    "bert-tokenizer-ext": "cannot-make-input", "espcn-qonnx-quant": "cannot-quantize",
    "mlp-int8-dyn": "already-quantized", "neudet-v5-int8-qlinear": "already-quantized",
    "onnxscript-functions-if": "nothing-to-quantize", "ort-crop-and-resize-loop": "nothing-to-quantize",
    "qlstm-scan-qlinear": "already-quantized",
}  # fmt: skip
PEER = """
import json, sys
import numpy as np, onnx, onnxruntime
from onnxruntime.transformers.float16 import convert_float_to_float16
source, feeds, into = sys.argv[1:]
onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), into)
held = np.load(feeds)
session = onnxruntime.InferenceSession(into, providers=["CPUExecutionProvider"])
names = [value.name for value in session.get_inputs()]
parts = [session.run(None, {name: held[f"{name}/{i}"] for name in names}) for i in range(len(held.files) // len(names))]
np.savez(into + ".npz", *[np.concatenate([np.ravel(part[i]) for part in parts]) for i in range(len(parts[0]))])
"""


def model(name: str) -> Path:
    return next(iter(sorted((SHARED / "models" / name).glob("*.onnx"))))


def samples(name: str) -> tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]:
    roles = running.role_feeds(model(name), SOME, 0)
    return [feeds for _, feeds in roles.calibrate.batches(4)], [feeds for _, feeds in roles.golden.batches(4)]


def results(path: Path, feeds: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    parts = [session.run(None, one) for one in feeds]
    return [np.concatenate([np.ravel(part[i]) for part in parts]) for i in range(len(parts[0]))]


def peers(name: str, feeds: list[dict[str, np.ndarray]], work: Path) -> list[np.ndarray] | None:
    np.savez(work / "feeds.npz", **{f"{key}/{i}": array for i, one in enumerate(feeds) for key, array in one.items()})  # type: ignore[arg-type]
    command = [sys.executable, "-c", PEER, str(model(name)), str(work / "feeds.npz"), str(work / "peer.onnx")]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        return None
    held = np.load(work / "peer.onnx.npz")
    return [held[key] for key in held.files]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_as_close_as_what_comes_with_the_runtime(name: str, tmp_path: Path) -> None:
    calibrate, feeds = samples(name)
    facts = quantize(model(name), calibrate, QuantizeSettings(method="fp16"), tmp_path / "half.onnx")
    made = onnx.load(tmp_path / "half.onnx")
    onnx.checker.check_model(made, full_check=True)
    no_cast_after_a_cast(made)
    assert facts["runs_on"]["onnxruntime"]["runs"] is True  # type: ignore[index,call-overload]
    want, got = results(model(name), feeds), results(tmp_path / "half.onnx", feeds)
    ours = [decibels(one, other) for one, other in zip(got, want, strict=True)]
    assert min(ours) > 30
    found = peers(name, feeds, tmp_path)
    if found is None:
        assert name == "byte-bidi-lstm", "it crashes the runtime there"
        return
    theirs = [decibels(one, other) for one, other in zip(found, want, strict=True)]
    assert all(a > min(b, LIMIT) - NOISE for a, b in zip(ours, theirs, strict=True)), json.dumps([ours, theirs])


@pytest.mark.parametrize("name", ["dtln-model1", "mnist-8", "resnet-tiny-fp32-extdata"])
@pytest.mark.parametrize("consumer", ["ort-cpu", "openvino"])
def test_bf16(name: str, consumer: str, tmp_path: Path) -> None:
    calibrate, feeds = samples(name)
    settings = QuantizeSettings(method="bf16", consumer=consumer)
    facts = quantize(model(name), calibrate, settings, tmp_path / "half.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "half.onnx"), full_check=True)
    told = facts["runs_on"]
    backend = "onnxruntime" if consumer == "ort-cpu" else "openvino"
    assert isinstance(told, dict)
    entry = told[backend]
    assert isinstance(entry, dict)
    if entry["runs"] is None:
        return  # it isn't installed
    assert entry["runs"] is True and min(entry["sqnr_db"].values()) > 25  # type: ignore[union-attr,type-var]
    if consumer == "ort-cpu":
        assert entry["computes_in"].keys() == {"fp32"}  # type: ignore[union-attr]
        want, got = results(model(name), feeds), results(tmp_path / "half.onnx", feeds)
        assert min(decibels(one, other) for one, other in zip(got, want, strict=True)) > 25


@pytest.mark.parametrize(("name", "id"), REFUSED.items())
@pytest.mark.parametrize("half", ["fp16", "bf16"])
def test_what_can_not_be_converted_is_refused_with_a_reason(half: str, name: str, id: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        quantize(model(name), samples(name)[0], QuantizeSettings(method=half), tmp_path / "half.onnx")
    assert caught.value.id == id and caught.value.do and not (tmp_path / "half.onnx").exists()


def test_weights_in_the_branches_of_an_if_are_stored_in_16_bits(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    feeds = [
        {"input": rng.normal(0, 0.1, (1, 576)).astype(np.float32), "state": np.zeros((2, 1, 128), np.float32),
         "sr": np.array(rate)} for rate in (16000, 16000)
    ]  # fmt: skip
    source = model("silero-vad-if")
    facts = quantize(source, feeds, QuantizeSettings(method="fp16"), tmp_path / "half.onnx")
    assert (tmp_path / "half.onnx").stat().st_size < 0.51 * source.stat().st_size
    told = {layer["op"]: layer["reason"] for layer in facts["layers"]}  # type: ignore[union-attr,index,call-overload]
    assert "body" in told["If"]
    for got, want in zip(results(tmp_path / "half.onnx", feeds), results(source, feeds), strict=True):
        assert decibels(got, want) > 35
