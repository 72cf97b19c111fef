"""What a quantization method doesn't read is refused where it is asked for, and passed over in a settings file."""

import dataclasses
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from penstock import api, preflight, registry
from penstock.build_settings import resolve
from penstock.cli import run
from penstock.data import DataSettings
from penstock.errors import UsageError
from penstock.stages.quantize import SHARED, QuantizeSettings


@pytest.fixture(autouse=True)
def here(tmp_path: Path, tiny: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny.save(tiny.mlp(), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32))
    return tmp_path


def test_every_setting_is_read_by_a_method_and_no_method_reads_another() -> None:
    fields = {field.name for field in dataclasses.fields(QuantizeSettings)}
    read = {name: registry.load("quantizers", name).READS for name in registry.names("quantizers")}  # type: ignore[attr-defined]
    assert set().union(*read.values()) | SHARED == fields and not any(names & SHARED for names in read.values())


@pytest.mark.parametrize(
    ("words", "id", "told"),
    [
        ("--no-quantize", "bad-setting", "--no-quantize says what a build makes"),
        ("--also-methods dynamic", "bad-setting", "--also-methods says what a build makes"),
        ("--method static --weight-bits 4", "cannot-serve", "--weight-bits has no effect with --method static"),
        ("--method static --force-small", "cannot-serve", "--force-small has no effect"),
        ("--method ort --ranges mse", "cannot-serve", "--ranges has no effect with --method ort"),
        ("--method ort --correct-bias empirical", "cannot-serve", "--correct-bias has no effect"),
        ("--method ort --rounding adaptive", "cannot-serve", "--rounding has no effect"),
        ("--method ort --sensitivity 5", "cannot-serve", "--sensitivity has no effect"),
        ("--method fp16 --per-tensor", "cannot-serve", "--per-channel/--per-tensor has no effect"),
        ("--method dynamic --percentile 99", "cannot-serve", "--percentile has no effect"),
        ("--percentile 90", "bad-setting", "--percentile has no effect with --ranges auto"),
        ("--percentile 99.99 --ranges mse", "bad-setting", "--percentile has no effect with --ranges mse"),
        ("--calibration random", "bad-setting", "--calibration has no effect with --data"),
        ("--method fp16 --calibration random", "bad-setting", "--calibration has no effect with --data"),
        (
            "--target-cpu avx2 --consumer integer-only",
            "bad-setting",
            "--target-cpu has no effect with --consumer integer-only",
        ),
        ("--target-cpu avx2 --consumer tensorrt", "bad-setting", "--target-cpu has no effect with --consumer tensorrt"),
        ("--target-cpu avx2 --activations uint16", "bad-setting", "with --consumer ort-cpu and --activations uint16"),
        ("--percentile 150", "bad-setting", "--percentile is at most 100"),
        ("--percentile 49", "bad-setting", "--percentile is at least 50"),
    ],
)
def test_a_flag_without_effect(words: str, id: str, told: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["quantize", "m.onnx", "--data", "d.npz", "-o", "q.onnx", "--json", "-q", *words.split()]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["id"] == id and told in error["what"] and error["where"]
    if id == "cannot-serve":
        assert "leave it out, or choose a method that reads it" in error["do"]
    assert not (here / "q.onnx").exists()


def test_a_settings_file_may_hold_what_is_for_other_methods(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "penstock.toml").write_text('[quantize]\nweight_bits = 8\nalso_methods = ["weight-only"]\n')
    assert run(["quantize", "m.onnx", "--data", "d.npz", "-o", "q.onnx", "-q"]) == 0


@pytest.mark.parametrize(
    "words",
    [
        "--data d.npz --ranges percentile --percentile 90",
        "--calibration random",
        "--data d.npz --calibration auto",
        "--data d.npz --target-cpu avx2",
        "--data d.npz --target-cpu avx2 --consumer openvino",
        "--data d.npz --target-cpu avx2 --method ort",
    ],
)
def test_a_flag_with_effect(words: str, here: Path) -> None:
    assert run(["quantize", "m.onnx", "-o", "q.onnx", "--json", "-q", *words.split()]) == 0


def test_what_a_settings_file_says_without_effect_is_passed_over(here: Path) -> None:
    (here / "penstock.toml").write_text(
        '[quantize]\npercentile = 90\ncalibration = "random"\ntarget_cpu = "avx2"\nconsumer = "integer-only"\n'
    )
    assert run(["quantize", "m.onnx", "--data", "d.npz", "-o", "q.onnx", "-q"]) == 0


@pytest.mark.parametrize(
    ("labelled", "told"),
    [
        (False, "56 samples, in batches of 32; the rest of the 64"),
        (True, "16 samples, in batches of 32; the rest of the 64"),
    ],
)
def test_it_says_how_many_samples_of_how_many_it_took(
    labelled: bool, told: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
    np.savez(here / "l.npz", x=x, **({"y": np.arange(64) % 3} if labelled else {}))
    assert run(["quantize", "m.onnx", "--data", "l.npz", "-o", "q.onnx", "-q"]) == 0
    out = capsys.readouterr().out
    assert f"calibrated on {told} is left for other roles" in out
    assert ("only 16 calibration samples of the 64 that there are" in out) is labelled


def test_a_program_is_told_too(here: Path) -> None:
    with pytest.raises(UsageError, match="--weight-bits has no effect"):
        api.quantize("m.onnx", "q.onnx", QuantizeSettings(weight_bits=8), data=DataSettings("d.npz"))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"weight_bits": 8}, ["--weight-bits has no effect with --method static"]),
        ({"method": "ort", "also_methods": ("dynamic",), "ranges": "mse"}, ["with --method ort and --method dynamic"]),
        ({"weight_bits": 8, "also_methods": ("weight-only",)}, []),
        ({"method": "dynamic", "activations": "int8"}, ["at run time activations become uint8"]),
        ({"also_methods": ("ort",), "activations": "int16"}, ["activations of uint8, int8, not int16"]),
        ({"also_methods": ("fp16",), "consumer": "integer-only"}, ["no float arithmetic"]),
        ({"consumer": "tensorrt", "activations": "uint8"}, ["TensorRT takes"]),
        ({"also_methods": ("weight-only",), "block_size": 7}, ["a block has"]),
    ],
)
def test_a_build_is_told_before_it_begins(settings: dict, told: list[str], here: Path) -> None:
    problems = [*preflight.problems(resolve({"": {"source": "m.onnx"}, "quantize": settings}))]
    assert len(problems) == len(told)
    for problem, words in zip(problems, told, strict=True):
        assert isinstance(problem, UsageError) and words.lower() in problem.what.lower()
