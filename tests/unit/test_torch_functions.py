"""Submodules kept as functions: right in every runtime, shared where they are equal, and kept by the passes."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest

pytestmark = pytest.mark.torch

from penstock import graph, registry  # noqa: E402
from penstock.backends import Loadable  # noqa: E402
from penstock.deployment import Deployment  # noqa: E402
from penstock.errors import InputError, UsageError  # noqa: E402
from penstock.frontends import Exported, Source  # noqa: E402
from penstock.frontends.torch import load_module  # noqa: E402
from penstock.stages.export import ExportSettings, export  # noqa: E402
from penstock.stages.inspect import inspect  # noqa: E402
from penstock.stages.optimize import OptimizeSettings, optimize  # noqa: E402

BLOCK = """
import torch
from torch import nn

class Inner(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc = nn.Linear(width, width)

    def forward(self, x):
        return torch.tanh(self.fc(x))

class Block(nn.Module):
    def __init__(self, width, out=None):
        super().__init__()
        self.inner = Inner(width)
        self.last = nn.Linear(width, out or width)

    def forward(self, x):
        return self.last(x + self.inner(x)).reshape(x.shape[0], -1)
"""
CHAIN = (
    BLOCK
    + """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(6), Block(6), Block(6, 4), Block(4)])
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x).relu()
"""
)


@pytest.fixture(autouse=True)
def clean_modules() -> Iterator[None]:
    before, path = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - before:
        if "pytest-of-" in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]
    sys.path[:] = path


def run(home: Path, text: str, *keep: str, **settings: object) -> tuple[Exported, onnx.ModelProto]:
    (home / "kept_net.py").write_text(text)
    settings.setdefault("input", ("x:float32[batch,6]",))
    (home / "out").mkdir(exist_ok=True)
    into = home / "out" / "model.onnx"
    done = export(Source(f"{home}/kept_net.py:Net"), ExportSettings(keep_function=keep, **settings), into)  # type: ignore[arg-type]
    model = onnx.load(into)
    onnx.checker.check_model(model, full_check=True)
    return done, model


def agrees(home: Path, model: onnx.ModelProto, tiny: ModuleType) -> None:
    """Hold the reference evaluator and the runtimes, with and without their rewrites, against the module itself."""
    import torch

    module = load_module(Source(f"{home}/kept_net.py:Net")).module
    for batch in (1, 5):
        x = np.random.default_rng(batch).normal(size=(batch, 6)).astype(np.float32)
        with torch.no_grad():
            made = module(torch.from_numpy(x))
        want = [t.numpy() for t in (made if isinstance(made, tuple) else (made,))]
        answers = [tiny.oracle(model, {"x": x})]
        for backend in ("onnxruntime", "openvino"):
            plain = Deployment("t", "fp32", "", "fp32", backend)
            session = registry.load("backends", backend).load(Loadable(home / "out" / "model.onnx"), plain)  # type: ignore[attr-defined]
            answers.append(session.run({"x": x}))
            session.close()
        for got in answers:
            for ours, theirs in zip(got, want, strict=True):
                assert ours.shape == theirs.shape and np.abs(ours - theirs).max() <= 1e-5


def functions(model: onnx.ModelProto) -> dict[str, list[str]]:
    assert all(function.domain == graph.KEPT_DOMAIN for function in model.functions)
    return {f.name: [node.op_type for node in f.node] for f in model.functions}


def called(nodes: list[onnx.NodeProto]) -> list[tuple[str, str]]:
    return [(node.op_type, node.name) for node in nodes if node.domain == graph.KEPT_DOMAIN]


@pytest.mark.parametrize("raw", [False, True])
def test_equal_submodules_share_a_function(raw: bool, tmp_path: Path, tiny: ModuleType) -> None:
    done, model = run(tmp_path, CHAIN, "Inner", raw=raw)
    assert list(functions(model)) == ["Inner"]
    assert called(model.graph.node) == [("Inner", f"blocks.{i}.inner") for i in range(4)]
    assert [*model.functions[0].input] == ["input.0", "fc.weight", "fc.bias"]
    assert done.facts["functions"] == {"Inner": [f"blocks.{i}.inner" for i in range(4)]}
    agrees(tmp_path, model, tiny)


def test_another_class_of_the_same_structure_is_another_function(tmp_path: Path, tiny: ModuleType) -> None:
    text = CHAIN.replace("class Block", "class Other(Inner):\n    pass\n\nclass Block")
    text = text.replace("Block(4)])", "Block(4)])\n        self.blocks[1].inner = Other(6)")
    _, model = run(tmp_path, text, "Inner", "Other")
    assert [name for name, _ in called(model.graph.node)] == ["Inner", "Other", "Inner", "Inner"]
    agrees(tmp_path, model, tiny)


def test_another_structure_of_the_same_class_gets_a_number(tmp_path: Path, tiny: ModuleType) -> None:
    text = CHAIN.replace(
        "super().__init__()\n        self.fc", "super().__init__()\n        self.twice = width == 4\n        self.fc"
    )
    text = text.replace(
        "return torch.tanh(self.fc(x))", "y = torch.tanh(self.fc(x))\n        return self.fc(y) if self.twice else y"
    )
    _, model = run(tmp_path, text, "Inner")
    assert [name for name, _ in called(model.graph.node)] == ["Inner", "Inner", "Inner", "Inner_2"]
    agrees(tmp_path, model, tiny)


def test_weights_that_the_exporter_shares_between_submodules_make_no_difference(
    tmp_path: Path, tiny: ModuleType
) -> None:
    """It stores equal tensors once (ones and zeros of an untrained LayerNorm), under the first one's name."""
    text = CHAIN.replace("self.fc = nn.Linear(width, width)", "self.fc = nn.LayerNorm(6)").replace(
        "Block(6, 4), Block(4)", "Block(6)"
    )
    _, model = run(tmp_path, text.replace("nn.Linear(4, 3)", "nn.Linear(6, 3)"), "Block")
    assert [name for name, _ in called(model.graph.node)] == ["Block"] * 3
    assert len({node.input[1] for node in model.graph.node if node.op_type == "Block"}) == 1
    assert "inner.fc.weight" in model.functions[0].input
    agrees(tmp_path, model, tiny)


def test_functions_inside_functions(tmp_path: Path, tiny: ModuleType) -> None:
    done, model = run(tmp_path, CHAIN, "kept_net.Block", "Inner")
    assert set(functions(model)) == {"Block", "Block_2", "Inner"}  # the reshapes are to 6 and to 4
    block = next(function for function in model.functions if function.name == "Block")
    assert [name for name, _ in called(block.node)] == ["Inner"]
    assert [name for name, _ in called(model.graph.node)] == ["Block", "Block", "Block_2", "Block_2"]
    assert done.facts["functions"] == {
        "Block": ["blocks.0", "blocks.1"], "Block_2": ["blocks.2", "blocks.3"],
        "Inner": ["in Block", "in Block_2"],
    }  # fmt: skip
    agrees(tmp_path, model, tiny)


def test_one_submodule_called_twice_is_two_calls(tmp_path: Path, tiny: ModuleType) -> None:
    _, model = run(tmp_path, CHAIN.replace("x = self.blocks", "x = self.blocks").replace(
        "        for block", "        x = self.blocks[0](self.blocks[0](x))\n        for block"), "Block")  # fmt: skip
    names = [name for _, name in called(model.graph.node)]
    assert names == ["blocks.0", "blocks.0@1", "blocks.0@2", "blocks.1", "blocks.2", "blocks.3"]
    agrees(tmp_path, model, tiny)


def test_several_outputs_one_of_them_the_models_own(tmp_path: Path, tiny: ModuleType) -> None:
    text = (
        BLOCK
        + """
class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x, y):
        z = self.fc(x) + y
        return z, z * y, x - y

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = Two(), Two()

    def forward(self, x):
        one, two, three = self.a(x, x * 2)
        four, _, five = self.b(two, three)
        return one, four + five, three
"""
    )
    _, model = run(tmp_path, text, "Two")
    assert [o.name for o in model.graph.output] == ["output_0", "output_1", "output_2"]
    assert len(called(model.graph.node)) == 2
    agrees(tmp_path, model, tiny)


def test_a_branch_inside_a_function(tmp_path: Path, tiny: ModuleType) -> None:
    text = BLOCK.replace("return torch.tanh(self.fc(x))", """y = self.fc(x)
        def high(a, b):
            return a * 2 + b
        def low(a, b):
            return a - b
        return torch.cond(y.sum() > 0, high, low, (y, x))""") + CHAIN[len(BLOCK):]  # fmt: skip
    _, model = run(tmp_path, text, "Inner")
    assert len(called(model.graph.node)) == 4 and list(functions(model)) == ["Inner"]
    assert "If" in functions(model)["Inner"]
    agrees(tmp_path, model, tiny)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_an_exported_program_knows_its_submodules(tmp_path: Path) -> None:
    import torch

    (tmp_path / "kept_net.py").write_text(CHAIN)
    module = load_module(Source(f"{tmp_path}/kept_net.py:Net")).module
    shapes = {"x": {0: torch.export.Dim("batch")}}
    torch.export.save(torch.export.export(module, (torch.zeros(2, 6),), dynamic_shapes=shapes), tmp_path / "m.pt2")
    (tmp_path / "out").mkdir()
    export(Source(str(tmp_path / "m.pt2")), ExportSettings(keep_function=("Block",)), tmp_path / "out" / "model.onnx")
    assert len(called(onnx.load(tmp_path / "out" / "model.onnx").graph.node)) == 4


def test_the_same_source_gives_the_same_bytes(tmp_path: Path) -> None:
    found = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        run(tmp_path / folder, CHAIN, "Block", "Inner")
        found.append((tmp_path / folder / "out" / "model.onnx").read_bytes())
    assert found[0] == found[1]


# --- what goes wrong


@pytest.mark.parametrize("name", ["Blocks", "Net", "Dropout", ""])
def test_a_class_that_is_not_there_is_told_with_those_that_are(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        run(tmp_path, CHAIN, name)
    assert caught.value.id == "no-such-class" and "Block, Inner, Linear" in caught.value.do


def test_a_class_inside_a_branch_alone_is_told_as_such(tmp_path: Path) -> None:
    text = (
        CHAIN[: CHAIN.index("class Net")]
        + """class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block(6)

    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda x: self.block(x), lambda x: x * 2, (x,))
"""
    )
    with pytest.raises(InputError) as caught:
        run(tmp_path, text, "Block")
    assert (
        caught.value.id == "no-such-class"
        and "in the bodies of torch.cond and while_loop none is kept" in caught.value.do
    )


def test_a_submodule_under_two_paths_of_another_depth_is_one_function(tmp_path: Path, tiny: ModuleType) -> None:
    text = (
        CHAIN[: CHAIN.index("class Net")]
        + """class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block(6)

    def forward(self, x):
        return self.block(x)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.deep = Deep()
        self.block = self.deep.block

    def forward(self, x):
        return self.block(self.deep(x))
"""
    )
    _, model = run(tmp_path, text, "Block")
    assert len(called(model.graph.node)) == 2 and list(functions(model)) == ["Block"]
    agrees(tmp_path, model, tiny)


def test_tracing_keeps_no_functions(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        run(tmp_path, CHAIN, "Block", exporter="torchscript")
    assert caught.value.id == "wrong-exporter" and "--keep-function" in caught.value.what


# --- afterwards


def test_optimize_keeps_it_and_inlines_other_functions(tmp_path: Path, tiny: ModuleType) -> None:
    _, model = run(tmp_path, CHAIN, "Inner", raw=True)
    helper = onnx.helper.make_function(
        "own", "Twice", ["a"], ["b"], [onnx.helper.make_node("Add", ["a", "a"], ["b"])],
        [onnx.helper.make_opsetid("", model.opset_import[0].version)],
    )  # fmt: skip
    model.functions.append(helper)
    model.opset_import.append(onnx.helper.make_opsetid("own", 1))
    last = next(node for node in model.graph.node if model.graph.output[0].name in node.output)
    last.output[0] = "before"
    model.graph.node.append(onnx.helper.make_node("Twice", ["before"], [model.graph.output[0].name], domain="own"))
    onnx.save(model, tmp_path / "both.onnx")
    x = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    (tmp_path / "slim").mkdir()
    done = optimize(tmp_path / "both.onnx", OptimizeSettings(), tmp_path / "slim")
    slim = onnx.load(tmp_path / "slim" / "model.onnx")
    assert list(functions(slim)) == ["Inner"] and len(called(slim.graph.node)) == 4
    assert np.allclose(tiny.oracle(slim, {"x": x})[0], tiny.oracle(model, {"x": x})[0], atol=1e-6)
    assert done.settled and not any(record.failures for record in done.passes)
    assert any(record.changes for record in done.passes if record.name == "inline-functions")


def test_inspect_counts_what_is_inside(tmp_path: Path) -> None:
    run(tmp_path, CHAIN)
    flat = inspect(tmp_path / "out" / "model.onnx")
    run(tmp_path, CHAIN, "Block")
    kept = inspect(tmp_path / "out" / "model.onnx")
    assert kept.functions == (f"{graph.KEPT_DOMAIN}::Block", f"{graph.KEPT_DOMAIN}::Block_2")
    assert (kept.macs, kept.parameters) == (flat.macs, flat.parameters)


def test_the_quantizer_sees_what_is_inside(tmp_path: Path, tiny: ModuleType) -> None:
    from penstock.stages.quantize import QuantizeSettings, quantize

    run(tmp_path, CHAIN, "Block")
    draw = np.random.default_rng(0)
    batches = [{"x": draw.normal(size=(8, 6)).astype(np.float32)} for _ in range(4)]
    facts = quantize(tmp_path / "out" / "model.onnx", batches, QuantizeSettings(), tmp_path / "int8.onnx")
    assert facts["operators_left_in_float"] == []
    assert not onnx.load(tmp_path / "int8.onnx").functions


@pytest.mark.slow
def test_a_build_keeps_it_in_fp32_and_slim(tmp_path: Path) -> None:
    from penstock.build_settings import BuildSettings
    from penstock.pipeline import build
    from penstock.stages.bench import BenchSettings

    # raw leaves the BatchNormalization to optimize
    (tmp_path / "kept_net.py").write_text(
        CHAIN.replace("nn.Linear(4, 3)", "nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))")
    )
    settings = BuildSettings(
        f"{tmp_path}/kept_net.py:Net",
        bench=BenchSettings(warmup_calls=2, min_rounds=3, calls_per_round=2, seconds=0.1),
        export=ExportSettings(keep_function=("Block",), input=("x:float32[batch,6]",), raw=True),
    )  # fmt: skip
    result = build(settings, tmp_path / "build", cache=tmp_path / "cache")
    assert [variant.name for variant in result.variants] == ["source", "fp32", "slim", "int8"]
    for name in ("fp32", "slim"):
        model = onnx.load(tmp_path / "build" / "models" / name / "model.onnx")
        assert "Block" in functions(model) and len(called(model.graph.node)) == 4
    failed = [
        row.deployment.name
        for row in result.rows
        for v in row.verdicts
        if v.gate in ("load", "verify") and not v.passed
    ]
    assert not failed


def test_a_call_has_the_line_at_which_it_stands(tmp_path: Path) -> None:
    """One of a submodule inside another stands in that one's forward, and of several lines each has its own."""
    text = (
        BLOCK
        + """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = Block(4), Inner(4)

    def forward(self, x):
        x = self.a(x)
        x = x * 3
        return self.b(x)
"""
    )
    (tmp_path / "net.py").write_text(text)
    settings = ExportSettings(input=("x:float32[batch,4]",), keep_function=("Block", "Inner"))
    export(Source(f"{tmp_path / 'net.py'}:Net"), settings, tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    lines = text.splitlines()
    found = {}
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in nodes:
            place = next((p.value for p in node.metadata_props if p.key == "penstock.source"), "net.py:0")
            found.setdefault(node.op_type, []).append(lines[int(place.rpartition(":")[2]) - 1].strip())
    assert found["Block"] == ["x = self.a(x)"] and found["Mul"] == ["x = x * 3"]
    assert sorted(found["Inner"]) == ["return self.b(x)", "return self.last(x + self.inner(x)).reshape(x.shape[0], -1)"]
