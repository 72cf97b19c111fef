"""The example of quantization-aware training: its README is run line by line in a copy of its folder."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

pytestmark = [pytest.mark.torch, pytest.mark.slow]
HOME = Path(__file__).parents[2] / "examples" / "qat"


def test_the_readme_runs(tmp_path: Path) -> None:
    folder = tmp_path / "qat"
    shutil.copytree(HOME, folder, ignore=shutil.ignore_patterns("__pycache__"))
    few = {"PENSTOCK_DATA_CALIBRATE": "128"}
    known = os.environ | few | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    lines = [
        line
        for block in re.findall(r"```sh\n(.*?)```", (folder / "README.md").read_text(), re.S)
        for line in block.splitlines()
    ]
    assert len(lines) == 6
    said = {}
    for line in lines:
        # a quarter of the epochs, and one of two
        quick = line.replace("own_loop.py", "own_loop.py 3").replace("--epochs 2", "--epochs 1")
        done = subprocess.run(["bash", "-c", quick], cwd=folder, env=known, capture_output=True, text=True)
        assert done.returncode == 0 and "Traceback" not in done.stderr, (line, done.stdout, done.stderr)
        said[line] = done.stdout
    share = re.search(r"([\d.]+)% of its answers are the module's", said["python own_loop.py"])
    assert share is not None and float(share[1]) >= 99.5
    operators = {node.op_type for node in onnx.load(folder / "int8.onnx").graph.node}
    assert "QuantizeLinear" in operators
    assert {node.op_type for node in onnx.load(folder / "fp32.onnx").graph.node}.isdisjoint({"QuantizeLinear"})
    scores = re.findall(r"top-1 ([\d.]+) %", said["penstock evaluate fp32.onnx int8.onnx --data digits"])
    assert len(scores) == 2 and abs(float(scores[0]) - float(scores[1])) < 1.5 and float(scores[1]) > 80
