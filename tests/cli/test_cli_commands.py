"""Every command once on tiny models: what it prints, its JSON, its exit code."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from penstock import registry
from penstock.cli import run


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def model(here: Path, tiny: ModuleType) -> Path:
    return tiny.save(tiny.mlp(), here / "mlp.onnx")


@pytest.fixture
def data(here: Path) -> Path:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 6)).astype(np.float32)
    np.savez(here / "data.npz", x=x, y=rng.integers(0, 3, 400))
    return here / "data.npz"


def told(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return out, err


def result(capsys: pytest.CaptureFixture[str], command: str) -> object:
    out, _ = told(capsys)
    found = json.loads(out)
    assert found["schema"] == 1 and found["command"] == command
    return found["result"]


def tampered(model: Path, here: Path) -> Path:
    held = onnx.load(model)
    values = numpy_helper.to_array(held.graph.initializer[0]).copy()
    values.flat[np.abs(values).argmax()] *= 2
    held.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, held.graph.initializer[0].name))
    path = here / "tampered.onnx"
    path.write_bytes(held.SerializeToString())
    return path


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    import penstock
    from penstock.cli import COMMANDS

    assert run(["--help"]) == 0
    out, err = told(capsys)
    assert all(name in out and line in " ".join(out.split()) for name, line in COMMANDS.items()) and err == ""
    assert run(["--version"]) == 0
    assert penstock.__version__ in told(capsys)[0]


def test_export(model: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", "mlp.onnx", "-o", "new/copy.onnx", "-q"]) == 0
    out, err = told(capsys)
    assert "x:float32[batch,6]" in out and "y:float32[batch,3]" in out and err == ""
    assert (here / "new" / "copy.onnx").read_bytes() == model.read_bytes()
    assert run(["export", "mlp.onnx", "-o", "copy.onnx", "--json"]) == 0
    assert result(capsys, "export")["signature"]["inputs"][0]["name"] == "x"  # type: ignore[index]


def test_inspect(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "mlp.onnx"]) == 0
    assert "Gemm" in told(capsys)[0]
    assert run(["inspect", "mlp.onnx", "--json"]) == 0
    assert result(capsys, "inspect")["parameters"] == 6 * 16 + 16 + 16 * 3 + 3  # type: ignore[index]


def test_optimize(here: Path, tiny: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny.conv()
    tiny.save(model, here / "conv.onnx")
    assert run(["optimize", "conv.onnx", "-o", "slim.onnx"]) == 0
    assert "6 → 5 (Constants don't count); a fixpoint" in told(capsys)[0]
    x = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    slim = onnx.load(here / "slim.onnx")
    assert np.allclose(tiny.oracle(slim, {"x": x})[0], tiny.oracle(model, {"x": x})[0], rtol=1e-4, atol=1e-5)
    assert run(["optimize", "conv.onnx", "-o", "same.onnx", "--skip", "fold-batchnorm", "--json"]) == 0
    assert result(capsys, "optimize")["nodes_after"] == 6  # type: ignore[index]


def test_quantize_and_verify(model: Path, data: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["quantize", "mlp.onnx", "-o", "int8.onnx", "--data", "data.npz", "--calibrate-samples", "64"]) == 0
    assert "calibrated on 64 samples, in batches of 32" in told(capsys)[0]
    assert run(["quantize", "mlp.onnx", "-o", "seeded.onnx", "--json", "--calibrate-samples", "32"]) == 0
    assert result(capsys, "quantize")["calibrated_on"]["kind"] == "seeded"  # type: ignore[index]
    assert run(["verify", "int8.onnx", "--against", "mlp.onnx", "--data", "data.npz"]) == 0
    assert "passed" in told(capsys)[0]
    assert run(["verify", "int8.onnx", "--against", "mlp.onnx", "--int8-sqnr-db", "90", "--json"]) == 1
    found = result(capsys, "verify")
    assert "the limit is 90 dB" in found["outcome"]["reason"]  # type: ignore[index]


def test_verify_refuses_a_tampered_model_with_1(model: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(tampered(model, here)), "--against", "mlp.onnx"]) == 1
    assert "refused: relative difference" in told(capsys)[0]
    assert run(["verify", "mlp.onnx", "--against", "mlp.onnx", "--backend", "reference"]) == 0


def test_evaluate(model: Path, data: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tampered(model, here)
    assert run(["evaluate", "mlp.onnx", "tampered.onnx", "--data", "data.npz"]) == 0
    out, _ = told(capsys)
    assert "mlp@onnxruntime: top-1" in out and "points to mlp@onnxruntime" in out
    assert run(["evaluate", "mlp.onnx", "--data", "data.npz", "--json"]) == 0
    found = result(capsys, "evaluate")[0]["evaluation"]  # type: ignore[index]
    assert 0 <= found["low"] <= found["score"] <= found["high"] <= 1


def test_evaluate_with_a_metric_of_ones_own(model: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its labels need not be classes of the first output."""
    (here / "own_scores.py").write_text("def half(outputs, labels):\n    return [0.5] * len(labels)\n")
    np.savez(here / "d.npz", x=np.zeros((40, 6), np.float32), y=np.arange(40))
    assert run(["evaluate", "mlp.onnx", "--data", "d.npz", "--metric", "own_scores:half", "--json"]) == 0
    assert result(capsys, "evaluate")[0]["evaluation"]["score"] == 0.5  # type: ignore[index]


BENCH = ["--bench-seconds", "0.05", "--no-footprint", "--min-rounds", "3", "--warmup-calls", "2", "--no-pin"]


def test_bench(model: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tampered(model, here)
    assert run(["bench", "mlp.onnx", "tampered.onnx", *BENCH]) == 0
    assert "tampered@onnxruntime" in told(capsys)[0]
    assert run(["bench", "mlp.onnx", "--json", *BENCH]) == 0
    assert result(capsys, "bench")["timings"][0]["p50_ms"] > 0  # type: ignore[index]


def test_build_select_and_verify_against_its_golden_set(
    model: Path, data: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fast = [*BENCH, "--backends", "onnxruntime", "--data", "data.npz", "--select-samples", "50"]
    assert run(["build", "mlp.onnx", "-o", "out[b]x", *fast, "--objective", "size", "--max-size-mb", "0.0001"]) == 1
    out, _ = told(capsys)
    assert "none fits; the nearest miss is" in out and "too large" in out
    assert "out[b]x" in out.replace("\n", ""), "paths are shown as they are"
    assert run(["build", "mlp.onnx", "-o", "out[b]x", *fast, "--json"]) == 0
    built = result(capsys, "build")
    assert built["chosen"] and built["resumed"]  # type: ignore[index]
    assert sum(row["chosen"] for row in built["deployments"]) == 1  # type: ignore[index]
    before = (here / "out[b]x" / "ledger.jsonl").read_bytes()
    assert run(["select", "out[b]x", "--json"]) == 0
    assert result(capsys, "select")["chosen"] == built["chosen"]  # type: ignore[index]
    assert run(["select", "out[b]x", "--max-latency-ms", "0"]) == 1
    assert "nearest miss" in told(capsys)[0]
    assert (here / "out[b]x" / "ledger.jsonl").read_bytes() == before
    golden = "out[b]x/golden"
    assert run(["verify", "mlp.onnx", "--against", golden]) == 0
    assert run(["verify", str(tampered(model, here)), "--against", golden]) == 1


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list"]) == 0
    out, _ = told(capsys)
    assert all(word in out for word in ("onnxruntime", "fold-batchnorm", "npz", "targets"))
    assert run(["list", "backends", "--json"]) == 0
    assert [p["name"] for p in result(capsys, "list")["backends"]] == registry.names("backends")  # type: ignore[index]


def test_zoo(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["zoo", "list"]) == 0
    assert "zoo:digits" in told(capsys)[0]
    assert run(["zoo", "list", "--json"]) == 0
    assert {entry["name"] for entry in result(capsys, "zoo list")} == {"cifar10", "digits"}  # type: ignore[union-attr]
    assert run(["zoo", "card", "nobody"]) == 2


@pytest.mark.torch
def test_export_of_a_module_whose_code_prints(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "cli_net.py").write_text(
        "import torch\nprint('loading')\nclass Net(torch.nn.Module):\n    def forward(self, x):\n        return x * 2\n"
    )
    (here / "penstock.toml").write_text("input = ['x:float32[batch,4]']\n[export]\nexporter = 'torchscript'\n")
    assert run(["export", "cli_net.py:Net", "-o", "net.onnx", "--json"]) == 0
    assert result(capsys, "export")["facts"]["proved_at"] == [{"batch": n} for n in (1, 2, 3, 7)]  # type: ignore[index]


def test_warnings_do_not_hide_in_results(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["inspect", "mlp.onnx", "--json"])
    out, err = told(capsys)
    assert err == "" and out.startswith("{")


def test_it_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "penstock", "--version"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("penstock"), done.stderr
