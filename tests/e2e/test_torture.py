"""Builds that are killed, stopped, or run out of disk go on and end as if nothing had happened."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "torture.py"


@pytest.mark.slow
def test_interruptions_by_chance(tmp_path: Path) -> None:
    """In a process of its own: it forks, which a process with a runtime's threads must not."""
    interrupted(tmp_path, "--kills", "5", "--seed", "7")


@pytest.mark.slow
def test_killed_after_writes_from_the_first_to_the_last(tmp_path: Path) -> None:
    assert "6 interruptions in 6 builds" in interrupted(tmp_path, "--each-write", "6")


def interrupted(folder: Path, *options: str) -> str:
    command = [sys.executable, str(SCRIPT), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 faults" in done.stdout
    return done.stdout


def test_it_would_tell() -> None:
    """The comparison sees what differs: files, names, the ledger."""
    spec = importlib.util.spec_from_file_location("torture", SCRIPT)
    assert spec is not None and spec.loader is not None
    torture = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(torture)
    calm = {"files": {"a": "1"}, "names": ["a"], "lock": "", "ledger": [{"x": 1}]}
    assert torture.difference(calm, dict(calm)) == ""
    assert "names" in torture.difference(calm, {**calm, "names": ["a", "b.part"]})
    assert "ledger" in torture.difference(calm, {**calm, "ledger": [{"x": 2}]})
    assert "files" in torture.difference(calm, {**calm, "files": {"a": "2"}})
