"""Operators of PyTorch that the user translates: every right way, one message for every wrong one."""

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest

pytestmark = pytest.mark.torch

from penstock.build_settings import BuildSettings  # noqa: E402
from penstock.errors import GateError, InputError, UsageError  # noqa: E402
from penstock.frontends import Exported, Source  # noqa: E402
from penstock.stages.export import ExportSettings, export  # noqa: E402
from penstock.store import Cache  # noqa: E402
from penstock.transforms import export_source  # noqa: E402

NET = """
import torch
from torch import nn

@torch.library.custom_op("penstocktest::squash", mutates_args=())
def squash(x: torch.Tensor, limit: float) -> torch.Tensor:
    return x / (1 + (x / limit).abs())

@squash.register_fake
def _(x, limit):
    return torch.empty_like(x)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        return torch.ops.penstocktest.squash(self.fc(x), 2.0)
"""
TRANSLATIONS = """
from onnxscript import FLOAT, opset18 as op, script

def plain(x, limit: float):
    return op.Div(x, op.Add(op.Abs(op.Div(x, limit)), 1.0))

@script()
def scripted(x: FLOAT[...], limit: float) -> FLOAT[...]:
    return op.Div(x, op.Add(op.Abs(op.Div(x, op.Constant(value_float=limit))), op.Constant(value_float=1.0)))

@script()
def unannotated(x, limit: float):
    return op.Abs(x)

def wrong(x, limit: float):
    return op.Abs(x)

def fails(x, limit: float):
    raise RuntimeError("out of luck")

def calls_what_is_not_there(x, limit: float):
    return op.Nonsense(x)

def returns_nothing(x, limit: float):
    pass

def wants_more(x, limit: float, third):
    return op.Abs(x)

number = 3
"""
OP = "penstocktest::squash"


@pytest.fixture(autouse=True)
def clean_modules() -> Iterator[None]:
    before, path = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - before:
        if "pytest-of-" in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]
    sys.path[:] = path


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "squash_net.py").write_text(NET)
    (tmp_path / "squash_translations.py").write_text(TRANSLATIONS)
    return tmp_path


def run(home: Path, *translate: str, **settings: object) -> tuple[Exported, onnx.ModelProto]:
    settings.setdefault("input", ("x:float32[batch,6]",))
    (home / "out").mkdir(exist_ok=True)
    into = home / "out" / "model.onnx"
    done = export(Source(f"{home}/squash_net.py:Net"), ExportSettings(translate=translate, **settings), into)  # type: ignore[arg-type]
    model = onnx.load(into)
    onnx.checker.check_model(model, full_check=True)
    return done, model


def spec(home: Path, function: str, op: str = OP) -> str:
    return f"{op}={home}/squash_translations.py:{function}"


@pytest.mark.parametrize(
    "op", [OP, "penstocktest::squash.default", "penstocktest.squash.default", "penstocktest.squash"]
)
def test_an_operator_is_translated_under_every_name_of_its(op: str, home: Path, tiny: ModuleType) -> None:
    done, model = run(home, spec(home, "plain", op))
    assert {node.domain for node in model.graph.node} == {""}
    assert any(node.op_type == "Abs" for node in model.graph.node)
    weight, bias = (
        onnx.numpy_helper.to_array(t) for t in sorted(model.graph.initializer, key=lambda t: -len(t.dims))[:2]
    )
    x = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    linear = x @ (weight.T if weight.shape == (3, 6) else weight) + bias
    got = tiny.oracle(model, {"x": x})[0]
    assert np.allclose(got, linear / (1 + np.abs(linear / 2)), atol=1e-6)
    file = home / "squash_translations.py"
    assert done.reads[str(file)] == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("raw", [False, True])
def test_a_scripted_function_translates(raw: bool, home: Path) -> None:
    done, _ = run(home, spec(home, "scripted"), raw=raw)
    assert done.facts["proved_at"] == [{"batch": n} for n in (1, 2, 3, 7)]


def test_a_module_in_the_current_folder_translates(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    done, _ = run(home, f"{OP}=squash_translations:plain")
    assert str(home / "squash_translations.py") in done.reads


def test_a_translation_beside_the_module_registers_the_operator_once(home: Path) -> None:
    """torch.library.define refuses a second registration of one name."""
    text = NET.replace('@torch.library.custom_op("penstocktest::squash", mutates_args=())\n', "")
    text = text.replace("@squash.register_fake\n", '@torch.library.register_fake("penstocktest::beside")\n')
    text = text.replace("import torch\n", "import torch\ntorch.library.define('penstocktest::beside', "
                        "'(Tensor x, float limit) -> Tensor')\n", 1)  # fmt: skip
    text = text.replace("def squash(", '@torch.library.impl("penstocktest::beside", "default")\ndef squash(')
    text = text.replace("torch.ops.penstocktest.squash", "torch.ops.penstocktest.beside")
    (home / "squash_net.py").write_text(text + TRANSLATIONS)
    done, _ = run(home, f"penstocktest::beside={home}/squash_net.py:plain")
    assert done.facts["proved_at"] == [{"batch": n} for n in (1, 2, 3, 7)]


def test_an_operator_of_torch_itself_can_be_translated(home: Path) -> None:
    (home / "squash_net.py").write_text(
        NET.replace("torch.ops.penstocktest.squash(self.fc(x), 2.0)", "self.fc(x).sin()")
    )
    (home / "squash_translations.py").write_text(
        "from onnxscript import opset18 as op\ndef shifted(x):\n    return op.Cos(op.Sub(x, 1.5707963267948966))\n"
    )
    _, model = run(home, spec(home, "shifted", "aten::sin"))
    assert {"Cos"} < {node.op_type for node in model.graph.node}


# --- what goes wrong


def test_an_export_without_the_translation_names_operator_and_cure(home: Path) -> None:
    for exporter in ("dynamo", "torchscript"):
        with pytest.raises(InputError) as caught:
            run(home, exporter=exporter)
        assert caught.value.id == "no-translation" and OP in caught.value.what
        assert "torch.ops.penstocktest.squash(" in caught.value.where and caught.value.where.startswith(
            "squash_net.py:"
        )
        assert f"--translate {OP}=module:function" in caught.value.do
        assert ("--exporter dynamo" in caught.value.do) == (exporter == "torchscript")


@pytest.mark.parametrize(
    ("function", "id", "told"),
    [("fails", "translation-failed", "RuntimeError: out of luck"),
     ("calls_what_is_not_there", "translation-failed", "Nonsense"),
     ("returns_nothing", "translation-failed", OP),
     ("wants_more", "translation-failed", "third"),
     ("unannotated", "bad-translation", "what it returns"),
     ("absent", "no-such-function", "'absent'"),
     ("number", "no-such-function", "'number'")],
)  # fmt: skip
def test_a_function_that_translates_nothing(function: str, id: str, told: str, home: Path) -> None:
    with pytest.raises(InputError) as caught:
        run(home, spec(home, function))
    assert caught.value.id == id and told in caught.value.what and OP in caught.value.what
    assert "squash_translations.py" in caught.value.where and caught.value.do


def test_a_failure_names_the_line_of_the_translation(home: Path) -> None:
    with pytest.raises(InputError) as caught:
        run(home, spec(home, "fails"))
    line = TRANSLATIONS.splitlines().index('    raise RuntimeError("out of luck")') + 1
    assert caught.value.where == f'squash_translations.py:{line}: raise RuntimeError("out of luck")'


def test_a_translation_that_computes_something_else_fails_the_proof(home: Path) -> None:
    with pytest.raises(GateError) as caught:
        run(home, spec(home, "wrong"))
    assert caught.value.id == "export-differs" and "squash_translations.py:wrong" in caught.value.do


@pytest.mark.parametrize(
    ("text", "error", "id"),
    [("nonsense", UsageError, "bad-translation"), ("=f.py:f", UsageError, "bad-translation"),
     ("a::b::c=f.py:f", UsageError, "bad-translation"), (f"{OP}=", InputError, "no-such-function"),
     (f"{OP}=nowhere_at_all:f", InputError, "no-such-module"), (f"{OP}=nowhere.py:f", InputError, "no-such-file"),
     ("penstocktest::squish={}:plain", InputError, "no-such-operator"),
     ("penstocktest::squash.wide={}:plain", InputError, "no-such-operator"),
     ("aten::cos={}:wrong", InputError, "translation-not-used")],
)  # fmt: skip
def test_what_is_written_wrongly(text: str, error: type, id: str, home: Path) -> None:
    given = [spec(home, "plain")] if id == "translation-not-used" else []
    with pytest.raises(error) as caught:
        run(home, *given, text.format(home / "squash_translations.py"))
    assert caught.value.id == id and caught.value.do
    if id == "translation-not-used":
        assert "aten::cos" in caught.value.what and OP in caught.value.do
    if "squish" in text:
        assert OP in caught.value.do


def test_one_operator_translated_twice(home: Path) -> None:
    with pytest.raises(UsageError, match="translated twice"):
        run(home, spec(home, "plain"), spec(home, "scripted", f"{OP}.default"))


def test_tracing_takes_no_translations(home: Path) -> None:
    with pytest.raises(UsageError) as caught:
        run(home, spec(home, "plain"), exporter="torchscript")
    assert caught.value.id == "wrong-exporter" and "--exporter" in caught.value.do


# --- the cache


def test_an_edited_translation_is_exported_again(home: Path) -> None:
    settings = ExportSettings(translate=(spec(home, "plain"),), input=("x:float32[batch,6]",))
    cache, source = Cache(home / "cache"), Source(f"{home}/squash_net.py:Net")

    def go() -> tuple[bool, str]:
        done = export_source(source, settings, lambda: None, "", cache)
        assert BuildSettings("x", export=settings).to_toml()
        assert str(home) not in str(done.variant.settings)  # the record names no folder of this machine
        return done.cached, done.variant.digest

    first = go()
    assert go() == (True, first[1]) and not first[0]
    file = home / "squash_translations.py"
    file.write_text(
        TRANSLATIONS.replace("op.Add(op.Abs(op.Div(x, limit)), 1.0)", "op.Add(1.0, op.Abs(op.Div(x, limit)))")
    )
    again = go()
    assert not again[0] and again[1] != first[1]


def test_one_name_in_two_folders_is_two_translations(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = home / "elsewhere"
    other.mkdir()
    (other / "squash_translations.py").write_text(
        TRANSLATIONS.replace("op.Div(x, op.Add(op.Abs", "op.Mul(x, op.Add(op.Abs")
    )
    settings = ExportSettings(translate=(f"{OP}=squash_translations.py:plain",), input=("x:float32[batch,6]",))
    source, cache = Source(f"{home}/squash_net.py:Net"), Cache(home / "cache")
    monkeypatch.chdir(home)
    export_source(source, settings, lambda: None, "", cache)
    monkeypatch.chdir(other)
    with pytest.raises(GateError):
        export_source(source, settings, lambda: None, "", cache)


# --- a translation into a custom domain

INTO_A_DOMAIN = """
from onnxscript import FLOAT, script
from onnxscript.values import Opset

acme = Opset("com.acme", 1)

@script(default_opset=acme)
def squash(x: FLOAT[...], limit: float) -> FLOAT[...]:
    return acme.Squash(x, limit=limit)
"""


def test_a_custom_domain_must_be_let_through_and_is_then_not_compared(home: Path) -> None:
    from penstock import precheck

    (home / "squash_translations.py").write_text(INTO_A_DOMAIN)
    with pytest.raises(InputError) as caught:
        run(home, spec(home, "squash"))
    assert caught.value.id == "custom-operators" and "--allow-domain com.acme=" in caught.value.do
    with precheck.limits(precheck.CheckSettings(allow_domain=("com.acme",))):
        done, model = run(home, spec(home, "squash"))
    assert [node.op_type for node in model.graph.node if node.domain == "com.acme"] == ["Squash"]
    assert done.facts["proved_at"] == [] and "no library" in str(done.facts["not_proved"])
    assert done.facts["custom_domains"] == {"com.acme": {"operators": ["Squash"], "library": None, "sha256": None}}
