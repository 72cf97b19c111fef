"""The browser: found or not, and one that ends at once."""

import os
from pathlib import Path
from typing import Any

import pytest

import tiny_models
from penstock import environment, npm, registry
from penstock.backends import Loadable
from penstock.browser import chromium, session
from penstock.browser.page import Page
from penstock.deployment import Deployment
from penstock.errors import MissingError
from penstock.worker import WorkerCrash, WorkerTimeout

NAMES = ("onnxruntime-web", "onnxruntime-webgpu")


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_without_its_files_it_tells_the_line_that_fetches_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_ENVIRONMENTS", str(tmp_path))
    backend: Any = registry.load("backends", name)
    assert backend.available() == "penstock env add onnxruntime-web"
    path = tiny_models.save(tiny_models.mlp(), tmp_path / "m.onnx")
    with pytest.raises(MissingError) as caught:
        backend.load(Loadable(path), Deployment(f"m@{name}", "m", "", "fp32", name))
    assert caught.value.do == "penstock env add onnxruntime-web"


@pytest.mark.parametrize("name", NAMES)
def test_without_a_browser_it_tells_the_line_that_installs_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "problem", lambda name: "")
    monkeypatch.setattr(chromium, "PROGRAMS", ("no-such-browser",))
    backend: Any = registry.load("backends", name)
    assert backend.available() == chromium.INSTALL and "apt-get install" in chromium.INSTALL
    with pytest.raises(MissingError, match="needs a Chromium"):
        chromium.needed("this")


def test_a_name_that_is_no_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(chromium.NAMED, str(tmp_path / "none"))
    assert "none, which is no program here" in chromium.problem()
    made = program(tmp_path / "mine", "echo Mine 12.3.4")
    monkeypatch.setenv(chromium.NAMED, str(made))
    assert chromium.problem() == "" and chromium.find() == str(made) and chromium.version(str(made)) == "12.3.4"


def test_a_browser_that_ends_at_once_is_a_crash_with_its_last_words(tmp_path: Path) -> None:
    page = Page("It", str(program(tmp_path / "bad", "echo No usable sandbox; exit 7")), {}, ())
    with pytest.raises(WorkerCrash, match="ended with code 7; its last words: No usable sandbox"):
        page.ask("setup", 20, {})
    with pytest.raises(WorkerCrash, match="is gone"):
        page.ask("setup", 20, {})
    assert not page.browser._home.exists()


def test_a_browser_that_never_asks_is_given_up_with_all_that_it_started(tmp_path: Path) -> None:
    page = Page("It", str(program(tmp_path / "idle", "sleep 300 & sleep 300")), {}, ())
    root = page.browser.pid
    with pytest.raises(WorkerTimeout, match=r"more than 0\.3 s"):
        page.ask("setup", 0.3, {})
    with pytest.raises(ProcessLookupError):
        os.kill(root, 0)


def test_a_browser_that_can_not_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "junk").write_bytes(b"\x7fELF junk")
    (tmp_path / "junk").chmod(0o755)
    monkeypatch.setattr(chromium.shutil, "which", lambda name: None)  # no setpriv, which would fail in its place
    with pytest.raises(MissingError, match="the browser doesn't start"):
        Page("It", str(tmp_path / "junk"), {}, ())


def test_a_damaged_file_is_not_served(tmp_path: Path) -> None:
    package = npm.read(environment.PINNED / "onnxruntime-web.toml")
    for path in package.files:
        (tmp_path / Path(path).name).write_bytes(b"x")
    assert npm.damaged(package, tmp_path, ["ort.wasm.bundle.min.mjs"]) == "ort.wasm.bundle.min.mjs"
    assert npm.lacking(package, tmp_path) == ""


@pytest.mark.parametrize(("message", "said"), [
    ("failed to call OrtRun(). ERROR_CODE: 2, ERROR_MESSAGE: Got invalid dimensions for input: x\n index: 2 Got: 30",
     "Got invalid dimensions for input: x index: 2 Got: 30"),
    ("Can't create a session. ERROR_CODE: 6, ERROR_MESSAGE: std::bad_alloc",
     "the browser's memory doesn't hold it, which ends at 4 GB (std::bad_alloc)"),
    ("ERROR_CODE: 1, ERROR_MESSAGE: /build/load_utils.h:56 void a::Check(const std::map<int> &, bool) Opset 30 is new",
     "Opset 30 is new"),
])  # fmt: skip
def test_messages_are_one_line(message: str, said: str) -> None:
    assert session.cause(message) == said


def test_the_placement_is_read_from_the_log() -> None:
    where = "2026-01-01 [V:onnxruntime:, session_state.cc:1385 VerifyEachNodeIsAssignedToAnEp]  "
    log = [
        f"{where}Node(s) placed on [WebGpuExecutionProvider]. Number of nodes: 2",
        f"{where} Conv (a)", f"{where} Conv (b)",
        f"{where}Node(s) placed on [CPUExecutionProvider]. Number of nodes: 1", f"{where} Add (c)",
    ]  # fmt: skip
    counts = {"WebGpuExecutionProvider": 2, "CPUExecutionProvider": 1}
    gpu = "WebGpuExecutionProvider"
    elsewhere = {"nodes_elsewhere": {"CPUExecutionProvider": {"Add": 1}}}
    assert session.placement(log, gpu, ()) == {"nodes_by_provider": counts, **elsewhere}
    assert session.placement(log, gpu, ["c"]) == {"nodes_by_provider": counts}
    whole = [f"{where}All nodes placed on [CPUExecutionProvider]. Number of nodes: 11"]
    assert session.placement(whole, "CPUExecutionProvider", ()) == {"nodes_by_provider": {"CPUExecutionProvider": 11}}
