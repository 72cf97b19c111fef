"""Whole builds of real models from elsewhere: branches, loops, scans, a Transformer, weights beside the model."""

import json
from pathlib import Path

import pytest

import quick
from penstock.cli import run

pytestmark = pytest.mark.shared
FAST = [*quick.BUILD, "--quiet", "--json"]
FEW = ["--golden-samples", "8", "--calibrate-samples", "16"]  # inputs are made up: more of them tell nothing more
OPERATOR = {
    "silero-vad-if": "If",
    "ort-crop-and-resize-loop": "Loop",
    "ort-scan": "Scan",
    "tiny-gpt2-genai": "MatMul",
    "resnet-tiny-fp32-extdata": "Conv",
}
UNKNOWN = {"espcn-qonnx-quant": "onnx.brevitas", "bert-tokenizer-ext": "ai.onnx.contrib"}


def build(model: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict]:
    code = run(["build", str(model), "-o", str(folder), *FAST, *FEW])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", OPERATOR)
def test_a_model_ends_with_verified_deployments(
    name: str, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, shown = build(shared / "models" / name / "model.onnx", tmp_path / "built", capsys)
    assert code == 0, shown
    rows = shown["result"]["deployments"]
    verified = {
        row["deployment"]["name"]
        for row in rows
        if any(v["gate"] == "verify" and v["measured"]["passed"] for v in row["verdicts"])
    }
    assert shown["result"]["chosen"] in verified
    assert {"fp32@onnxruntime", "slim@onnxruntime"} <= verified
    inspected = json.loads((tmp_path / "built" / "records" / "inspect" / "fp32.json").read_text())
    assert OPERATOR[name] in {layer["op"] for layer in inspected["facts"]["layers"]}


@pytest.mark.parametrize("name", UNKNOWN)
def test_operators_that_nobody_knows_are_refused(
    name: str, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, shown = build(shared / "models" / name / "model.onnx", tmp_path / "built", capsys)
    assert code == 2 and shown["error"]["id"] == "custom-operators"
    assert UNKNOWN[name] in shown["error"]["what"] and f"--allow-domain {UNKNOWN[name]}=" in shown["error"]["do"]
    assert not (tmp_path / "built").exists()
