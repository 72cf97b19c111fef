"""The examples of custom operators: each README is run line by line in a copy of its folder, as a user would."""

import importlib.machinery
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

pytestmark = [pytest.mark.torch, pytest.mark.slow]

HOME = Path(__file__).parents[2] / "examples" / "custom_ops"


def run_readme(name: str, into: Path, **environ: str) -> list[str]:
    """Run every line that calls penstock; those marked "exits with 2" must. Return what each said on stderr."""
    folder = into / name
    shutil.copytree(HOME / name, folder)
    quick = {"WARMUP_CALLS": "2", "MIN_ROUNDS": "3", "CALLS_PER_ROUND": "2", "SECONDS": "0.1", "FOOTPRINT": "false"}
    known = {**os.environ, **{f"PENSTOCK_BENCH_{key}": value for key, value in quick.items()}, **environ}
    known["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{known['PATH']}"
    said = []
    for block in re.findall(r"```sh\n(.*?)```", (folder / "README.md").read_text(), re.S):
        for line in block.splitlines():
            if not line.startswith("penstock "):
                continue
            done = subprocess.run(["bash", "-c", line], cwd=folder, env=known, capture_output=True, text=True)
            assert done.returncode == (2 if "# exits with 2" in line else 0), (line, done.stdout, done.stderr)
            assert "Traceback" not in done.stderr
            said.append(done.stderr)
    return said


def test_translate(tmp_path: Path) -> None:
    said = run_readme("translate", tmp_path)
    assert "acme::squash has no translation" in said[0] and "--translate acme::squash=" in said[0]
    model = onnx.load(tmp_path / "translate" / "net.onnx")
    assert {node.domain for node in model.graph.node} == {""}


def test_function(tmp_path: Path) -> None:
    run_readme("function", tmp_path)
    for path in ("net.onnx", "out/models/fp32/model.onnx"):
        model = onnx.load(tmp_path / "function" / path)
        onnx.checker.check_model(model, full_check=True)
        assert [function.name for function in model.functions] == ["Block"]
        assert [node.op_type for node in model.graph.node].count("Block") == 3


def test_domain(tmp_path: Path) -> None:
    found = importlib.util.find_spec("onnxruntime_extensions")
    if found is None or found.origin is None:
        pytest.skip("onnxruntime-extensions is not installed")
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    library = next(Path(found.origin).parent.glob(f"_extensions_pydll*{suffix}"))
    said = run_readme("domain", tmp_path, LIB=str(library))
    assert "--allow-domain ai.onnx.contrib=" in said[0]
    assert "nothing can run the operators of the domain 'ai.onnx.contrib'" in said[2]
    model = onnx.load(tmp_path / "domain" / "net.onnx")
    assert [node.op_type for node in model.graph.node if node.domain == "ai.onnx.contrib"] == ["Inverse"]
