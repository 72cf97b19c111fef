"""Whole builds: complete, resumable, the same bytes anywhere, and a tampered model is refused."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import quick
from penstock import ledger, store
from penstock.cli import run
from penstock.deployment import Deployment
from penstock.ledger import Done
from penstock.record import Record
from penstock.variant import Variant

FAST = [*quick.BUILD, "--quiet"]
NET = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.fc = torch.nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))
"""
TORCH = ["e2e_net.py:Net", "--input", "x:float32[batch,3,8,8]", "--exporter", "torchscript"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def build(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> dict:
    found = run(["build", *arguments, *FAST, "--json"])
    out, err = capsys.readouterr()
    assert found == code, out + err
    shown = json.loads(out)
    assert shown["schema"] == 1
    return shown["result"]


def complete(folder: Path, result: dict) -> list[ledger.Entry]:
    """Check a build folder by itself and against what the command said."""
    entries = ledger.parse((folder / "ledger.jsonl").read_text(), "ledger")
    assert isinstance(entries[-1], Done) and entries[-1].step == "select"
    variants = {entry.name: entry for entry in entries if isinstance(entry, Variant)}
    for variant in variants.values():
        if variant.format == "torch":
            continue
        home = folder / "models" / variant.name
        assert store.list_files(home) == variant.files and store.digest_of(variant.files) == variant.digest
        assert (folder / "records" / "inspect" / f"{variant.name}.json").is_file()
        onnx.checker.check_model(str(home / variant.main))
    deployments = {entry.name: entry for entry in entries if isinstance(entry, Deployment)}
    assert all(d.digest == variants[d.variant].digest for d in deployments.values())
    assert {row["deployment"]["name"] for row in result["deployments"]} == set(deployments)
    assert deployments[result["chosen"]].role == "candidate"
    golden = json.loads((folder / "golden" / "golden.json").read_text())
    for part in ("inputs", "outputs"):
        assert store.file_digest(folder / "golden" / f"{part}.npz") == golden[f"{part}_sha256"]
    for entry in entries:
        if isinstance(entry, Record):
            for key, value in entry.measured.items():
                if key.endswith("_blob"):
                    assert store.file_digest(folder / "blobs" / str(value)) == value
    return entries


@pytest.mark.parametrize("kind", ["mlp", "conv", "several", "gather"])
def test_a_build_is_complete(kind: str, here: Path, tiny: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.save(getattr(tiny, kind)(), here / "m.onnx")
    result = build(["m.onnx", "-o", "out"], capsys)
    complete(here / "out", result)
    refused = [
        v
        for row in result["deployments"]
        for v in row["verdicts"]
        if not v["measured"]["passed"] and v["gate"] != "speed"
    ]
    assert refused == [], "made-up inputs and tiny models: every deployment agrees"
    precisions = {row["deployment"]["precision"] for row in result["deployments"]}
    assert precisions == ({"fp32"} if kind == "several" else {"fp32", "int8"})


@pytest.mark.parametrize("opset", [8, 11])
def test_the_lock_file_builds_it_again(
    opset: int, here: Path, tiny: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny.mlp(opset=opset)
    model.ir_version = 5
    tiny.save(model, here / "m.onnx")
    build(["m.onnx", "-o", "out", "--backends", "onnxruntime", "--seed", "3"], capsys)
    build(["--config", "out/penstock.lock.toml", "-o", "again"], capsys)
    files = [store.list_files(here / name / "models") for name in ("out", "again")]
    assert files[0] == files[1]


def test_a_second_run_takes_over_what_was_measured(
    here: Path, tiny: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.save(tiny.conv(), here / "m.onnx")
    first = build(["m.onnx", "-o", "out"], capsys)
    before = (here / "out" / "ledger.jsonl").read_bytes()
    second = build(["m.onnx", "-o", "out"], capsys)
    assert {"export", "optimize", "quantize", "place", "golden", "verify", "bench", "select"} <= set(second["resumed"])
    assert first["resumed"] == [] and second["deployments"] == first["deployments"]
    assert (here / "out" / "ledger.jsonl").read_bytes() == before


def test_an_interrupted_build_goes_on(here: Path, tiny: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.save(tiny.mlp(), here / "m.onnx")
    build(["m.onnx", "-o", "out"], capsys)
    path = here / "out" / "ledger.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if '"step": "verify"' in line and '"done"' in line)
    path.write_text("".join(lines[: at + 2]) + lines[at + 2][:30])  # one entry of bench, and a torn one
    result = build(["m.onnx", "-o", "out"], capsys)
    assert "verify" in result["resumed"] and "bench" not in result["resumed"]
    complete(here / "out", result)


@pytest.mark.parametrize("gone", ["golden/inputs.npz", "golden/outputs.npz", "golden/golden.json", "blobs", "records"])
@pytest.mark.parametrize("how", ["deleted", "changed"])
def test_a_finished_build_mends_what_it_can_make_again(
    gone: str, how: str, here: Path, tiny: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.save(tiny.mlp(), here / "m.onnx")
    command = ["m.onnx", "-o", "out", "--backends", "onnxruntime"]
    build(command, capsys)
    home = here / "out" / gone
    for path in [home] if home.is_file() else [path for path in home.rglob("*") if path.is_file()]:
        if how == "deleted":
            path.unlink()
        else:
            path.write_bytes(b"{}")
    result = build(command, capsys)
    complete(here / "out", result)
    assert ("bench" in result["resumed"]) == (gone == "records")
    assert "bench" in build(command, capsys)["resumed"]


@pytest.mark.parametrize("change", [["--seed", "5"], ["--scale", "2.0"], ["--golden-samples", "9"]])
def test_other_inputs_are_not_taken_for_the_same(
    change: list[str], here: Path, tiny: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second build shares cache and folder with the first, and equals one that shares nothing."""
    tiny.save(tiny.mlp(), here / "m.onnx")
    rng = np.random.default_rng(0)
    np.savez(here / "d.npz", x=rng.normal(size=(300, 6)).astype(np.float32), y=rng.integers(0, 3, 300))
    plain = ["m.onnx", "--data", "d.npz", "--calibrate-samples", "32", "--backends", "onnxruntime"]
    build([*plain, "-o", "out"], capsys)
    build([*plain, *change, "-o", "out"], capsys)
    build([*plain, *change, "-o", "fresh", "--cache", "other"], capsys)
    for part in ("models", "golden"):
        assert store.list_files(here / "out" / part) == store.list_files(here / "fresh" / part), part


def twice(arguments: list[str], here: Path, files: dict[str, bytes]) -> list[Path]:
    """Build in two processes: other folders, other caches, other hash seeds, other numbers of threads."""
    folders = []
    for seed, threads, name in (("1", "1", "one"), ("4242", "2", "two/deeper")):
        home = here / name
        home.mkdir(parents=True)
        for file, data in files.items():
            (home / file).write_bytes(data)
        code = "import sys; from penstock.cli import main; main(sys.argv[1:])"
        environ = os.environ | {"PYTHONHASHSEED": seed, "PENSTOCK_CACHE": str(home / "cache")}
        environ |= {"OMP_NUM_THREADS": threads}
        done = subprocess.run(
            [sys.executable, "-c", code, "build", *arguments, "-o", "out", *FAST],
            cwd=home,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        folders.append(home / "out")
    return folders


def same(one: Path, two: Path) -> None:
    assert store.list_files(one / "models") == store.list_files(two / "models")
    stripped = [ledger.without_measurements((folder / "ledger.jsonl").read_text()) for folder in (one, two)]
    for a, b in zip(*stripped, strict=True):
        assert a == b
    assert store.file_digest(one / "golden" / "inputs.npz") == store.file_digest(two / "golden" / "inputs.npz")
    assert (one / "penstock.lock.toml").read_bytes() == (two / "penstock.lock.toml").read_bytes()


@pytest.mark.slow
def test_an_onnx_source_gives_the_same_bytes_anywhere(here: Path, tiny: ModuleType) -> None:
    same(*twice(["m.onnx"], here, {"m.onnx": tiny.conv().SerializeToString()}))


@pytest.mark.slow
def test_real_calibration_gives_the_same_bytes_anywhere(here: Path, tiny: ModuleType) -> None:
    """The ranges of an int8 model come out of a runtime: they too have to be the same."""
    rng = np.random.default_rng(5)
    buffer = io.BytesIO()
    images = rng.standard_normal((400, 3, 8, 8), dtype=np.float32)
    np.savez(buffer, x=images, y=rng.integers(0, 5, 400))
    files = {"m.onnx": tiny.conv().SerializeToString(), "d.npz": buffer.getvalue()}
    one, two = twice(["m.onnx", "--data", "d.npz"], here, files)
    same(one, two)
    assert (one / "models" / "int8" / "model.onnx").is_file()


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_a_torch_source_gives_the_same_bytes_anywhere(exporter: str, here: Path) -> None:
    same(*twice([*TORCH[:-1], exporter], here, {"e2e_net.py": NET.encode()}))


@pytest.mark.slow
@pytest.mark.torch
def test_a_torch_source_is_held_against_itself(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without weights of its own, too: all loads of one build have to agree."""
    (here / "e2e_net.py").write_text(NET)
    result = build([*TORCH, "-o", "out"], capsys)
    complete(here / "out", result)
    rows = {row["deployment"]["name"]: row for row in result["deployments"]}
    assert "source@torch" in rows and all(v["measured"]["passed"] for v in rows["source@torch"]["verdicts"])
    assert "source@torch" in json.dumps(result["ladder"]), "the ladder begins at eager PyTorch"


@pytest.mark.slow
@pytest.mark.torch
def test_inputs_in_no_alphabetical_order_reach_the_module_in_its_own(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "e2e_net.py").write_text(
        "import torch\nclass Net(torch.nn.Module):\n    def forward(self, second, first):\n        return 2 * second - first\n"  # noqa: E501
    )
    source = ["e2e_net.py:Net", "--input", "second:float32[batch,4]", "--input", "first:float32[batch,4]"]
    result = build([*source, "--exporter", "torchscript", "-o", "out", "--no-quantize"], capsys)
    assert [v for row in result["deployments"] for v in row["verdicts"] if not v["measured"]["passed"]] == []


@pytest.mark.parametrize("variant", ["fp32", "slim"])
def test_a_tampered_model_is_refused(
    variant: str, here: Path, tiny: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.save(tiny.conv(), here / "m.onnx")
    build(["m.onnx", "-o", "out", "--backends", "onnxruntime"], capsys)
    path = here / "out" / "models" / variant / "model.onnx"
    assert run(["verify", str(path), "--against", "out/golden", "-q"]) == 0
    model = onnx.load(path)
    tensor = max((t for t in model.graph.initializer if t.data_type == 1), key=lambda t: np.prod(t.dims))
    values = numpy_helper.to_array(tensor).copy()
    values.flat[np.abs(values).argmax()] *= 1.5
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    path.write_bytes(model.SerializeToString())
    capsys.readouterr()
    assert run(["verify", str(path), "--against", "out/golden", "-q"]) == 1
    assert "refused" in capsys.readouterr().out
    build(["m.onnx", "-o", "out", "--backends", "onnxruntime"], capsys)
    assert run(["verify", str(path), "--against", "out/golden", "-q"]) == 0, "the next build puts it right"


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("name", ["neudet-v5-fp32", "magika-v3-3", "yolox-nano"])
def test_real_models_end_with_a_choice(name: str, shared: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = shared / "models" / name / "model.onnx"
    few = ["--golden-samples", "4", "--calibrate-samples", "4", "--throughput-batch", "2"]
    if name == "yolox-nano":
        few += ["--no-guard", "--ranges", "minmax"]  # which look at each of its hundred layers, as those of the others
    result = build([str(source), "-o", "out", *few], capsys)
    complete(here / "out", result)


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize(
    "name", ["sklearn-tree-classifier", "mnist-8", "neudet-v5-int8-qlinear", "motor-fault-extdata"]
)
def test_odd_models_build_or_are_refused_in_plain_words(
    name: str, shared: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = shared / "models" / name / "model.onnx"
    code = run(["build", str(source), "-o", "out", "--golden-samples", "4", "--calibrate-samples", "4", *FAST])
    out, err = capsys.readouterr()
    assert code in (0, 1, 2) and "internal error" not in err and "Traceback" not in out + err, err
