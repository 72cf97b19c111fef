"""What a user may do wrong: each gets its message, its exit code, no traceback, and nothing is left behind."""

import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from penstock.cli import run


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def inputs(tmp_path: Path, tiny: ModuleType) -> Path:
    """A folder of good and bad files beside the current one."""
    folder = tmp_path / "in"
    good = tiny.save(tiny.mlp(), folder / "good.onnx")
    (folder / "cut.onnx").write_bytes(good.read_bytes()[:200])
    (folder / "text.onnx").write_text("hello")
    (folder / "empty.onnx").write_bytes(b"")
    (folder / "folder.onnx").mkdir()
    tiny.with_external(tiny.mlp(), folder / "outside" / "m.onnx", "../good.onnx.data")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 6)).astype(np.float32), np.arange(40) % 3
    sets = {
        "good": {"x": x, "y": y},
        "shape": {"x": x[:, :5], "y": y},
        "dtype": {"x": x.astype(np.int32), "y": y},
        "classes": {"x": x, "y": np.arange(40)},
        "nan": {"x": x * np.nan, "y": y},
        "few": {"x": x[:5], "y": y[:5]},
        "empty": {"x": x[:0], "y": y[:0]},
        "lengths": {"x": x, "y": y[:7]},
        "unlabelled": {"x": x},
    }
    for name, arrays in sets.items():
        np.savez(folder / f"{name}.npz", **arrays)
    (folder / "torn.npz").write_bytes((folder / "good.npz").read_bytes()[:300])
    return folder


def fails(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run a command that has to fail, in text and in JSON; return its message."""
    before = sorted(p for p in Path.cwd().rglob("*"))
    assert run(arguments) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err and "internal error" not in out + err, err
    assert out == "" and err
    for word in words:
        assert word in err, err
    assert sorted(p for p in Path.cwd().rglob("*")) == before, "nothing is left behind"
    assert run([*arguments, "--json"]) == code
    out, _ = capsys.readouterr()
    found = json.loads(out)
    assert found["schema"] == 1 and found["error"]["what"]
    return err


COMMANDS = {
    "build": ["build", "MODEL"],
    "export": ["export", "MODEL", "-o", "x.onnx"],
    "inspect": ["inspect", "MODEL"],
    "optimize": ["optimize", "MODEL", "-o", "x.onnx"],
    "quantize": ["quantize", "MODEL", "-o", "x.onnx"],
    "write": ["write", "MODEL", "-o", "x.tflite"],
    "verify": ["verify", "MODEL", "--against", "MODEL"],
    "evaluate": ["evaluate", "MODEL", "--data", "IN/good.npz"],
    "bench": ["bench", "MODEL"],
}


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("none.onnx", "no such file"),
        ("cut.onnx", "cut off"),
        ("text.onnx", "no ONNX model"),
        ("empty.onnx", "empty"),
        ("folder.onnx", "folder"),
        ("outside/m.onnx", "outside the model's folder"),
    ],
)
@pytest.mark.parametrize("command", list(COMMANDS))
def test_a_bad_model(command: str, file: str, told: str, inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(inputs / file)
    arguments = [word.replace("MODEL", model).replace("IN", str(inputs)) for word in COMMANDS[command]]
    fails(arguments, 2, capsys, told, "do:")


DATA = {
    "build": ["build", "IN/good.onnx", "--data", "DATA"],
    "quantize": ["quantize", "IN/good.onnx", "-o", "x.onnx", "--data", "DATA"],
    "evaluate": ["evaluate", "IN/good.onnx", "--data", "DATA"],
}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("shape", "[5]"),
        ("dtype", "wants float32"),
        ("classes", "40 classes"),
        ("nan", "NaN"),
        ("few", "5 samples"),
        ("empty", "no samples"),
        ("lengths", "7 labels"),
        ("torn", "can't be read"),
        ("none", "no such file"),
    ],
)
@pytest.mark.parametrize("command", list(DATA))
def test_bad_data(command: str, name: str, told: str, inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(inputs / f"{name}.npz")
    fails([w.replace("DATA", data).replace("IN", str(inputs)) for w in DATA[command]], 2, capsys, told, "do:")


def test_data_that_nothing_reads_is_told_a_line_a_source(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["quantize", str(inputs / "good.onnx"), "--data", "nothing\nlike it", "-o", "q.onnx", "-q"]
    err = fails(command, 2, capsys, "do:    these are read:", "\n         npz: An .npz file")
    assert "\\x0a" not in err and "'nothing\\nlike it'" in err


def test_an_unknown_command_and_option(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(["bild"], 2, capsys, "Did you mean 'build'")
    fails(["build", str(inputs / "good.onnx"), "--max-dorp", "1"], 2, capsys, "--max-drop")
    fails(["inspect"], 2, capsys, "MODEL")
    fails(["list", "bakends"], 2, capsys, "backends")


@pytest.mark.parametrize("command", ["build", "optimize", "bench"])
def test_an_unknown_setting_in_the_file(
    command: str, here: Path, inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "penstock.toml").write_text("[bench]\nsecods = 1\n")
    arguments = [w.replace("MODEL", str(inputs / "good.onnx")) for w in COMMANDS[command]]
    fails(arguments, 2, capsys, "secods", "did you mean 'seconds'", "penstock.toml")


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--threads", "many"), ("--threads", "0"), ("--objective", "beauty"), ("--seed", "-1"), ("--export-batches", "0")],
)
def test_a_bad_value(flag: str, value: str, inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(["build", str(inputs / "good.onnx"), flag, value], 2, capsys, flag.lstrip("-"))


def test_a_bad_value_in_the_file_and_the_environment(
    here: Path, inputs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "penstock.toml").write_text("[export]\nbatches = 3\n")
    fails(["export", str(inputs / "good.onnx"), "-o", "x.onnx"], 2, capsys, "batches")
    (here / "penstock.toml").unlink()
    monkeypatch.setenv("PENSTOCK_BENCH_THREADS", "few")
    fails(["bench", str(inputs / "good.onnx")], 2, capsys, "PENSTOCK_BENCH_THREADS", "whole number")


def test_an_unknown_backend(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(inputs / "good.onnx")
    fails(["build", model, "--backends", "onnxruntim"], 2, capsys, "did you mean 'onnxruntime'")
    fails(["bench", model, "--backends", "onnxruntim"], 2, capsys, "did you mean 'onnxruntime'")
    fails(["verify", model, "--against", model, "--backend", "torch"], 2, capsys, "runs no .onnx")


def test_where_nothing_can_be_written(here: Path, inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(inputs / "good.onnx")
    (here / "file").write_text("mine")
    for command in ("optimize", "export", "quantize"):
        fails([command, model, "-o", "file/below/x.onnx", "-q"], 2, capsys, "file")
    fails(["build", model, "-o", "file/out", "-q"], 2, capsys, "file")
    fails(["build", model, "-o", "file"], 2, capsys, "file")
    (here / "taken").mkdir()
    fails(["export", model, "-o", "taken"], 2, capsys, "taken")
    (here / "taken" / "thesis.tex").write_text("mine")
    fails(["build", model, "-o", "taken", "-q"], 2, capsys, "thesis.tex")
    assert (here / "file").read_text() == "mine"


def test_a_budget_without_a_measure(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(inputs / "good.onnx")
    fails(["build", model, "--max-drop", "1"], 2, capsys, "--data")
    fails(["build", model, "--max-drop", "1", "--data", str(inputs / "unlabelled.npz"), "-q"], 2, capsys, "no labels")
    fails(["evaluate", model], 2, capsys, "--data")
    fails(["evaluate", model, "--data", str(inputs / "unlabelled.npz"), "-q"], 2, capsys, "no labels")


@pytest.mark.parametrize("what", ["", "good.onnx", "none"])
def test_select_without_a_build(what: str, inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(["select", str(inputs / what)], 2, capsys, "build")


def test_a_missing_extra(
    here: Path, inputs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "torch" else real(name, *a))
    source = inputs / "net.py"
    source.write_text("import torch\nclass Net(torch.nn.Module):\n    pass\n")
    fails(["export", f"{source}:Net", "-o", "x.onnx", "-q"], 3, capsys, "pip install", "penstock[torch]")
    fails(["build", f"{source}:Net", "-q"], 3, capsys, "pip install", "penstock[torch]")
    fails(["build", str(inputs / "good.onnx"), "--backends", "torch", "-q"], 3, capsys, "pip install")


@pytest.mark.torch
def test_too_few_samples_for_a_module(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = inputs / "few_net.py"
    source.write_text(
        "import torch\nclass Net(torch.nn.Module):\n    def forward(self, x):\n        return x[:, :3] * 2\n"
    )
    arguments = ["build", f"{source}:Net", "--data", str(inputs / "few.npz"), "--exporter", "torchscript", "-q"]
    fails(arguments, 2, capsys, "5 samples")


def test_models_that_do_not_belong_together(inputs: Path, tiny: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    other = str(tiny.save(tiny.several(), inputs / "other.onnx"))
    model = str(inputs / "good.onnx")
    fails(["verify", other, "--against", model, "-q"], 2, capsys, "other inputs")
    fails(["bench", model, other, "-q"], 2, capsys, "different inputs")


def test_a_full_disk(inputs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from penstock import graph

    def full(*args: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(graph, "save", full)
    fails(["optimize", str(inputs / "good.onnx"), "-o", "x.onnx", "-q"], 2, capsys, "disk is full")


def test_a_name_that_is_no_utf_8(here: Path, inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strange = os.fsencode(inputs) + b"/\xff.onnx"
    Path(os.fsdecode(strange)).write_bytes((inputs / "good.onnx").read_bytes())
    assert run(["export", os.fsdecode(strange), "-o", "x.onnx", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == 1


def test_verbose_shows_where_and_keeps_the_exit_code(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(inputs / "text.onnx"), "-v"]) == 2
    shown = capsys.readouterr().err
    assert "Traceback" in shown and "precheck.py" in shown and "this is no ONNX model" in shown
