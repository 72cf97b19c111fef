"""Environments: made whole or not at all, made anew for other versions, and named where they are wanted and missing."""

import json
import subprocess
from pathlib import Path

import pytest

from penstock import environment, npm, registry, store
from penstock.cli import run
from penstock.deployment import Deployment
from penstock.errors import MissingError, StoreError, UsageError
from penstock.progress import SILENT

EMPTY = "# An environment with nothing in it\n"


@pytest.fixture
def pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the lists be those of a folder of the test's own, with one that installs nothing."""
    folder = tmp_path / "pinned"
    folder.mkdir()
    (folder / "bare.txt").write_text(EMPTY)
    monkeypatch.setattr(environment, "PINNED", folder)
    monkeypatch.setenv("PENSTOCK_ENVIRONMENTS", str(tmp_path / "made"))
    return folder


def test_every_list_has_a_summary_and_pins_all() -> None:
    assert {"iree", "tvm", "tflite-micro", "onnxruntime-web"} <= {*environment.names()}
    for name in environment.names():
        if (toml := environment.PINNED / f"{name}.toml").exists():
            package = npm.read(toml)
            assert environment.find(name).summary and package.version, name
            assert all(len(digest) == 64 for digest in package.files.values()), name
            continue
        lines = (environment.PINNED / f"{name}.txt").read_text().splitlines()
        assert lines[0].startswith("# ") and environment.find(name).summary
        assert all("==" in line for line in lines[1:]), name


def test_it_is_made_once_and_anew_for_other_versions(pinned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert environment.problem("bare") == "penstock env add bare"
    assert run(["env", "add", "bare", "--json", "-q"]) == 0
    told = json.loads(capsys.readouterr().out)["result"]
    found = environment.find("bare")
    assert told["state"] == "" == found.state and "pip" in found.packages
    assert subprocess.run([found.python, "-c", ""], check=False).returncode == 0
    before = found.python.lstat().st_mtime_ns
    assert environment.add("bare", SILENT).python.lstat().st_mtime_ns == before
    (pinned / "bare.txt").write_text(EMPTY + "# a change\n")
    assert "made for other versions" in environment.problem("bare")
    assert environment.add("bare", SILENT).state == ""
    assert environment.find("bare").python.lstat().st_mtime_ns != before
    assert run(["env", "list"]) == 0 and str(found.folder) in capsys.readouterr().out
    assert run(["env", "remove", "bare"]) == 0 and "removed" in capsys.readouterr().out
    assert run(["env", "remove", "bare"]) == 0 and "there was none" in capsys.readouterr().out
    assert not found.folder.exists()


def test_one_that_can_not_be_installed_leaves_nothing(pinned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pinned / "bad.txt").write_text("# Wants what isn't there\nno-such-package-anywhere @ file:///nowhere/at-all.whl\n")
    assert run(["env", "add", "bad"]) == 3
    said = capsys.readouterr().err
    assert "the environment 'bad' can't be made: ERROR" in said and "Traceback" not in said
    assert not environment.find("bad").folder.exists()


def test_an_interruption_leaves_nothing(pinned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(command: list[str], name: str) -> str:
        if "venv" not in command:
            raise KeyboardInterrupt
        Path(command[-1]).mkdir(parents=True)
        return ""

    monkeypatch.setattr(environment, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        environment.add("bare", SILENT)
    assert not environment.find("bare").folder.exists() and environment.problem("bare")


def test_two_at_once_do_not_meet(pinned: Path) -> None:
    with store.locked(environment.home() / ".bare.lock"), pytest.raises(StoreError, match="another process"):
        environment.add("bare", SILENT)


@pytest.mark.parametrize("damage", ["{", "[]", '{"packages": 3}', "\0"])
def test_a_damaged_note_is_none(damage: str, pinned: Path) -> None:
    found = environment.find("bare")
    found.folder.mkdir(parents=True)
    (found.folder / environment.WHOLE).write_text(damage)
    assert environment.problem("bare") == "penstock env add bare"


def test_a_name_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=r"known are: .*iree"):
        environment.find("irre")
    assert run(["env", "add", "../x"]) == 2 and "no environment named" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["iree", "tvm", "tflite-micro", "onnxruntime-web"])
def test_a_backend_without_its_environment_stops_with_the_line_that_makes_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import tiny_models
    from penstock.backends import Loadable

    monkeypatch.setenv("PENSTOCK_ENVIRONMENTS", str(tmp_path / "none"))
    path = tiny_models.save(tiny_models.mlp(), tmp_path / "m.onnx")
    backend = registry.load("backends", name)
    assert backend.available() == f"penstock env add {name}"  # type: ignore[attr-defined]
    with pytest.raises(MissingError) as caught:
        backend.load(Loadable(path), Deployment(f"m@{name}", "m", "", "fp32", name))  # type: ignore[attr-defined]
    assert caught.value.do == f"penstock env add {name}"
    assert run(["build", str(path), "-o", str(tmp_path / "out"), "--backends", f"onnxruntime,{name}", "-q"]) == 3
    assert f"penstock env add {name}" in capsys.readouterr().err and not (tmp_path / "out").exists()
