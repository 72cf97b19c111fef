"""Building again from a lock or a script gives the same models; `penstock diff` tells what differs and why."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest

from penstock import ledger, store, user_code
from penstock.cli import run
from penstock.variant import ModelFile

FAST = ["--bench-seconds", "0.05", "--no-footprint", "--min-rounds", "3", "--warmup-calls", "3", "-q"]
FAST += ["--backends", "onnxruntime"]
NET = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc = torch.nn.Linear(6, 3)

    def forward(self, x):
        return torch.relu(self.fc(x))
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: ModuleType) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    tiny.save(tiny.mlp(), folder / "m.onnx")
    rng = np.random.default_rng(0)
    np.savez(folder / "d.npz", x=rng.normal(size=(300, 6)).astype(np.float32), y=rng.integers(0, 3, 300))
    monkeypatch.chdir(folder)
    return folder


def build(*arguments: str, backends: str = "onnxruntime") -> None:
    assert run(["build", *arguments, *FAST[:-1], backends]) == 0


def models(folder: Path) -> tuple[ModelFile, ...]:
    return store.list_files(folder / "models")


def told(capsys: pytest.CaptureFixture[str], a: str, b: str, code: int) -> dict:
    capsys.readouterr()
    assert run(["diff", a, b, "--json"]) == code
    return json.loads(capsys.readouterr().out)["result"]


def test_a_lock_builds_it_again_from_any_folder(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build("m.onnx", "--data", "d.npz", "--seed", "3", "-o", "out")
    monkeypatch.chdir(tmp_path)
    build("work/out/penstock.lock.toml", "-o", "again")
    assert models(home / "out") == models(tmp_path / "again")
    locks = [(folder / "penstock.lock.toml").read_text() for folder in (home / "out", tmp_path / "again")]
    assert locks[0].replace('base = ".."', "") == locks[1].replace('base = "../work"', "")
    found = told(capsys, "work/out", "again", 0)
    assert found["same_models"] and found["causes"] == [] and Path.cwd() == tmp_path


@pytest.mark.torch
@pytest.mark.parametrize("exporter", ["auto", "torchscript"])
def test_a_lock_of_a_module(exporter: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / f"lock_net_{exporter}.py").write_text(NET)
    build(f"lock_net_{exporter}.py:Net", "--input", "x:float32[batch,6]", "--exporter", exporter, "-o", "out")
    lock = (home / "out" / "penstock.lock.toml").read_text()
    assert f'exporter = "{"dynamo" if exporter == "auto" else exporter}"' in lock and "opset = 1" in lock
    monkeypatch.chdir(tmp_path)
    build("work/out/penstock.lock.toml", "-o", "again")
    assert models(home / "out") == models(tmp_path / "again")


def test_what_changed_since_is_told(home: Path, tiny: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    build("m.onnx", "-o", "out")
    lock = home / "out" / "penstock.lock.toml"
    lock.write_text(lock.read_text().replace('onnxruntime = "', 'onnxruntime = "0.'))
    model = onnx.load("m.onnx")
    model.producer_name = "another"
    onnx.save(model, "m.onnx")
    build(str(lock), "-o", "again")
    shown = capsys.readouterr().out
    assert "m.onnx has changed since" in " ".join(shown.split())
    assert "since the lock was written, onnxruntime was 0." in " ".join(shown.split())


def test_flags_override_a_lock(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build("m.onnx", "-o", "out")
    build("out/penstock.lock.toml", "--seed", "9", "-o", "again")
    found = told(capsys, "out", "again", 1)
    assert {"kind": "setting", "name": "seed", "a": 0, "b": 9} in found["causes"]


@pytest.mark.parametrize(
    ("text", "id"),
    [("not toml [", "bad-settings-file"), ("inputs = 3", "bad-settings-file"), ("", "no-source"),
     (None, "no-such-file"),
     ('source = "m.onnx"\n[export]\nopsett = 3', "unknown-setting")],
)  # fmt: skip
def test_a_bad_lock(text: str | None, id: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if text is not None:
        Path("x.lock.toml").write_text(text)
    assert run(["build", "x.lock.toml", "-o", "out", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["id"] == id
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "arguments",
    ["m.onnx --seed 3 --data d.npz --calibrate-samples 32 --exclude fc1 --bench-seconds 0.01",
     "'odd \"name\".onnx' --no-quantize --bench-seconds 0.01"],
)  # fmt: skip
def test_the_printed_script_gives_the_same_models(
    arguments: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path('odd "name".onnx').write_bytes(Path("m.onnx").read_bytes())
    words = [*shlex.split(arguments), *FAST[2:]]
    if "--exclude" in words:  # a node that the model has
        words[words.index("--exclude") + 1] = onnx.load("m.onnx").graph.node[0].name
    capsys.readouterr()
    assert run(["build", *words, "-o", "scripted", "--print-python"]) == 0
    script = capsys.readouterr().out
    assert not Path("scripted").exists(), "printing builds nothing"
    Path("script.py").write_text(script)
    assert run(["build", *words, "-o", "out"]) == 0
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert models(home / "scripted") == models(home / "out")
    assert "chosen" in done.stdout
    assert "warmup_calls=3" in script and "calls_per_round" not in script, "only what isn't at its default"


def test_equal_builds_differ_in_nothing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build("m.onnx", "-o", "a", "--data", "d.npz")
    build("m.onnx", "-o", "b", "--data", "d.npz", "--cache", "other")
    found = told(capsys, "a", "b", 0)
    assert found["causes"] == [] and found["same_models"]
    assert [one for one in found["followed"] if one["kind"] != "latency"] == []
    assert run(["diff", "a", "b"]) == 0
    assert "the same models, byte for byte" in capsys.readouterr().out


def test_a_setting_that_changes_one_variant(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build("m.onnx", "-o", "a", "--data", "d.npz")
    build("m.onnx", "-o", "b", "--data", "d.npz", "--per-tensor")
    found = told(capsys, "a", "b", 1)
    assert [(c["kind"], c["name"]) for c in found["causes"]] == [("setting", "quantize.per_channel")]
    changed = {one["name"]: one["why"] for one in found["followed"] if one["kind"] == "variant"}
    assert changed == {"int8": "settings: per_channel"}


def test_an_input_that_changes_all(home: Path, tiny: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    build("m.onnx", "-o", "a")
    model = onnx.load("m.onnx")
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0]) * np.float32(1.5)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, model.graph.initializer[0].name))
    onnx.save(model, "m.onnx")
    build("m.onnx", "-o", "b")
    found = told(capsys, "a", "b", 1)
    assert [(c["kind"], c["name"]) for c in found["causes"]] == [("input", "m.onnx")]
    why = {one["name"]: one["why"] for one in found["followed"] if one["kind"] == "variant"}
    assert why["fp32"] == "inputs: m.onnx" and why["int8"] == "it is made of fp32, which differs"
    assert {"golden"} <= {one["kind"] for one in found["followed"]}


@pytest.mark.torch
def test_what_an_export_chose_by_itself_is_no_cause(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both builds left the exporter open; the module's change is the cause, and what auto made of it follows."""
    Path("chosen_net.py").write_text(NET)
    words = ("chosen_net.py:Net", "--input", "x:float32[batch,6]", "--no-quantize")
    build(*words, "-o", "a")
    lock = Path("a/penstock.lock.toml").read_text()
    assert 'resolved = [\n    "export.opset",\n    "export.exporter",\n]' in lock
    user_code._IMPORTED.clear()
    Path("chosen_net.py").write_text(NET.replace("torch.relu(", "(").replace("return", "x = x + 1\n        return"))
    build(*words, "-o", "b")
    for folder, named in (("b", "dynamo"), ("b", "torchscript")):
        path = Path(folder, "penstock.lock.toml")
        path.write_text(path.read_text().replace('exporter = "dynamo"', f'exporter = "{named}"'))
        found = told(capsys, "a", "b", 1)
        assert [(c["kind"], c["name"]) for c in found["causes"]] == [("input", "chosen_net.py")]
        why = {one["name"]: (one["what"], one["why"]) for one in found["followed"] if one["kind"] == "variant"}
        assert why["source"] == ("another source or other weights", "inputs: chosen_net.py")
        other = "so it was exported with exporter torchscript in place of dynamo; " if named == "torchscript" else ""
        assert why["fp32"][1] == f"{other}inputs: chosen_net.py"


def rewrite(folder: str, change: Callable[[dict], None]) -> None:
    """Change the entries of a build's ledger, with their chain made anew."""
    path = Path(folder, "ledger.jsonl")
    written: list[str] = []
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        change(entry)
        if written:
            entry["before"] = ledger.link(written[-1])
        written.append(json.dumps(entry))
    path.write_text("".join(line + "\n" for line in written))


def test_why_another_one_was_chosen(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build("m.onnx", "-o", "a", "--data", "d.npz", "--no-quantize", backends="onnxruntime,openvino")
    build("m.onnx", "-o", "b", "--data", "d.npz", "--no-quantize", backends="onnxruntime,openvino")

    def choose(name: str) -> Callable[[dict], None]:
        def change(entry: dict) -> None:
            body = entry.get("body") or {}
            if body.get("stage") == "select" and "chosen" in body.get("measured", {}):
                body["measured"]["chosen"] = name

        return change

    rewrite("a", choose("fp32@onnxruntime"))
    rewrite("b", choose("fp32@openvino"))
    (why,) = [one["why"] for one in told(capsys, "a", "b", 1)["followed"] if one["kind"] == "chosen"]
    number = r"[\d.e-]+ ms in A and [\d.e-]+ ms in B"
    assert re.fullmatch(
        f"by latency: fp32@onnxruntime {number}, fp32@openvino {number}; "
        "two builds are not interleaved, so the machine counts", why
    ), why  # fmt: skip
    build("m.onnx", "-o", "c", "--data", "d.npz", "--no-quantize")
    rewrite("c", choose("fp32@onnxruntime"))
    (why,) = [one["why"] for one in told(capsys, "b", "c", 1)["followed"] if one["kind"] == "chosen"]
    assert why == "fp32@openvino isn't built in B"
    rewrite("c", choose("none"))
    lock = Path("c/penstock.lock.toml")
    lock.write_text(lock.read_text().replace('objective = "latency"', 'objective = "latency"\nmax_size_mb = 0.0001'))
    (why,) = [one["why"] for one in told(capsys, "b", "c", 1)["followed"] if one["kind"] == "chosen"]
    assert why == "settings: select.max_size_mb"


def test_why_a_score_differs(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build("m.onnx", "-o", "a", "--data", "d.npz")
    build("m.onnx", "-o", "b", "--data", "d.npz", "--per-tensor")

    def worse(entry: dict) -> None:
        body = entry.get("body") or {}
        if body.get("stage") == "evaluate" and body.get("inputs", {}).get("role") == "evaluate":
            body["measured"]["score"] -= 0.01

    rewrite("b", worse)
    said = {one["name"]: one for one in told(capsys, "a", "b", 1)["followed"] if one["kind"] == "score"}
    assert said["int8@onnxruntime"]["why"] == "the model int8 differs"
    assert said["fp32@onnxruntime"]["why"] == "the model is the same: the runtime or the machine computes otherwise"
    assert said["fp32@onnxruntime"]["what"].endswith(", the intervals overlap")


def test_a_variant_that_one_build_lacks(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build("m.onnx", "-o", "a")
    build("m.onnx", "-o", "b", "--no-quantize")
    followed = told(capsys, "a", "b", 1)["followed"]
    assert {"kind": "variant", "name": "int8", "what": "only in A",
            "why": "the settings ask for it in one build alone"} in followed  # fmt: skip


def test_a_variant_that_another_input_does_not_need(
    home: Path, tiny: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """The settings are the same: the passes had nothing to do on the other model."""
    tiny.save(tiny.conv(), Path("m.onnx"))
    build("m.onnx", "-o", "a")
    Path("m.onnx").write_bytes(Path("a/models/slim/model.onnx").read_bytes())
    build("m.onnx", "-o", "b")
    followed = told(capsys, "a", "b", 1)["followed"]
    why = next(one["why"] for one in followed if (one["kind"], one["name"]) == ("variant", "slim"))
    assert "the passes found nothing to change" in why and "inputs: m.onnx" in why


def test_bytes_without_a_cause_are_told_as_such(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build("m.onnx", "-o", "a")
    build("m.onnx", "-o", "b")

    def other(entry: dict) -> None:
        if entry["kind"] == "variant" and entry["body"]["name"] == "int8":
            entry["body"]["digest"] = "0" * 64

    rewrite("b", other)
    followed = told(capsys, "a", "b", 1)["followed"]
    assert "no cause was found in inputs, settings, tools or machine" in [one["why"] for one in followed]


def test_what_is_no_build(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build("m.onnx", "-o", "a")
    lines = Path("a/ledger.jsonl").read_text().splitlines(keepends=True)
    Path("half").mkdir()
    at = next(i for i, line in enumerate(lines) if '"step": "golden"' in line)
    Path("half/ledger.jsonl").write_text("".join(lines[: at + 1]))
    Path("broken").mkdir()
    Path("broken/ledger.jsonl").write_text("nonsense\n")
    capsys.readouterr()
    for other, id in {
        "m.onnx": "no-build",
        "nowhere": "no-build",
        "half": "unfinished-build",
        "broken": "bad-ledger",
    }.items():
        assert run(["diff", "a", other, "--json"]) == 2
        error = json.loads(capsys.readouterr().out)["error"]
        assert error["id"] == id and error["do"]


def test_two_builds_at_once_share_a_cache(home: Path) -> None:
    """Whoever is second finds the entry, or makes the same one: both end, with the same models."""
    code = "import sys; from penstock.cli import main; main(sys.argv[1:])"
    words = [sys.executable, "-c", code, "build", "m.onnx", "--data", "d.npz", *FAST, "--cache", "shared-cache"]
    running = [
        subprocess.Popen([*words, "-o", name], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for name in ("a", "b", "c")
    ]
    for process in running:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, out + err
    assert models(home / "a") == models(home / "b") == models(home / "c")
    cache = store.Cache(home / "shared-cache")
    assert cache.entries() and all(cache.get(kept.key) is not None for kept in cache.entries())
    assert not list((home / "shared-cache").glob("scratch/*")), "nothing half-made is left"
