"""The examples of the export: mistakes that are told as the docs show them, their cures, and control flow."""

import importlib.util
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest

from penstock import source_lines
from penstock.cli import run

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]
ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PAGE = (ROOT / "docs" / "export.md").read_text()


def shown() -> list[tuple[str, str]]:
    """Return the commands of the page with what they answer."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", PAGE, re.S):
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, _, answer = part.partition("\n")
            found.append((command, answer.strip()))
    return found


@pytest.fixture
def footguns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to a copy of the examples, so that nothing is written beside them."""
    for path in (EXAMPLES / "footguns").glob("*.py"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(path: Path) -> ModuleType:
    """Import an example as a module, which torch needs to look its names up in."""
    spec = importlib.util.spec_from_file_location(f"example_{path.parent.name}_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def programs() -> None:
    load(Path("batch_of_one.py")).save("before.pt2", "after.pt2")


def test_every_mistake_is_on_the_page() -> None:
    told = " ".join(command for command, _ in shown())
    for path in (EXAMPLES / "footguns").glob("*.py"):
        assert path.name in told or path.name in PAGE
    assert len(shown()) >= 9


@pytest.mark.parametrize(("command", "answer"), shown(), ids=lambda text: text[:60])
def test_the_mistake_is_told_as_the_page_shows_it(
    command: str, answer: str, footguns: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if ".pt2" in command:
        programs()
    assert run([*shlex.split(command)[1:], "-q"]) in (1, 2)
    out, err = capsys.readouterr()
    assert "\n".join(line.rstrip() for line in err.strip().splitlines()) == answer and out == ""
    assert not (footguns / "net.onnx").exists()


@pytest.mark.parametrize("command", sorted({c for c, _ in shown()}), ids=lambda text: text[:60])
def test_the_cure_passes(command: str, footguns: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if ".pt2" in command:
        programs()
    cured = command.replace(":Before", ":After").replace("before.pt2", "after.pt2")
    words = shlex.split(cured)[1:]
    if "lost_loop" in cured and "--exporter" in words:
        words[words.index("--exporter") + 1] = "auto"
    assert run([*words, "-q"]) == 0, capsys.readouterr().err


def export(source: str, *options: str) -> tuple[onnx.ModelProto, onnxruntime.InferenceSession]:
    assert run(["export", source, "-o", "net.onnx", "-q", *options]) == 0
    return onnx.load("net.onnx"), onnxruntime.InferenceSession("net.onnx")


def nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    found = []
    for node in graph.node:
        found.append(node)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                found += nodes(attribute.g)
    return found


def lines(model: onnx.ModelProto) -> dict[str, str]:
    """Return the source line of every node that computes something."""
    return {
        node.name: next((p.value for p in node.metadata_props if p.key == source_lines.KEY), "")
        for node in nodes(model.graph)
        if node.op_type != "Constant"
    }


def test_the_early_exit_is_right_on_both_branches(footguns: Path) -> None:
    import torch

    model, session = export(f"{EXAMPLES}/early_exit/net.py:EarlyExit", "--probe", f"{EXAMPLES}/early_exit/net.py:probe")
    branch = next(node for node in model.graph.node if node.op_type == "If")
    sizes = [len(a.g.node) for a in branch.attribute]
    assert min(sizes) == 1 and max(sizes) > 4, "one exit has nothing left to do"
    home = load(EXAMPLES / "early_exit" / "net.py")
    module = home.EarlyExit().eval()
    exits = set()
    for batch in (1, 2, 5):
        for inputs in (*home.probe(), torch.randn(2, 3, 32, 32) * 3):
            x = inputs[:1].repeat(batch, 1, 1, 1)
            with torch.no_grad():
                want = module(x).numpy()
                logits = module.early(module.stem(x).mean((2, 3))) * 8
            exits.add(bool(logits.softmax(1).max(1).values.mean() > module.threshold))
            np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], want, rtol=1e-4, atol=1e-5)
    assert exits == {True, False}, "both branches were taken"


def test_the_beam_search_is_right_at_any_number_of_steps(footguns: Path) -> None:
    import torch

    model, session = export(
        f"{EXAMPLES}/beam_search/net.py:BeamSearch", "--probe", f"{EXAMPLES}/beam_search/net.py:probe", "--static"
    )
    assert [node.op_type for node in model.graph.node].count("Loop") == 1
    home = load(EXAMPLES / "beam_search" / "net.py")
    module = home.BeamSearch().eval()
    lengths = set()
    torch.manual_seed(3)
    for first in (*home.probe(), *torch.randn(8, 16)):
        with torch.no_grad():
            tokens, scores = module(first)
        got = session.run(None, {"first": first.numpy()})
        np.testing.assert_array_equal(got[0], tokens.numpy())
        np.testing.assert_allclose(got[1], scores.numpy(), rtol=1e-4, atol=1e-5)
        lengths.add(int((tokens != 0).sum(1).max()))
    assert len(lengths) > 1, "searches of different length were compared"


@pytest.mark.parametrize("source", ["early_exit/net.py:EarlyExit", "beam_search/net.py:BeamSearch"])
def test_control_flow_builds(source: str, footguns: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["--bench-seconds", "0.05", "--no-footprint", "--min-rounds", "3", "--warmup-calls", "3"]
    static = ["--static"] if "beam" in source else []
    assert run(["build", f"{EXAMPLES}/{source}", "-o", "out", "-q", *static, *quick]) == 0, capsys.readouterr().err


SCRIPTED = """
import torch
from helper import scale

@torch.jit.script
def settle(x: torch.Tensor) -> torch.Tensor:
    if bool(x.mean() > 0):
        x = x * 2
    while bool(x.abs().sum() > 1.0):
        x = x * 0.5
    return x

class Calls(torch.nn.Module):
    def forward(self, x):
        return settle(scale(x)) + 1

class Inner(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(4, 4)
    def forward(self, x):
        if bool(x.sum() > 0):
            return self.fc(x)
        return x * 2

def scripted():
    torch.manual_seed(0)
    return torch.jit.script(Inner())
"""
HELPER = "def scale(x):\n    return x * 3\n"


@pytest.mark.parametrize("name", ["Calls", "scripted"])
def test_what_is_scripted_arrives_as_control_flow(name: str, footguns: Path) -> None:
    import torch

    (footguns / "scripted_net.py").write_text(SCRIPTED)
    (footguns / "helper.py").write_text(HELPER)
    model, session = export("scripted_net.py:" + name, "--input", "x:float32[batch,4]")
    kinds = {node.op_type for node in nodes(model.graph)}
    assert "If" in kinds and ("Loop" in kinds) == (name == "Calls")
    from importlib import import_module

    module = getattr(import_module("scripted_net"), name)()
    for shift in (-1.0, -0.1, 0.1, 2.0):
        x = torch.full((3, 4), shift) + torch.arange(12).reshape(3, 4) / 100
        with torch.no_grad():
            want = module(x).numpy()
        np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], want, rtol=1e-5, atol=1e-6)
    found = {name: line for name, line in lines(model).items() if "Identity" not in name}
    assert all(re.fullmatch(r"(scripted_net|helper)\.py:\d+", line) for line in found.values()), found


TWO_FILES = """
import torch
from layers import Block

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = Block()
        self.fc = torch.nn.Linear(8, 5)

    def forward(self, x):
        y = self.first(x)
        return self.fc(y.mean((2, 3)))
"""
LAYERS = """
import torch

class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())

    def forward(self, x):
        return self.conv(x) * 2
"""


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_every_node_has_its_line(exporter: str, footguns: Path) -> None:
    layers = f"layers_{exporter}"  # a module that is loaded already is not loaded from here
    (footguns / "two_net.py").write_text(TWO_FILES.replace("layers", layers))
    (footguns / f"{layers}.py").write_text(LAYERS)
    options = ["--input", "x:float32[batch,3,8,8]", "--exporter", exporter]
    model, _ = export("two_net.py:Net", *options)
    found = set(lines(model).values())
    assert found == {f"{layers}.py:10", "two_net.py:13"}
    data = Path("net.onnx").read_bytes()
    assert str(footguns).encode() not in data and b"site-packages" not in data and b"<eval" not in data
    assert run(["optimize", "net.onnx", "-o", "slim.onnx", "-q"]) == 0
    assert set(lines(onnx.load("slim.onnx")).values()) == found, "passes hand the lines on"
    raw, _ = export("two_net.py:Net", *options, "--raw")
    assert "" not in lines(raw).values()
    assert run(["optimize", "net.onnx", "-o", "slim.onnx", "-q"]) == 0
    assert "" not in lines(onnx.load("slim.onnx")).values()


def test_the_zoo_names_its_own_file(footguns: Path) -> None:
    model, _ = export("zoo:cifar10")
    assert {line.partition(":")[0] for line in lines(model).values()} == {"zoo/_network.py"}


def test_a_package_is_told_from_its_root(footguns: Path) -> None:
    home = footguns / "nets" / "small"
    home.mkdir(parents=True)
    (footguns / "nets" / "__init__.py").write_text("")
    (home / "__init__.py").write_text("")
    (home / "model.py").write_text(TWO_FILES.replace("from layers", "from nets.small.layers"))
    (home / "layers.py").write_text(LAYERS)
    model, _ = export("nets.small.model:Net", "--input", "x:float32[batch,3,8,8]")
    assert set(lines(model).values()) == {"nets/small/layers.py:10", "nets/small/model.py:13"}


SIZES = """
import torch

class Free(torch.nn.Module):
    def forward(self, x, mask):
        return x.mean(3) * mask

class Fixed(torch.nn.Module):
    def forward(self, x, mask):
        return (x + torch.ones(6, 6)).mean(3) * mask
"""


def test_other_axes_are_varied_together(footguns: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (footguns / "sizes_net.py").write_text(SIZES)
    shapes = ["--input", "x:float32[batch,2,height=6,width=6]", "--input", "mask:float32[batch,2,height=6]"]
    assert run(["export", "sizes_net.py:Free", "-o", "net.onnx", "-q", *shapes]) == 0
    out = capsys.readouterr().out
    for told in ("batch 7, height 6, width 6", "batch 2, height 7, width 6", "batch 2, height 6, width 7"):
        assert told in out
    code = run(["export", "sizes_net.py:Fixed", "-o", "other.onnx", "-q", *shapes])
    told = capsys.readouterr().err
    assert code == 1 and "the size of 'height' in the example, 6, is baked in" in told and "sizes_net.py:10" in told
    assert run(["export", "sizes_net.py:Fixed", "-o", "o.onnx", "-q", "--exporter", "torchscript", *shapes]) == 0
    assert "'height' is fixed at 6" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("raise ValueError('no')", "the probe function failed: ValueError: no"),
        ("return []", "returned no inputs"),
        ("return 1, 2", "aren't the module's"),
        ("import numpy; return numpy.zeros((2, 4))", "is float64[2, 4]"),
    ],
)
def test_a_bad_probe_is_told(body: str, told: str, footguns: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (footguns / "probes.py").write_text(f"def probe():\n    {body}\n")
    words = ["lost_comparison.py:After", "--input", "x:float32[batch,4]", "--probe", "probes.py:probe"]
    assert run(["export", *words, "-o", "net.onnx", "-q"]) == 2
    assert told in capsys.readouterr().err
