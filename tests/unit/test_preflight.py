"""Before a build: what its settings can't do here is found at once, in the same words for build, plan and doctor."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from penstock import preflight
from penstock.build_settings import resolve
from penstock.cli import run
from penstock.errors import PenstockError


@pytest.fixture
def home(tmp_path: Path, tiny: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny.save(tiny.mlp(), tmp_path / "m.onnx")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "id"),
    [
        ("absent.onnx", "no-such-file"),
        ("absent.py:Net", "no-such-file"),
        ("zoo:nothing", "unknown-network"),
        ("m.onnx --weights w.safetensors", "weights-do-not-fit"),
        ("m.onnx --data absent.npz", "no-such-file"),
        ("m.onnx --data absent.py:load", "no-such-file"),
        ("m.onnx --data nowhere", "unknown-data"),
        ("m.onnx --allow-domain com.acme=absent.so", "no-such-file"),
        ("m.onnx --passes nothing", "unknown-plug-in"),
        ("m.onnx --skip fold-batchnrm", "unknown-plug-in"),
        ("m.onnx --method ortt", "unknown-plug-in"),
        ("m.onnx --no-quantize --exclude conv", "bad-setting"),
        ("m.onnx --no-quantize --int16-layers conv", "bad-setting"),
        ("m.onnx --backends nothing", "unknown-plug-in"),
        ("m.onnx --baseline nothing", "unknown-baseline"),
        ("m.onnx --baseline fp32@openvino --backends onnxruntime", "unknown-baseline"),
        ("m.onnx --max-drop 1", "no-metric"),
        ("m.onnx --metric absent.py:score", "no-such-file"),
    ],
)
def test_build_and_plan_refuse_at_once(arguments: str, id: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more in ([], ["--dry-run"]):
        assert run(["build", *arguments.split(), "-o", "out", "--json", "-q", *more]) == 2
        assert json.loads(capsys.readouterr().out)["error"]["id"] == id
        assert not Path("out").exists(), "nothing is written for a build that can't be"


def test_the_doctor_names_all_that_is_wrong(home: Path) -> None:
    top = {"source": "absent.onnx", "backends": ("nothing",)}
    settings = resolve({"": top, "quantize": {"method": "qq"}, "optimize": {"skip": ("a",)}})
    assert [p.id for p in preflight.problems(settings)] == ["no-such-file", *["unknown-plug-in"] * 3]


@pytest.mark.parametrize(
    ("package", "source", "data"),
    [("sklearn", "m.onnx", "digits"), ("PIL", "m.onnx", "images"), ("torch", "net.py:Net", ""),
     ("sklearn", "zoo:digits", "")],
)  # fmt: skip
def test_an_absent_extra_is_exit_code_3(
    package: str, source: str, data: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "net.py").write_text("class Net: pass\n")
    for name in ("a", "b"):
        (home / "images" / name).mkdir(parents=True)
        (home / "images" / name / "1.jpg").write_bytes(b"x")
    plain = importlib.util.find_spec

    def absent(name: str, *rest: str) -> object:
        return None if name == package else plain(name, *rest)

    for module in ("importlib.util", "penstock.datasets.digits", "penstock.datasets.folder"):
        monkeypatch.setattr(f"{module}.find_spec", absent)
    with pytest.raises(PenstockError) as caught:
        preflight.check(resolve({"": {"source": source}, "data": {"data": data} if data else {}}))
    assert caught.value.exit_code == 3 and "pip install 'penstock[" in caught.value.do


def test_an_unknown_output_is_refused_before_the_golden_set(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["build", "m.onnx", "-o", "out", "--backends", "onnxruntime", "--logits", "nope", "--json", "-q"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["id"] == "unknown-output"
    assert not list(Path("out").rglob("*.onnx"))


def test_a_baseline_that_is_not_built_is_refused_before_the_golden_set(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["m.onnx", "-o", "out", "--backends", "onnxruntime", "--baseline", "fp16@onnxruntime", "--json", "-q"]
    assert run(["build", *words]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["id"] == "unknown-baseline" and "fp32@onnxruntime" in error["do"]
    assert not Path("out/golden/outputs.npz").exists()
