"""How a source in PyTorch is found and imported: once, whole, and with places that hold in any folder."""

import sys
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

pytestmark = pytest.mark.torch

from penstock import source_lines  # noqa: E402
from penstock.cli import run  # noqa: E402

NET = """
import torch
{extra}
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(4, 4)

    def forward(self, x):
        return {result}
"""
INPUT = ["--input", "x:float32[batch,4]", "-o", "net.onnx", "-q", "--exporter", "torchscript"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    before, path = set(sys.modules), list(sys.path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        if "pytest-of-" in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]
    sys.path[:] = path


def lines() -> set[str]:
    return {p.value for n in onnx.load("net.onnx").graph.node for p in n.metadata_props if p.key == source_lines.KEY}


OPERATOR = """
torch.library.define("penstockonce::twice", "(Tensor x) -> Tensor")
torch.library.impl("penstockonce::twice", "CompositeExplicitAutograd")(lambda x: x * 2)
print("IMPORTED")
def samples():
    return [torch.zeros(2, 4)]
"""


def test_a_file_is_imported_once_in_a_process(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A file that registers an operator can't be imported twice; the same file may also hold the probe."""
    path = here / "registers_net.py"
    path.write_text(NET.format(extra=OPERATOR, result="torch.relu(self.fc(x))"))
    assert run(["export", "registers_net.py:Net", *INPUT, "--probe", "registers_net.py:samples"]) == 0
    assert run(["export", f"{path}:Net", *INPUT]) == 0
    out, err = capfd.readouterr()
    assert (out + err).count("IMPORTED") == 1
    path.write_text(path.read_text().replace("penstockonce", "penstockedited"))
    assert run(["export", "registers_net.py:Net", *INPUT]) == 0
    assert "IMPORTED" in capfd.readouterr().err, "an edited file is read again"


def test_weights_are_the_same_whether_the_file_was_imported_before_or_not(here: Path) -> None:
    from penstock.frontends import Source
    from penstock.frontends.torch import load_module

    (here / "draws_net.py").write_text(NET.format(extra="NOISE = torch.randn(7)", result="self.fc(x)"))
    first, second = (load_module(Source("draws_net.py:Net")).module.fc.weight for _ in range(2))
    assert first.equal(second)


def test_neighbours_are_reads_whoever_imported_the_file_first(here: Path) -> None:
    from penstock import user_code
    from penstock.frontends import Source
    from penstock.frontends.torch import load_module

    (here / "width_beside.py").write_text("WIDTH = 4\n")
    (here / "wide_net.py").write_text(
        NET.format(extra="from width_beside import WIDTH\ndef probe(): return torch.zeros(2, WIDTH)", result="x")
    )
    user_code.function("wide_net.py:probe", "the probe function")
    reads = load_module(Source("wide_net.py:Net")).reads
    assert {Path(path).name for path in reads} == {"wide_net.py", "width_beside.py"}


def test_a_file_of_a_package_is_named_by_the_package(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "proj" / "ownpkg").mkdir(parents=True)
    (here / "proj" / "ownpkg" / "__init__.py").write_text("")
    (here / "proj" / "ownpkg" / "net.py").write_text("from .other import x\n")
    assert run(["export", "proj/ownpkg/net.py:Net", *INPUT]) == 2
    assert "name it as ownpkg.net:NAME, from the folder proj" in capsys.readouterr().err


def test_lines_of_a_helper_outside_the_folder_of_the_source(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "src" / "app").mkdir(parents=True)
    (here / "src" / "parts_lib").mkdir()
    (here / "src" / "parts_lib" / "blocks.py").write_text("import torch\ndef act(x):\n    return torch.sigmoid(x)\n")
    (here / "src" / "app" / "outer_net.py").write_text(
        NET.format(extra="from parts_lib.blocks import act", result="act(x) + 1")
    )
    monkeypatch.syspath_prepend(str(here / "src"))
    assert run(["export", "src/app/outer_net.py:Net", *INPUT]) == 0
    assert lines() == {"parts_lib/blocks.py:3", "outer_net.py:10"}


def test_lines_of_a_package_that_is_reached_through_a_link(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "real" / "linked_pkg").mkdir(parents=True)
    (here / "real" / "linked_pkg" / "__init__.py").write_text("")
    (here / "real" / "linked_pkg" / "net.py").write_text(NET.format(extra="", result="x + 1"))
    (here / "link").symlink_to(here / "real")
    monkeypatch.chdir(here / "link")
    monkeypatch.syspath_prepend(str(here / "link"))
    assert run(["export", "linked_pkg.net:Net", *INPUT]) == 0
    assert lines() == {"linked_pkg/net.py:10"}


HELPERS = """
import torch

def inner(x):
    return x.softmax(-1)

def outer(x):
    return inner(x) + 1

class Net(torch.nn.Module):
    def forward(self, x):
        double = lambda y: (
            y * 2)
        return torch.relu(
            double(outer(x)))
"""


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_the_innermost_line_is_that_of_the_helper(here: Path, exporter: str) -> None:
    (here / "helped_net.py").write_text(HELPERS)
    words = ["--input", "x:float32[batch,4]", "-o", "net.onnx", "-q", "--exporter", exporter]
    assert run(["export", "helped_net.py:Net", *words]) == 0
    found = {
        node.op_type: [p.value for p in node.metadata_props if p.key == source_lines.KEY]
        for node in onnx.load("net.onnx").graph.node
    }
    lines = {"Softmax": 5, "Add": 8, "Mul": 13, "Relu": 14}
    assert {op: found[op] for op in lines} == {op: [f"helped_net.py:{line}"] for op, line in lines.items()}
