"""PyTorch sources: every form that can be named, every file that must not run, every export that must not pass."""

import hashlib
import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnx.version_converter
import pytest

pytestmark = pytest.mark.torch

from penstock.errors import GateError, InputError, UsageError  # noqa: E402
from penstock.frontends import Exported, Source  # noqa: E402
from penstock.stages.export import ExportSettings, export, frontend  # noqa: E402

INPUT = ("x:float32[batch,3,8,8]",)
NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 5)
        nn.init.uniform_(self.bn.running_mean, -1, 1)

    def forward(self, x):
        return self.fc(torch.relu(self.bn(self.conv(x))).mean((2, 3)))

class Wants(Net):
    def __init__(self, width, depth=3):
        super().__init__()

def factory():
    return Net()

def wrong():
    return 3

def fails():
    raise RuntimeError("out of luck")

built = Net()
number = 3
"""


@pytest.fixture(autouse=True)
def clean_modules() -> Iterator[None]:
    """Forget the user's modules: each test is a process of its own to them."""
    before, path = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if "pytest-of-" in file:
            del sys.modules[name]
    sys.path[:] = path


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "src" / "tiny_net.py"
    path.parent.mkdir()
    path.write_text(NET)
    return path


def write(net: Path, body: str, imports: str = "import torch\nfrom torch import nn\n") -> str:
    net.write_text(
        f"{imports}\nclass Net(nn.Module):\n" + "\n".join("    " + line for line in body.strip("\n").splitlines())
    )
    return f"{net}:Net"


def run(
    spec: str, into: Path, weights: str = "", example: dict | None = None, **settings: object
) -> tuple[Exported, onnx.ModelProto]:
    settings.setdefault("exporter", "torchscript")  # 20 times faster than dynamo
    into.mkdir(exist_ok=True)
    done = export(Source(spec, weights), ExportSettings(**settings), into / "model.onnx", example)  # type: ignore[arg-type]
    model = onnx.load(into / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    return done, model


def agrees(model: onnx.ModelProto, module: object, batch: int, tiny: ModuleType) -> None:
    import torch

    x = np.random.default_rng(batch).normal(size=(batch, 3, 8, 8)).astype(np.float32)
    with torch.no_grad():
        want = module.eval()(torch.from_numpy(x)).numpy()  # type: ignore[attr-defined]
    if model.opset_import[0].version < 14:  # the reference evaluator takes BatchNormalization 9 for training
        model = onnx.version_converter.convert_version(model, 15)
    got = tiny.oracle(model, {model.graph.input[0].name: x})[0]
    assert got.shape == want.shape and np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


def own(net: Path) -> object:
    scope: dict = {}
    exec(NET, scope)
    return scope["Net"]()


def reads(done: Exported) -> dict[str, str]:
    """What an export read, without the modules of the tests that call it."""
    return {path: digest for path, digest in done.reads.items() if not path.startswith(str(Path(__file__).parents[1]))}


# --- what is claimed


@pytest.mark.parametrize(
    ("spec", "name"),
    [("net.py:Net", "torch"), ("a/b/net.py:Net", "torch"), ("package.module:factory", "torch"), ("m.pt2", "torch"),
     ("zoo:digits", "torch"), ("m.onnx", "onnx"), ("C:/m.onnx", "onnx")],
)  # fmt: skip
def test_who_reads_what(spec: str, name: str) -> None:
    assert frontend(Source(spec))[0] == name


@pytest.mark.parametrize("spec", ["net.py", "", "net.py:", ":Net", "a-b:c", "net.py:a.b"])
def test_what_nobody_reads(spec: str) -> None:
    with pytest.raises(UsageError) as caught:
        frontend(Source(spec))
    assert "file.py:Class" in caught.value.do


# --- the forms


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_a_class_in_a_file(exporter: str, net: Path, tmp_path: Path, tiny: ModuleType) -> None:
    done, model = run(f"{net}:Net", tmp_path / "out", input=INPUT, exporter=exporter)
    for batch in (1, 4):
        agrees(model, own(net), batch, tiny)
    assert done.facts["proved_at"] == [{"batch": n} for n in (1, 2, 3, 7)]
    assert reads(done) == {str(net): hashlib.sha256(net.read_bytes()).hexdigest()}
    assert [spec.text() for spec in done.signature.inputs] == ["x:float32[batch,3,8,8]"]
    assert done.signature.outputs[0].shape == ("batch", 5)
    assert done.facts["opset"] == (13 if exporter == "torchscript" else 18)
    assert str(tmp_path).encode() not in (tmp_path / "out" / "model.onnx").read_bytes()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("name", ["factory", "built"])
def test_a_function_and_a_built_module(name: str, net: Path, tmp_path: Path, tiny: ModuleType) -> None:
    _, model = run(f"{net}:{name}", tmp_path / "out", input=INPUT)
    agrees(model, own(net), 3, tiny)


def test_a_package_of_the_current_folder(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: ModuleType
) -> None:
    package = tmp_path / "work" / "mypackage"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text(NET)
    monkeypatch.chdir(tmp_path / "work")
    done, model = run("mypackage.nets:factory", tmp_path / "out", input=INPUT)
    agrees(model, own(net), 2, tiny)
    assert {Path(path).name for path in reads(done)} == {"__init__.py", "nets.py"}


def test_neighbours_are_read_and_listed(net: Path, tmp_path: Path) -> None:
    (net.parent / "layers_beside.py").write_text("WIDTH = 5\n")
    net.write_text("from layers_beside import WIDTH\n" + NET)
    done, _ = run(f"{net}:Net", tmp_path / "out", input=INPUT)
    assert {Path(path).name for path in reads(done)} == {"tiny_net.py", "layers_beside.py"}


def test_a_second_load_in_one_process_lists_what_it_read_and_sees_the_edit(net: Path, tmp_path: Path) -> None:
    """Notebooks build, edit and build again: the cache trusts this list."""
    (net.parent / "layers_beside.py").write_text("WIDTH = 5\n")
    net.write_text("from layers_beside import WIDTH\n" + NET.replace("nn.Linear(4, 5)", "nn.Linear(4, WIDTH)"))
    first, _ = run(f"{net}:Net", tmp_path / "a", input=INPUT)
    again, _ = run(f"{net}:Net", tmp_path / "b", input=INPUT)
    assert again.reads == first.reads
    net.write_text(net.read_text().replace("nn.Linear(4, WIDTH)", "nn.Linear(4, WIDTH + 1)"))
    edited, _ = run(f"{net}:Net", tmp_path / "c", input=INPUT)
    assert edited.signature.outputs[0].shape == ("batch", 6) and set(edited.reads) == set(first.reads)


def test_the_callers_own_modules_are_no_reads(net: Path, tmp_path: Path) -> None:
    """The digest of a source is that of the source, whoever exports it."""
    done, _ = run(f"{net}:Net", tmp_path / "out", input=INPUT)
    assert done.reads == reads(done)


def test_two_files_of_one_name_are_two_sources(net: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / net.name
    other.parent.mkdir()
    other.write_text(NET.replace("nn.Linear(4, 5)", "nn.Linear(4, 9)"))
    run(f"{net}:Net", tmp_path / "a", input=INPUT)
    done, _ = run(f"{other}:Net", tmp_path / "b", input=INPUT)
    assert done.signature.outputs[0].shape == ("batch", 9) and list(reads(done)) == [str(other)]


def test_a_module_without_weights_of_its_own_is_the_same_at_each_load(net: Path) -> None:
    """The export and the golden outputs are made in two loads: fresh random weights would differ."""
    import torch

    from penstock.frontends.torch import load_module

    write(
        net,
        "def __init__(self):\n    super().__init__()\n    self.fc = nn.Linear(3, 2)\ndef forward(self, x):\n    return self.fc(x)",  # noqa: E501
    )
    one, two = (load_module(Source(f"{net}:Net")).module.state_dict() for _ in range(2))
    assert all(torch.equal(one[key], two[key]) for key in one)


def program(net: Path, path: Path, dynamic: bool = True) -> Path:
    import torch

    shapes = {"x": {0: torch.export.Dim("batch")}} if dynamic else None
    module = own(net).eval()  # type: ignore[attr-defined]
    torch.export.save(torch.export.export(module, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=shapes), path)
    return path


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_an_exported_program(net: Path, tmp_path: Path, tiny: ModuleType) -> None:
    path = program(net, tmp_path / "m.pt2")
    done, model = run(str(path), tmp_path / "out", exporter="dynamo")
    agrees(model, own(net), 3, tiny)
    assert reads(done) == {str(path): hashlib.sha256(path.read_bytes()).hexdigest()}
    with pytest.raises(InputError, match="takes no weights"):
        run(str(path), tmp_path / "out", weights=str(path), exporter="dynamo")
    with pytest.raises(UsageError, match="dynamo"):
        run(str(path), tmp_path / "out", exporter="torchscript")


def test_an_absent_or_broken_program(tmp_path: Path) -> None:
    for data in (None, b"", b"PK\x03\x04 no archive"):
        if data is not None:
            (tmp_path / "m.pt2").write_bytes(data)
        with pytest.raises(InputError) as caught:
            run(str(tmp_path / "m.pt2"), tmp_path / "out", exporter="dynamo")
        assert caught.value.do


# --- weights


@pytest.mark.parametrize("form", ["safetensors", "pt", "pth", "nested"])
def test_weights_take_effect(form: str, net: Path, tmp_path: Path, tiny: ModuleType) -> None:
    import torch
    from safetensors.torch import save_file

    module = own(net)
    for parameter in module.parameters():  # type: ignore[attr-defined]
        torch.nn.init.uniform_(parameter, -1, 1)
    state = module.state_dict()  # type: ignore[attr-defined]
    path = tmp_path / f"w.{'pt' if form == 'nested' else form}"
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if form == "nested" else state, path)
    done, model = run(f"{net}:Net", tmp_path / "out", weights=str(path), input=INPUT)
    agrees(model, module, 2, tiny)
    assert done.reads[str(path)] == hashlib.sha256(path.read_bytes()).hexdigest()


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("suffix", ["pt", "pth", "bin"])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(suffix: str, net: Path, tmp_path: Path) -> None:
    import torch

    path = tmp_path / f"w.{suffix}"
    torch.save({"fc.weight": Malicious(tmp_path / "ran")}, path)
    with pytest.raises(InputError) as caught:
        run(f"{net}:Net", tmp_path / "out", weights=str(path), input=INPUT)
    assert caught.value.id == "bad-weights" and "safetensors" in caught.value.do
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("part", ["weights", "constants", "sample inputs"])
def test_a_program_with_pickles_is_refused_and_does_not_run(part: str, net: Path, tmp_path: Path) -> None:
    import io
    import json

    import torch

    good, bad = program(net, tmp_path / "m.pt2"), tmp_path / "bad.pt2"
    evil = io.BytesIO()
    torch.save(Malicious(tmp_path / "ran"), evil)
    touched = False
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(bad, "w", zipfile.ZIP_STORED) as target:
        for name in source.namelist():
            data = source.read(name)
            if part == "sample inputs" and "/sample_inputs/" in name and name.endswith(".pt"):
                data, touched = evil.getvalue(), True
            elif part == "weights" and name.endswith("model_weights_config.json"):
                config = json.loads(data)
                first = next(iter(config["config"].values()))
                first["use_pickle"] = True
                held, touched = first["path_name"], True
                data = json.dumps(config).encode()
                target.writestr(f"{name.rsplit('/', 1)[0]}/{held}", evil.getvalue())
            elif part == "constants" and name.endswith("model_constants_config.json"):
                entry = {"path_name": "evil", "is_param": False, "use_pickle": True, "tensor_meta": None}
                data, touched = json.dumps({"config": {"evil": entry}}).encode(), True
                target.writestr(f"{name.rsplit('/', 1)[0]}/evil", evil.getvalue())
            if not (part == "weights" and "/weights/" in name and not name.endswith(".json")):
                target.writestr(name, data)
    assert touched
    with pytest.raises(InputError) as caught:
        run(str(bad), tmp_path / "out", exporter="dynamo")
    assert caught.value.id == "pickled-pt2" and not (tmp_path / "ran").exists()


def test_weights_that_do_not_fit_are_told_apart(net: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    state = own(net).state_dict()  # type: ignore[attr-defined]
    state["fc.extra"] = state.pop("fc.bias")
    state["fc.weight"] = torch.zeros(7, 4)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(InputError) as caught:
        run(f"{net}:Net", tmp_path / "out", weights=str(tmp_path / "w.safetensors"), input=INPUT)
    assert caught.value.id == "weights-do-not-fit"
    for told in (
        "1 missing (first: fc.bias)",
        "1 unknown (first: fc.extra)",
        "fc.weight is [7, 4], the module wants [5, 4]",
    ):
        assert told in caught.value.what


@pytest.mark.parametrize(
    ("name", "data", "id"),
    [("none.pt", None, "no-such-file"), ("w.npz", b"x", "bad-weights"), ("w.safetensors", b"x" * 20, "bad-weights"),
     ("w.pt", b"", "bad-weights"), ("w.pt", b"no pickle", "bad-weights")],
)  # fmt: skip
def test_bad_files_of_weights(name: str, data: bytes | None, id: str, net: Path, tmp_path: Path) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError) as caught:
        run(f"{net}:Net", tmp_path / "out", weights=str(tmp_path / name), input=INPUT)
    assert caught.value.id == id


def test_weights_that_are_no_tensors(net: Path, tmp_path: Path) -> None:
    import torch

    torch.save([1, 2], tmp_path / "w.pt")
    with pytest.raises(InputError, match="no state_dict"):
        run(f"{net}:Net", tmp_path / "out", weights=str(tmp_path / "w.pt"), input=INPUT)


# --- what the user wrote wrongly


@pytest.mark.parametrize(
    ("name", "id", "told"),
    [
        ("Wants", "needs-arguments", "width"),
        ("Nett", "no-such-name", "Net, Wants"),
        ("wrong", "not-a-module", "gives a int"),
        ("number", "not-a-module", "neither a class nor a function"),
        ("fails", "user-code-failed", "out of luck"),
    ],
)
def test_names_that_give_no_module(name: str, id: str, told: str, net: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        run(f"{net}:{name}", tmp_path / "out", input=INPUT)
    assert caught.value.id == id and told in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line"), [("import torch\n1 / 0\n", 2), ("import not_there_at_all\n", 1), ("def f(:\n", 1)]
)
def test_a_file_that_does_not_import_is_told_with_its_line(text: str, line: int, net: Path, tmp_path: Path) -> None:
    net.write_text(text)
    with pytest.raises(InputError) as caught:
        run(f"{net}:Net", tmp_path / "out", input=INPUT)
    assert (
        caught.value.id == "user-code-failed"
        and f"{net.name}:{line}" in str(caught.value)
        and net.name in str(caught.value)
    )


def test_absent_files_and_packages(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        run(f"{tmp_path / 'none.py'}:Net", tmp_path / "out", input=INPUT)
    for name in ("not_there_at_all:Net", "os.not_there:Net"):
        with pytest.raises(InputError, match="no module named"):
            run(name, tmp_path / "out", input=INPUT)


def test_a_file_named_like_a_library_replaces_nothing(net: Path, tmp_path: Path) -> None:
    """``torch.py:Net`` or ``json.py:Net`` is a bad name, but the process must live on."""
    import json

    trap = net.with_name("json.py")
    trap.write_text(NET)
    run(f"{trap}:Net", tmp_path / "out", input=INPUT)
    assert sys.modules["json"] is json


def test_without_an_example_the_ways_out_are_told(net: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        run(f"{net}:Net", tmp_path / "out")
    assert "--input" in caught.value.do and "example_inputs" in caught.value.do


def test_an_example_that_the_module_refuses(net: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        run(f"{net}:Net", tmp_path / "out", input=("x:float32[batch,4,8,8]",))
    assert caught.value.id == "user-code-failed" and "float32[2, 4, 8, 8]" in caught.value.what


def test_a_module_that_returns_no_tensor(net: Path, tmp_path: Path) -> None:
    spec = write(net, "def forward(self, x):\n    return 3")
    with pytest.raises(InputError, match="no tensor"):
        run(spec, tmp_path / "out", input=("x:float32[batch,2]",))


# --- exports that must not pass


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_an_opset_that_the_exporter_does_not_write(exporter: str, net: Path, tmp_path: Path) -> None:
    if exporter == "torchscript":
        _, model = run(f"{net}:Net", tmp_path / "out", input=INPUT, opset=15)
        assert model.opset_import[0].version == 15
        return
    with pytest.raises(InputError) as caught:
        run(f"{net}:Net", tmp_path / "out", input=INPUT, opset=13, exporter="dynamo")
    assert caught.value.id == "opset-not-honoured" and "18" in caught.value.do
    assert not (tmp_path / "out" / "model.onnx").exists()


def test_a_trace_that_loses_a_branch_is_an_error(net: Path, tmp_path: Path) -> None:
    spec = write(net, "def forward(self, x):\n    if x.sum() > 0:\n        return x + 1\n    return x - 1")
    with pytest.raises(InputError) as caught:
        run(spec, tmp_path / "out", input=("x:float32[batch,2]",))
    assert caught.value.id == "trace-lost-something" and "torch.cond" in caught.value.do


BAKED = "def forward(self, x):\n    return x.reshape(2, 3, 2).sum(2)"


@pytest.mark.parametrize("dim", ["batch", "n"])
def test_a_module_with_a_baked_batch_fails_the_proof(dim: str, net: Path, tmp_path: Path) -> None:
    """Whatever the user calls the first axis, it was asked to be dynamic."""
    spec = write(net, BAKED)
    with pytest.raises((GateError, InputError)) as caught:
        run(spec, tmp_path / "out", input=(f"x:float32[{dim},6]",))
    assert caught.value.id in ("baked-in-size", "module-refuses-size")


def test_a_module_that_keeps_a_state_is_refused(net: Path, tmp_path: Path) -> None:
    """A module whose answer depends on the number of calls can't be held to any export."""
    spec = write(
        net,
        "def __init__(self):\n    super().__init__()\n    self.calls = 0\n"
        "def forward(self, x):\n    self.calls += 1\n    return x * float(self.calls)",
    )
    with pytest.raises(GateError) as caught:
        run(spec, tmp_path / "out", input=("x:float32[batch,2]",))
    assert caught.value.id == "not-deterministic" and caught.value.exit_code == 1


def test_what_differs_beyond_the_tolerance_fails_the_proof(net: Path, tmp_path: Path) -> None:
    """Tracing keeps the factor of the example's batch of 2; the module takes that of each batch."""
    spec = write(net, "def forward(self, x):\n    return x * float(x.untyped_storage().nbytes())")
    with pytest.raises(GateError) as caught:
        run(spec, tmp_path / "out", input=("x:float32[batch,2]",), exporter="torchscript")
    assert caught.value.id == "export-differs" and caught.value.exit_code == 1


# --- several inputs and outputs

TWO = "def forward(self, second, first):\n    return 2 * second - first"


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_several_inputs_and_a_dict_of_outputs(exporter: str, net: Path, tmp_path: Path, tiny: ModuleType) -> None:
    spec = write(
        net,
        "def forward(self, a, ids):\n    s = a.sum(1)\n    return {'scaled': a * ids.to(a.dtype), 'best': a.argmax(1), 'sum': s}",  # noqa: E501
    )
    _, model = run(spec, tmp_path / "out", input=("a:float32[batch,4]", "ids:int64[batch,4]"), exporter=exporter)
    assert [o.name for o in model.graph.output] == ["scaled", "best", "sum"]
    assert [i.name for i in model.graph.input] == ["a", "ids"]
    a, ids = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32), np.arange(12).reshape(3, 4)
    scaled, best, total = tiny.oracle(model, {"a": a, "ids": ids})
    assert (
        np.allclose(scaled, a * ids) and np.array_equal(best, a.argmax(1)) and np.allclose(total, a.sum(1), atol=1e-5)
    )


def test_a_tuple_of_outputs_is_numbered(net: Path, tmp_path: Path) -> None:
    spec = write(net, "def forward(self, x):\n    return x + 1, (x * 2, x.sum(1))")
    _, model = run(spec, tmp_path / "out", input=("x:float32[batch,2]",))
    assert [o.name for o in model.graph.output] == ["output_0", "output_1", "output_2"]


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_one_tensor_returned_twice(exporter: str, net: Path, tmp_path: Path) -> None:
    spec = write(net, "def forward(self, x):\n    y = x + 1\n    return y, y")
    try:
        _, model = run(spec, tmp_path / "out", input=("x:float32[batch,2]",), exporter=exporter)
    except InputError as error:
        assert error.what and error.do
    else:
        assert len(model.graph.output) == 2


@pytest.mark.parametrize("how", ["input", "example", "data"])
def test_inputs_that_are_named_like_parameters_go_to_those(
    how: str, net: Path, tmp_path: Path, tiny: ModuleType
) -> None:
    """In whichever order they are given."""
    spec = write(net, TWO)
    given = {"first": np.full((2, 3), 10, np.float32), "second": np.ones((2, 3), np.float32)}
    if how == "input":
        _, model = run(spec, tmp_path / "out", input=("first:float32[batch,3]", "second:float32[batch,3]"))
    elif how == "data":
        _, model = run(spec, tmp_path / "out", example=given)
    else:
        text = "import torch\ndef example_inputs():\n    return {'first': torch.ones(2, 3) * 10, 'second': torch.ones(2, 3)}\n"  # noqa: E501
        net.write_text(net.read_text() + "\n" + text)
        _, model = run(spec, tmp_path / "out")
    assert tiny.oracle(model, given)[0].tolist() == [[-8.0] * 3] * 2


def test_an_unused_input_is_kept_by_dynamo(net: Path, tmp_path: Path, tiny: ModuleType) -> None:
    spec = write(net, "def forward(self, unused, x):\n    return x + 1")
    both = ("unused:float32[batch,2]", "x:float32[batch,2]")
    _, model = run(spec, tmp_path / "out", input=both, exporter="dynamo")
    feeds = {i.name: np.full((2, 2), n, np.float32) for n, i in enumerate(model.graph.input, 5)}
    assert np.array_equal(tiny.oracle(model, feeds)[0], feeds["x"] + 1)


def test_an_unused_input_that_tracing_drops_is_refused(net: Path, tmp_path: Path) -> None:
    spec = write(net, "def forward(self, unused, x):\n    return x + 1")
    both = ("unused:float32[batch,2]", "x:float32[batch,2]")
    with pytest.raises(InputError, match="left out the input 'unused'"):
        run(spec, tmp_path / "out", input=both, exporter="torchscript")


# --- examples and settings


def test_example_inputs_beside_the_module_and_named_functions(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net.write_text(NET + "\ndef example_inputs():\n    return (torch.zeros(1, 3, 8, 8),)\n")
    done, _ = run(f"{net}:Net", tmp_path / "out")
    assert done.signature.inputs[0].text() == "x:float32[batch,3,8,8]"
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "own_examples.py").write_text(
        "import torch\ndef wide():\n    return torch.zeros(2, 3, 16, 16)\n"
    )
    monkeypatch.chdir(tmp_path / "work")
    settings = ExportSettings(exporter="torchscript", example="own_examples:wide")
    done = export(Source(f"{net}:Net"), settings, tmp_path / "out" / "model.onnx", None)
    assert done.signature.inputs[0].shape == ("batch", 3, 16, 16)
    assert str(tmp_path / "work" / "own_examples.py") in done.reads


def test_an_example_function_that_is_not_there(net: Path, tmp_path: Path) -> None:
    settings = ExportSettings(exporter="torchscript", example="nowhere_at_all:f")
    with pytest.raises(InputError, match="no module 'nowhere_at_all' for the example function"):
        export(Source(f"{net}:Net"), settings, tmp_path / "model.onnx", None)


def test_static_fixes_all_sizes(net: Path, tmp_path: Path) -> None:
    done, _ = run(f"{net}:Net", tmp_path / "out", input=INPUT, static=True)
    assert done.signature.inputs[0].shape == (2, 3, 8, 8) and done.facts["proved_at"] == [{}]


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_raw_keeps_batch_normalization(exporter: str, net: Path, tmp_path: Path, tiny: ModuleType) -> None:
    _, raw = run(f"{net}:Net", tmp_path / "raw", input=INPUT, raw=True, exporter=exporter)
    assert any(node.op_type == "BatchNormalization" for node in raw.graph.node)
    agrees(raw, own(net), 2, tiny)
    if exporter == "torchscript":
        _, folded = run(f"{net}:Net", tmp_path / "folded", input=INPUT, exporter=exporter)
        assert not any(node.op_type == "BatchNormalization" for node in folded.graph.node)


def test_the_same_source_gives_the_same_bytes_in_any_folder(net: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "deep" / net.name
    other.parent.mkdir(parents=True)
    other.write_text(NET)
    run(f"{net}:Net", tmp_path / "a", input=INPUT, exporter="dynamo")
    run(f"{other}:Net", tmp_path / "b", input=INPUT, exporter="dynamo")
    assert (tmp_path / "a" / "model.onnx").read_bytes() == (tmp_path / "b" / "model.onnx").read_bytes()


def test_what_the_users_code_prints_is_no_result(net: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """stdout carries the result alone: with --json it must parse."""
    net.write_text(
        "print('hello from the import')\n" + NET.replace("return self.fc", "print('called'); return self.fc")
    )
    run(f"{net}:Net", tmp_path / "out", input=INPUT)
    assert capfd.readouterr().out == ""
