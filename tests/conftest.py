"""What every test has: caches of its own, the shared data if it is there, and builders of tiny models."""

import importlib.util
import os
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import tiny_models

SHARED = Path(os.environ.get("PENSTOCK_SHARED", Path(__file__).parents[2] / "shared"))
_LEFT_OUT: dict[str, int] = {}
_SKIPPED: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    """Give each of several workers one thread for its arithmetic: with a thread for each core they wait for each other.

    It has to be said before a worker starts, for its libraries read it when they are imported.
    """
    if getattr(config.option, "numprocesses", None):
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what this machine lacks the data or the packages for; say so, or fail if that was asked for."""
    absent = {
        "shared": "" if (SHARED / "models").is_dir() else f"no shared data at {SHARED}",
        "strace": "" if shutil.which("strace") else "strace is not installed",
        "torch": "" if importlib.util.find_spec("torch") else "torch is not installed",
    }
    for marker, reason in absent.items():
        out = [item for item in items if reason and item.get_closest_marker(marker)]
        if not out:
            continue
        if marker in ("shared", "strace") and os.environ.get("PENSTOCK_REQUIRE_SHARED") == "1":
            raise pytest.UsageError(f"{len(out)} tests can't run, and PENSTOCK_REQUIRE_SHARED=1: {reason}")
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]
        _LEFT_OUT[f"{marker} ({reason})"] = len(out)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note what was skipped for want of something, which a run that must be whole counts as a failure.

    The conformance suite's own skips name the backend that they don't apply to, and why.
    """
    if (
        report.skipped
        and isinstance(report.longrepr, tuple)
        and (": " not in (why := report.longrepr[2].removeprefix("Skipped: ")) or why.startswith("could not import"))
    ):
        _SKIPPED.append(f"{report.nodeid}: {report.longrepr[2]}")


def pytest_testnodedown(node: object, error: object) -> None:
    """Take over what a worker left out, where tests run in several processes."""
    _LEFT_OUT.update(getattr(node, "workeroutput", {}).get("left_out", {}))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run that must be whole and isn't."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = _LEFT_OUT
    if _SKIPPED and os.environ.get("PENSTOCK_REQUIRE_SHARED") == "1":
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell how many tests were left out."""
    for what in _SKIPPED:
        terminalreporter.write_line(f"skipped: {what}", yellow=True)
    for what, count in _LEFT_OUT.items():
        terminalreporter.write_line(f"{count} tests left out: {what}", yellow=True)


@pytest.fixture(autouse=True)
def own_caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point every cache into a folder of the test's own."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "xdg"))
    monkeypatch.setenv("PENSTOCK_CACHE", str(home / "penstock"))
    monkeypatch.setenv(
        "PENSTOCK_ENVIRONMENTS", os.environ.get("PENSTOCK_TEST_ENVIRONMENTS", str(home / "environments"))
    )
    for name in [name for name in os.environ if name.startswith("PENSTOCK_")]:
        of_tests = name.startswith(("PENSTOCK_TEST_", "PENSTOCK_REQUIRE_"))
        if not of_tests and name not in ("PENSTOCK_CACHE", "PENSTOCK_ENVIRONMENTS", "PENSTOCK_SHARED"):
            monkeypatch.delenv(name)
    return home


@pytest.fixture
def shared() -> Path:
    """Return the folder of shared data; tests that use it carry the marker."""
    return SHARED


@pytest.fixture
def tiny() -> ModuleType:
    """Return the builders of tiny models."""
    return tiny_models


@pytest.fixture(autouse=True)
def _same_numbers(request: pytest.FixtureRequest) -> None:
    """Let each test draw the same numbers from its module's generator, whichever ran before it."""
    if isinstance(getattr(request.module, "RNG", None), np.random.Generator):
        request.module.RNG = np.random.default_rng(1)


@pytest.fixture(params=["held", "stored"])
def held_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test of a data source twice: with its samples held in memory, and with none of them held."""
    if request.param == "stored":
        monkeypatch.setattr("penstock.datasets._stored.HELD_BYTES", 0)
