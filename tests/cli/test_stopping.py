"""Signals stop a command tidily, what a killed one left is removed by the next, and a full standard output is told."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from penstock import cli, store
from penstock.store import files

PROGRAM = [sys.executable, "-P", "-c", "import sys; from penstock.cli import main; main(sys.argv[1:])"]


def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "tmp").mkdir(exist_ok=True)
    return os.environ | {"TMPDIR": str(tmp_path / "tmp"), "PENSTOCK_CACHE": str(tmp_path / "cache")}


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_stops_as_control_c_does(name: str, code: int, tiny: ModuleType, tmp_path: Path) -> None:
    path = tiny.save(tiny.conv(), tmp_path / "m.onnx")
    command = [*PROGRAM, "build", str(path), "-o", str(tmp_path / "out"), "--bench-seconds", "60"]
    process = subprocess.Popen(
        command, env=environment(tmp_path), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # where the tests run under nohup
    )  # fmt: skip
    assert process.stderr is not None
    with process.stderr as told:
        for line in told:  # the first stage is done: something runs
            if line.startswith(b"export"):
                break
        process.send_signal(getattr(signal, name))
        rest = told.read().decode()
    assert process.wait(60) == code
    assert "goes on where it stopped" in rest and "Traceback" not in rest
    left = [path for home in ("tmp", "cache/scratch") for path in (tmp_path / home).glob("penstock-*")]
    assert left == []


def test_what_does_not_go_on_does_not_say_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.group, "main", stopped)
    for words, told in ((["init"], "stopped; nothing half-written is left"), (["build", "m.onnx"], "goes on where it")):
        assert cli.run(words) == 130 and told in capsys.readouterr().err


def test_control_c_while_a_library_is_imported(tiny: ModuleType, tmp_path: Path) -> None:
    """NumPy's C code turns the interrupt into an ImportError of its own."""
    path = tiny.save(tiny.mlp(), tmp_path / "m.onnx")
    (tmp_path / "stand").mkdir()
    (tmp_path / "stand" / "onnxruntime.py").write_text(
        "import os, signal, time\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(5)\n"
        "except KeyboardInterrupt:\n    raise ImportError('numpy._core.multiarray failed to import') from None\n"
    )
    found = environment(tmp_path)
    places = [str(tmp_path / "stand"), *filter(None, [found.get("PYTHONPATH")])]
    ended = subprocess.run(
        [*PROGRAM, "build", str(path), "-o", str(tmp_path / "out"), "-q"], capture_output=True, text=True, check=False,
        env=found | {"PYTHONPATH": os.pathsep.join(places)},
    )  # fmt: skip
    assert ended.returncode == 130, ended.stderr
    assert "stopped" in ended.stderr and "pip install" not in ended.stderr


def test_what_a_killed_process_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "JUST_MADE_S", 0.0)
    monkeypatch.setattr(files, "_swept", set())
    stale, held, other = (tmp_path / name for name in (f"{files.SCRATCH}a", f"{files.SCRATCH}b", "penstock-mine"))
    for folder in (stale, held, other):
        folder.mkdir()
        (folder / "file").write_text("x")
    handle = os.open(held, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)  # as whoever works in it does
    time.sleep(0.01)
    try:
        with store.scratch(tmp_path) as mine, store.scratch(tmp_path) as second:
            assert mine.is_dir() and second.is_dir()
            assert not stale.exists() and (held / "file").exists() and (other / "file").exists()
            files.sweep(tmp_path)
            assert mine.is_dir() and second.is_dir()
    finally:
        os.close(handle)
    assert not mine.exists() and not second.exists()


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_full_standard_output_is_one_message(more: list[str], tiny: ModuleType, tmp_path: Path) -> None:
    path = tiny.save(tiny.mlp(), tmp_path / "m.onnx")
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [*PROGRAM, "check", str(path), *more], stdout=full, stderr=subprocess.PIPE, text=True, check=False,
            env=environment(tmp_path),
        )  # fmt: skip
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert ended.stderr.startswith("error: the result can't be written") and "standard output" in ended.stderr
