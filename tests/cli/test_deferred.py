"""What is slow to import and isn't used isn't imported by the command line."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

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
