"""penstock write: the file, what is said of it, and what is refused."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from penstock.cli import run


@pytest.fixture(autouse=True)
def here(tmp_path: Path, tiny: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny.save(tiny.conv(), tmp_path / "m.onnx")
    return tmp_path


def in_litert(path: str, x: np.ndarray) -> np.ndarray:
    from ai_edge_litert.interpreter import Interpreter

    session = Interpreter(model_path=path)
    session.allocate_tensors()
    session.set_tensor(session.get_input_details()[0]["index"], x)
    session.invoke()
    return np.asarray(session.get_tensor(session.get_output_details()[0]["index"]))


def test_it_writes_a_file_and_says_what_is_in_it(
    here: Path, tiny: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["write", "m.onnx", "-o", "out/m.tflite", "--batch", "3"]) == 0
    out, err = capsys.readouterr()
    assert "1 CONV_2D" in out and "wrote     out/m.tflite: 0.0" in out and "tensor    x [3, 3, 8, 8]" in out
    assert "integers  0 of " in out and "write" in err
    x = np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)
    want = tiny.oracle(tiny.conv(), {"x": x})[0]
    np.testing.assert_allclose(in_litert("out/m.tflite", x), want, rtol=1e-5, atol=1e-6)


def test_integers_for_a_board(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("d.npz", x=np.random.default_rng(0).normal(size=(64, 3, 8, 8)).astype(np.float32))
    assert run(["quantize", "m.onnx", "--data", "d.npz", "--consumer", "integer-only", "-o", "q.onnx", "-q"]) == 0
    capsys.readouterr()
    assert run(["write", "q.onnx", "-o", "q.tflite", "--ends", "int8", "--layout", "nhwc", "--json", "-q"]) == 0
    told = json.loads(capsys.readouterr().out)
    facts = told["result"]
    assert told["command"] == "write" and facts["operators_in_float"] == 0 and facts["operators_on_integers"] >= 2
    assert facts["inputs"] == {"x": [1, 8, 8, 3]} and Path("q.tflite").stat().st_size == facts["size_bytes"]
    assert in_litert("q.tflite", np.zeros((1, 8, 8, 3), np.int8)).dtype == np.int8


@pytest.mark.parametrize(("words", "code", "told"), [
    (["absent.onnx"], 2, "no such file"), (["m.onnx", "--ends", "int8"], 2, "isn't quantized by one QuantizeLinear"),
    (["m.onnx", "--batch", "0"], 2, "--batch"), (["m.onnx", "--sizes", "height"], 2, "'height' is no size"),
    (["m.onnx", "--layout", "chw"], 2, "--layout"), (["open.onnx"], 2, "--sizes side=N"),
    (["lstm.onnx"], 2, "there is no rule for this operator"),
])  # fmt: skip
def test_what_is_refused(
    words: list[str], code: int, told: str, here: Path, tiny: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny.conv()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "side"
    tiny.save(model, here / "open.onnx")
    model = tiny.mlp()
    model.graph.node[0].op_type = "LSTM"
    tiny.save(model, here / "lstm.onnx")
    assert run(["write", *words, "-o", "out/x.tflite", "-q"]) == code
    out, err = capsys.readouterr()
    assert out == "" and told in err and "Traceback" not in err
    assert not (here / "out").exists()


def test_the_model_itself_stays(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (here / "m.onnx").read_bytes()
    assert run(["write", "m.onnx", "-o", "m.onnx"]) == 2
    assert (here / "m.onnx").read_bytes() == before and "m.onnx" in capsys.readouterr().err


def test_what_a_build_chose_for_litert_comes_with_the_line_that_writes_it(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fast = ["--bench-seconds", "0.05", "--no-footprint", "--min-rounds", "3", "--warmup-calls", "3", "-q"]
    assert run(["build", "m.onnx", "-o", "out", "--backends", "litert", *fast]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("to ship")]
    words = line.split()[2:]
    assert words[:2] == ["penstock", "write"] and words[-1].endswith(".tflite")
    assert run(words[1:]) == 0 and Path(words[-1]).read_bytes()[4:8] == b"TFL3"
