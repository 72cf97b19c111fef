"""A result is written over nothing that the same command reads, nor over another of its results."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from penstock import outputs
from penstock.cli import run
from penstock.errors import UsageError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, tiny: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny.save(tiny.mlp(), tmp_path / "m.onnx")
    tiny.with_external(tiny.mlp(), tmp_path / "large.onnx", "large.data")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.normal(size=(64, 6)).astype(np.float32), y=np.arange(64) % 3)
    (tmp_path / "net.py").write_text("")
    return tmp_path


QUANTIZE = ["quantize", "MODEL", "--data", "d.npz", "-o"]
SEARCH = ["search", "MODEL", "--data", "d.npz", "-o"]


@pytest.mark.parametrize("command", [QUANTIZE, SEARCH], ids=lambda words: words[0])
@pytest.mark.parametrize(
    ("model", "output", "told"),
    [
        ("m.onnx", "m.onnx", "the model that is read"),
        ("m.onnx", "sub/../m.onnx", "the model that is read"),
        ("m.onnx", "link.onnx", "the model that is read"),
        ("large.onnx", "large.data", "the model that is read"),
        ("m.onnx", "d.npz", "the data that is read"),
    ],
)
def test_the_float_model_and_the_data_stay(
    command: list[str], model: str, output: str, told: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "sub").mkdir()
    (here / "link.onnx").symlink_to("m.onnx")
    before = {path: path.read_bytes() for path in here.iterdir() if path.is_file()}
    assert run([model if word == "MODEL" else word for word in command] + [output, "-q"]) == 2
    err = capsys.readouterr().err
    assert f"-o would write over {told}" in err and f"where: {output}" in err and "choose another file" in err
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.torch
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["-o", "m.onnx"], "-o would write over the source"),
        (["-o", "q.onnx", "--float-output", "q.onnx"], "--float-output would write over the result of -o"),
        (["-o", "q.onnx", "--float-output", "m.onnx"], "--float-output would write over the source"),
        (["-o", "q.onnx", "--checkpoint", "m.onnx"], "--checkpoint would write over the source"),
        (["-o", "q.onnx", "--checkpoint", "q.onnx"], "--checkpoint would write over the result of -o"),
    ],
)
def test_training_writes_over_nothing_either(
    words: list[str], told: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (here / "m.onnx").read_bytes()
    assert run(["qat", "m.onnx", "--data", "d.npz", "-q", *words]) == 2
    assert told in capsys.readouterr().err
    assert (here / "m.onnx").read_bytes() == before and not (here / "q.onnx").exists()


def test_a_source_may_be_more_than_a_file_or_none(here: Path) -> None:
    read = {"the source": "net.py:Net", "the data": "digits", "the weights": ""}
    outputs.keep_apart({"-o": "a.onnx", "--float-output": None}, read)
    with pytest.raises(UsageError, match="the source"):
        outputs.keep_apart({"-o": here / "net.py"}, read)
    (here / "digits").mkdir()
    outputs.keep_apart({"-o": "digits.onnx"}, read)


@pytest.mark.parametrize("command", ["quantize", "optimize", "export", "qat", "search"])
@pytest.mark.parametrize(
    ("name", "told"),
    [("", "no file is named"), (" ", "no file is named"), ("out/", "names a folder"), ("out/..", "names a folder")],
)
def test_a_name_that_no_file_can_have(
    command: str, name: str, told: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([command, "m.onnx", "-o", name]) == 2
    out, err = capsys.readouterr()
    assert told in err and "wrote" not in out and "scratch" not in err
    assert not (here / "out").exists()


@pytest.mark.parametrize(("trace", "told"), [("s.onnx", "the result of -o"), ("m.onnx", "the model that is read")])
def test_a_trace_is_no_model(trace: str, told: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (here / "m.onnx").read_bytes()
    assert run(["optimize", "m.onnx", "-o", "s.onnx", "--trace", trace, "-q"]) == 2
    assert f"--trace would write over {told}" in capsys.readouterr().err
    assert (here / "m.onnx").read_bytes() == before and not (here / "s.onnx").exists()


def test_rewriting_a_model_in_place_stays_possible(here: Path) -> None:
    """What is proved to compute the same may take its place."""
    assert run(["optimize", "m.onnx", "-o", "m.onnx", "-q"]) == 0
    assert run(["convert", "m.onnx", "-o", "m.onnx", "--opset", "18", "-q"]) == 0
