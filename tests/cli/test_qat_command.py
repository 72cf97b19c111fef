"""penstock qat: a model trained on its grids, what is said of it, and what is refused."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from penstock.cli import run

pytestmark = pytest.mark.torch
RNG = np.random.default_rng(0)
SPLIT = ("--golden-samples", "16", "--calibrate-samples", "64", "--select-samples", "100")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, tiny: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    x = RNG.normal(size=(400, 3, 8, 8)).astype(np.float32)
    tiny.save(tiny.conv(), tmp_path / "conv.onnx")
    y = tiny.oracle(tiny.conv(), {"x": x})[0].argmax(1)  # what the float model says, so that rounding costs accuracy
    np.savez(tmp_path / "data.npz", x_train=x[:300], y_train=y[:300], x_test=x[300:], y_test=y[300:])
    np.savez(tmp_path / "bare.npz", x=x)
    holed = np.where(np.arange(400)[:, None, None, None] % 2 == 0, np.float32("nan"), x)
    np.savez(tmp_path / "holed.npz", x_train=holed[:300], y_train=y[:300], x_test=x[300:], y_test=y[300:])
    return tmp_path


def test_it_writes_the_model_and_says_what_it_did(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "qat",
        "conv.onnx",
        "--data",
        "data.npz",
        "-o",
        "out/int8.onnx",
        "--float-output",
        "out/float.onnx",
        *SPLIT,
    ]
    assert run([*command, "--epochs", "1", "--batch", "32", "--flip", "--crop", "1"]) == 0
    out, err = capsys.readouterr()
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert {"before", "epoch", "int8", "agreement", "wrote"} <= set(lines) and out.count("kept") == 1
    assert "75 select samples right (95 % interval" in lines["int8"] and "wrote     out/int8.onnx" in out
    assert [line.split()[0] for line in err.splitlines()] == ["export", "calibrate", "train", "convert", "agree"]
    assert sorted(path.name for path in (here / "out").iterdir()) == ["float.onnx", "int8.onnx"]
    made = onnx.load(here / "out" / "int8.onnx")
    onnx.checker.check_model(made, full_check=True)
    assert "QuantizeLinear" in [node.op_type for node in made.graph.node]
    assert {node.op_type for node in onnx.load(here / "out" / "float.onnx").graph.node}.isdisjoint({"QuantizeLinear"})


def test_json_holds_all_of_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "qat",
        "conv.onnx",
        "--data",
        "data.npz",
        "-o",
        "int8.onnx",
        "--epochs",
        "2",
        "--batch",
        "32",
        "--json",
        "-q",
    ]
    assert run([*command, *SPLIT]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    done: dict[str, Any] = told["result"]
    assert told["command"] == "qat" and err == ""
    # 300 for training, without the golden set's 16 and the select role's; a share of a small set
    assert done["trained_samples"] == 300 - 16 - done["select_samples"] and done["select_samples"] == 75
    facts = done["converted"]["facts"]
    assert (facts["method"], facts["precision"], facts["calibration_samples"]) == ("qat", "int8", 64)
    assert {layer["state"] for layer in facts["layers"]} >= {"integer", "absorbed"} and facts["ranges"]["x"]["low"] < 0
    assert [epoch["index"] for epoch in done["fitted"]["epochs"]] == [0, 1, 2] and done["agreement"]["top1"] > 0.98
    # by another way: the written file in the runtime, on the same samples
    from penstock import running
    from penstock.data import DataSettings

    roles = running.role_feeds(Path("conv.onnx"), DataSettings("data.npz", golden=16, calibrate=64, select=100), 0)
    assert roles.select is not None and roles.select.labels is not None
    feeds = roles.select.rows(0, roles.select.count)
    session = onnxruntime.InferenceSession("int8.onnx", providers=["CPUExecutionProvider"])
    assert done["accuracy"] == np.mean(session.run(None, feeds)[0].argmax(1) == roles.select.labels)
    assert done["float_accuracy"] == 1.0, "the labels are the float model's own answers"


def test_no_epochs_give_the_static_quantizers_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["conv.onnx", "--data", "data.npz", "-q", *SPLIT]
    assert run(["qat", *common, "-o", "one.onnx", "--epochs", "0"]) == 0
    plain = ["--correct-bias", "none", "--no-guard", "--rounding", "nearest"]
    assert run(["quantize", *common, "-o", "two.onnx", *plain]) == 0
    assert (here / "one.onnx").read_bytes() == (here / "two.onnx").read_bytes()


@pytest.mark.filterwarnings("ignore")
def test_a_module_is_exported_first(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "net.py").write_text(
        "from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), "
        "nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))\n"
    )
    command = ["qat", "net.py:net", "--data", "data.npz", "-o", "int8.onnx", "--epochs", "1", "--seed", "3", *SPLIT]
    assert run([*command, "--threads", "1"]) == 0
    assert "export    net.py:net" in capsys.readouterr().err
    first = (here / "int8.onnx").read_bytes()
    assert run([*command, "--threads", "1", "-q"]) == 0 and (here / "int8.onnx").read_bytes() == first


@pytest.mark.parametrize(("words", "code", "id"), [
    (["conv.onnx"], 2, "no-data"), (["conv.onnx", "--data", "bare.npz"], 2, "no-labels"),
    (["absent.onnx", "--data", "data.npz"], 2, "no-such-file"),
    (["conv.onnx", "--data", "absent.npz"], 2, "no-such-data"),
    (["conv.onnx", "--data", "data.npz", "--exclude", "con"], 2, "unknown-node"),
    (["conv.onnx", "--data", "data.npz", "--select-samples", "0"], 2, "too-few-samples"),
    (["conv.onnx", "--data", "data.npz", "--distill", "2"], 2, "bad-setting"),
    (["conv.onnx", "--data", "data.npz", "--epochs", "-1"], 2, "bad-setting"),
    (["conv.onnx", "--data", "data.npz", "--crop", "8"], 2, "data-wrong-shape"),
    (["conv.onnx", "--data", "data.npz", "--learning-rate", "1e30", "--clip-gradient", "0"], 2, "training-diverged"),
    (["conv.onnx", "--data", "holed.npz"], 2, "data-not-finite"),
    (["unclassed.onnx", "--data", "data.npz"], 2, "no-classes"),
    (["net.py:gone", "--data", "data.npz"], 2, "no-such-name"),
    (["int8.onnx", "--data", "data.npz"], 2, "already-quantized"),
    (["conv.onnx", "--data", "data.npz", "--consumer", "openvino", "--activations", "int16"], 2, "wrong-consumer"),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_what_is_refused(
    words: list[str], code: int, id: str, here: Path, tiny: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "net.py").write_text("from torch import nn\n\ndef net():\n    return nn.Linear(3, 5)\n")
    if id == "already-quantized":
        assert run(["quantize", "conv.onnx", "--data", "data.npz", "-o", "int8.onnx", "-q"]) == 0
    model = tiny.conv()
    model.graph.node.pop()
    model.graph.node[-1].output[0] = "y"
    model.graph.node[-2].output[0] = model.graph.node[-1].input[0]
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.ones((1, 3, 3, 3), np.float32), "w"))
    for tensor in model.graph.initializer[1:6]:
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.ones(1, np.float32), tensor.name))
    tiny.save(model, here / "unclassed.onnx")
    capsys.readouterr()
    assert run(["qat", *words, "-o", "out/made.onnx", "--json", "-q"]) == code
    out, err = capsys.readouterr()
    error = json.loads(out)["error"]
    assert error["id"] == id and error["what"] and err == "", error
    assert not (here / "out").exists(), "nothing is written"


def test_without_torch_the_line_that_installs_it_is_said(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else real(name, *rest))
    assert run(["qat", "conv.onnx", "--data", "data.npz", "-o", "int8.onnx"]) == 3
    assert "pip install torch==2.13.0" in capsys.readouterr().err and not (here / "int8.onnx").exists()


def test_a_stopped_run_leaves_nothing_but_its_checkpoint(here: Path) -> None:
    program = [sys.executable, "-P", "-c", "import sys; from penstock.cli import main; main(sys.argv[1:])"]
    command = [
        *program,
        "qat",
        "conv.onnx",
        "--data",
        "data.npz",
        "-o",
        "out/int8.onnx",
        "--checkpoint",
        "kept",
        *SPLIT,
    ]
    environ = os.environ | {"TMPDIR": str(here / "tmp"), "OMP_NUM_THREADS": "1"}
    (here / "tmp").mkdir()
    process = subprocess.Popen([*command, "--epochs", "5000", "--batch", "16"], env=environ, stderr=subprocess.PIPE,
                               stdout=subprocess.DEVNULL)  # fmt: skip
    assert process.stderr is not None
    with process.stderr as told:
        epochs = 0
        for line in told:
            epochs += line.startswith(b"train")
            if epochs == 2:  # the first one is in the checkpoint by now
                break
        process.send_signal(signal.SIGTERM)
        rest = told.read().decode()
    assert process.wait(60) == 143 and "nothing half-written is left" in rest and "Traceback" not in rest
    assert not (here / "out").exists() and list((here / "tmp").glob("penstock-*")) == []
    import torch

    assert len(torch.load(here / "kept", weights_only=True)["epochs"]) >= 2
