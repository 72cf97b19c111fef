"""The main job on the real data: CIFAR-10 from PyTorch to a chosen deployment."""

import json
import os
import subprocess
from pathlib import Path
from typing import cast

import pytest

from penstock import cli, registry
from penstock.backends import Backend

HERE = ("torch", "reference", "onnxruntime", "openvino", "litert")
ELSEWHERE = ("onnxruntime-web", "onnxruntime-webgpu", "iree", "tvm", "tflite-micro", "onnxruntime-openvino")


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.torch
def test_cifar10_from_the_zoo_to_an_int8_deployment(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `make demo` made in this tree a moment ago is taken for the build, where the caller says that it did."""
    data, out, more = tmp_path / "cifar10", tmp_path / "out", ["--bench-seconds", "0.5", "--no-footprint"]
    if made := os.environ.get("PENSTOCK_TEST_DEMO"):
        data, out, more = Path(made) / "build" / "cifar10", Path(made) / "demo-out", []
        monkeypatch.setenv("PENSTOCK_CACHE", str(Path(made) / "build" / "ci-cache"))  # as .ci/run has it
    else:
        subprocess.run([str(shared / "cifar10" / "unpack"), str(data)], check=True)
    asked = ["zoo:cifar10", "--data", str(data), "-o", str(out), "--max-drop", "0.5"]
    assert cli.run(["build", *asked, *more, "--quiet", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["result"]
    rows = {row["deployment"]["name"]: row for row in result["deployments"]}
    assert rows["source@torch"]["score"] >= 0.91 and rows["source@torch"]["score_samples"] == 10_000
    assert rows["fp32@onnxruntime"]["score"] >= 0.91
    difference, low, high = rows["int8@onnxruntime"]["difference_points"]
    assert abs(difference) <= 0.5 and low < difference < high
    assert rows["int8@onnxruntime"]["size_bytes"] <= 700_000
    assert rows[result["chosen"]]["deployment"]["precision"] == "int8"
    assert result["ladder"]["steps"][0]["before"] == "source@torch"
    assert result["ladder"]["steps"][-1]["name"] == result["chosen"]
    assert all(not v["measured"]["reason"] for row in rows.values() for v in row["verdicts"] if v["gate"] == "verify")
    _agrees_everywhere(out, capsys)


def _agrees_everywhere(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Hold what was built against the module on every backend here; float32 within 1e-5 of the logits' range."""
    beside = [name for name in ELSEWHERE if not cast(Backend, registry.load("backends", name)).available()]
    if os.environ.get("PENSTOCK_REQUIRE_BACKENDS") == "1":
        assert beside == [*ELSEWHERE]
    elif os.environ.get("PENSTOCK_REQUIRE_BROWSER") == "1":
        assert "onnxruntime-web" in beside
        beside.remove("onnxruntime-webgpu")  # in software it takes a minute; `make test-backends` has it
    asked = ["--backends", ",".join([*HERE, *beside]), "--fp32-relative", "1e-5"]
    if "onnxruntime-webgpu" in beside:
        asked.append("--allow-fallback")  # int8's data is quantized by the CPU there
    assert cli.run(["verify", str(out), *asked, "--quiet", "--json"]) == 0
    cells = json.loads(capsys.readouterr().out)["result"]["cells"]
    assert {cell["state"] for cell in cells} == {"agrees"}, cells
    assert {cell["backend"] for cell in cells if cell["reason"]} <= {"onnxruntime-webgpu"}, "nothing else ran instead"
    ran = {(cell["precision"], cell["backend"].partition("+")[0]) for cell in cells if cell["samples"]}
    assert {("fp32", name) for name in [*HERE, *beside]} <= ran
    assert {("int8", name) for name in [*HERE, *beside] if name != "torch"} <= ran
    assert all(not cell["flips"] for cell in cells if cell["precision"] == "fp32")
