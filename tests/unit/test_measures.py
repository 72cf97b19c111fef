"""A runtime that dies in the middle of a build is an error of its own deployments, and the others go on."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from penstock import measures, verifying
from penstock.backends import openvino
from penstock.cli import run
from penstock.worker import WorkerCrash


@pytest.mark.parametrize("gate", ["verify", "evaluate"])
def test_a_process_that_dies_ends_no_build(
    gate: str, tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From one step on OpenVINO neither runs nor tells what ran, as a session whose process is gone."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.normal(size=(400, 3, 8, 8)).astype(np.float32), y=rng.integers(0, 10, 400))
    gone = WorkerCrash("worker-crash", "its process was ended by SIGKILL")
    home = verifying if gate == "verify" else measures
    step = getattr(home, gate)

    def dead(*arguments: object) -> list:
        raise gone

    def dies(session: object, *arguments: object, **named: object) -> object:
        if isinstance(session, openvino.OpenVinoSession):
            monkeypatch.setattr(openvino.OpenVinoSession, "run", dead)
            monkeypatch.setattr(openvino.OpenVinoSession, "actual", dead)
        return step(session, *arguments, **named)

    monkeypatch.setattr(home, gate, dies)
    model = str(tiny.save(tiny.conv(classes=10), tmp_path / "m.onnx"))
    words = ["build", model, "--data", str(tmp_path / "data.npz"), "--backends", "onnxruntime,openvino"]
    quick = ["--no-quantize", "--bench-seconds", "0.1", "--min-rounds", "3", "--warmup-calls", "2", "--no-footprint"]
    code = run([*words, *quick, "-o", str(tmp_path / "out"), "--json", "--quiet"])
    told = json.loads(capsys.readouterr().out)["result"]
    assert code == 0 and told["chosen"].endswith("@onnxruntime")
    for row in told["deployments"]:
        refused = {one["gate"]: one["measured"]["reason"] for one in row["verdicts"] if not one["measured"]["passed"]}
        if row["deployment"]["backend"] == "openvino":
            assert set(refused) == {gate} and refused[gate].endswith("its process was ended by SIGKILL")
            assert row["p50_ms"] is None, "what was refused isn't timed"
        else:
            assert not refused and row["p50_ms"] > 0
    assert {row["deployment"]["backend"] for row in told["deployments"]} == {"onnxruntime", "openvino"}
