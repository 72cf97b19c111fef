"""What is slow to import and isn't used isn't imported by the command line, nor by the processes that it starts."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from penstock import worker

CODE = """
import sys
from penstock import cli
sys.argv = ["penstock", "optimize", "-q", "--no-proof", sys.argv[1], "-o", sys.argv[2]]
try:
    cli.main()
except SystemExit as end:
    assert not end.code, end.code
assert "sympy" in sys.modules and "sympy.core" not in sys.modules, "sympy was imported"
import onnx_ir
dim = onnx_ir.SymbolicDim("batch") * 2  # and is there for whoever uses it
assert "sympy.core" in sys.modules
assert str(dim.value).replace(" ", "") == "2*batch", dim
"""


def test_optimize_imports_no_sympy(tiny: ModuleType, tmp_path: Path) -> None:
    tiny.save(tiny.mlp(), tmp_path / "m.onnx")
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path / "m.onnx"), str(tmp_path / "slim.onnx")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


WORK = """
import sys

def touch(use):
    import onnx_ir
    if use:
        assert str((onnx_ir.SymbolicDim("batch") * 2).value).replace(" ", "") == "2*batch"
    return "sympy.core" in sys.modules
"""


def test_a_worker_imports_it_when_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "touching.py").write_text(WORK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    assert worker.call("touching:touch", False, timeout_s=60.0) is False, "sympy was imported"
    assert worker.call("touching:touch", True, timeout_s=60.0) is True
