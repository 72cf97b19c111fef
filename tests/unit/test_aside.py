"""Aside: what ends its process, or doesn't end, is an error of its own cell of the matrix; the others go on."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from penstock import aside, crossing, precheck
from penstock.backends import Loadable
from penstock.cli import run
from penstock.deployment import Deployment
from penstock.measures import Runnable
from penstock.worker import WorkerCrash, WorkerTimeout

pytestmark = pytest.mark.torch

MODULE = '''
import ctypes, os, time
from pathlib import Path
import torch

COUNTED = Path(__file__).with_name("counted")

class Net(torch.nn.Module):
    """It behaves until it has run so many times, in all processes together."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(6, 4)

    def forward(self, x):
        if not torch.compiler.is_exporting():
            ran = len(COUNTED.read_bytes()) if COUNTED.exists() else 0
            if ran >= {runs}:
                {then}
            COUNTED.write_bytes(b"." * (ran + 1))
        return self.layer(x)
'''
ENDS = {"exit": "os._exit(0)", "fault": "ctypes.string_at(0)", "for ever": "time.sleep(600)"}


@pytest.fixture
def patience() -> Iterator[None]:
    """Not much of it: ten times this is what a run may take."""
    with precheck.limits(precheck.CheckSettings(session_seconds=0.5)):
        yield


def _module(folder: Path, runs: int, then: str) -> Runnable:
    (folder / "net.py").write_text(MODULE.format(runs=runs, then=then))
    return Runnable(
        Deployment("source", "source", "", "fp32", "torch"), Loadable(None, f"{folder / 'net.py'}:Net"), True
    )


@pytest.mark.parametrize("end", ENDS)
def test_what_ends_it_is_an_error_of_that_session(end: str, tmp_path: Path, patience: None) -> None:
    runnable = _module(tmp_path, 1, ENDS[end])
    feeds = {"x": np.ones((1, 6), np.float32)}
    with aside.one_process():
        session = aside.opened(runnable)
        (found,) = session.run(feeds)
        assert found.shape == (1, 4)
        with pytest.raises(WorkerTimeout if end == "for ever" else WorkerCrash, match="torch: it"):
            session.run(feeds)
        session.close()
        (tmp_path / "counted").unlink()
        again = aside.opened(runnable)
        np.testing.assert_array_equal(again.run(feeds)[0], found)
        assert again.actual()["threads"] == 1
        again.close()


def test_a_process_serves_one_session_after_the_other(tmp_path: Path, tiny: ModuleType) -> None:
    """And none that was kept outlives the block."""
    path = tiny.save(tiny.mlp(), tmp_path / "m.onnx")
    runnables = [
        Runnable(Deployment(f"m@{name}", "m", "", "fp32", name), Loadable(path), True)
        for name in ("onnxruntime", "openvino", "litert", "reference")
    ]
    feeds = {"x": np.ones((2, 6), np.float32)}
    processes, outputs = set(), []
    with aside.one_process():
        for runnable in runnables:
            session = aside.opened(runnable)
            outputs += session.run(feeds)
            processes.add(session.process_id)  # type: ignore[attr-defined]
            session.close()
    for other in outputs[1:]:
        np.testing.assert_allclose(other, outputs[0], rtol=1e-5, atol=1e-6)
    (process,) = processes
    assert process != os.getpid() and not Path(f"/proc/{process}").exists()


def test_a_module_finds_what_it_finds_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder on Python's path, wherever the session is opened."""
    beside = tmp_path / "lib"
    beside.mkdir()
    (beside / "of_the_user.py").write_text("WIDTH = 4\n")
    monkeypatch.syspath_prepend(str(beside))
    (tmp_path / "net.py").write_text(
        "import torch\nfrom of_the_user import WIDTH\n\ndef net():\n    return torch.nn.Linear(6, WIDTH)\n"
    )
    deployment = Deployment("source", "source", "", "fp32", "torch")
    session = aside.opened(Runnable(deployment, Loadable(None, f"{tmp_path / 'net.py'}:net"), True))
    assert session.run({"x": np.ones((1, 6), np.float32)})[0].shape == (1, 4)
    session.close()


def test_packages_of_the_user_are_found_from_the_start(
    tmp_path: Path, tiny: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of ``pip install --user``, or on PYTHONPATH: numpy may be among them."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, pathlib\npathlib.Path(__file__).with_name(f'began-{os.getpid()}').touch()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    path = tiny.save(tiny.mlp(), tmp_path / "m.onnx")
    session = aside.opened(Runnable(Deployment("m@r", "m", "", "fp32", "reference"), Loadable(path), True))
    assert (tmp_path / f"began-{session.process_id}").exists()  # type: ignore[attr-defined]
    session.close()


def test_the_matrix_goes_on_without_a_module_that_dies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its own cell says how; where it dies over the golden outputs, there is nothing to hold anything against."""
    _module(tmp_path, 10**6, "pass")
    source, path = f"{tmp_path / 'net.py'}:Net", tmp_path / "net.onnx"
    assert run(["export", source, "--input", "x:float32[batch,6]", "-o", str(path), "--quiet"]) == 0, (
        capsys.readouterr()
    )
    both, counted = ("torch", "onnxruntime"), tmp_path / "counted"
    counted.unlink()
    assert crossing.crossed([path], source, backends=both).holds
    runs = len(counted.read_bytes())  # those for the golden outputs, and those of the cell
    counted.unlink()
    _module(tmp_path, runs - 1, "os._exit(7)")
    matrix = crossing.crossed([path], source, backends=both)
    cell = matrix.cell("source", "torch")
    assert cell is not None and cell.state == "can't run" and "its process ended with code 7" in cell.reason
    assert [one.state for one in matrix.cells if one is not cell] == ["agrees"]
    counted.write_bytes(b"." * runs)
    assert run(["verify", str(path), "--against", source, "--backends", "torch,onnxruntime", "--quiet"]) == 2
    assert "torch: its process ended with code 7" in capsys.readouterr().err
