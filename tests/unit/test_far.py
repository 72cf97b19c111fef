"""Far sessions: what they compute, and that a crash, a hang or an interruption there is an error of them alone."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock import far, kept
from penstock.errors import InputError, MissingError
from penstock.far import FarSession
from penstock.worker import WorkerCrash, WorkerTimeout

TESTS = Path(__file__).parents[1]
ONE = {"x": np.ones((2, 3), np.float32)}
ZERO = {"x": np.zeros((2, 3), np.float32)}
Opening = Callable[..., FarSession]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[Opening]:
    """Open far sides of ``far_sides.py``, which the other Python finds by an addition to what boots it."""
    monkeypatch.setattr(far, "_BOOT", f"import sys\nsys.path.append({str(TESTS)!r})\n{far._BOOT}")
    made: list[FarSession] = []

    def make(how: str, *, open_seconds: float = 60.0, run_seconds: float = 60.0) -> FarSession:
        made.append(FarSession("Toy", Path(sys.executable), "far_sides:open_side", how,
                               open_seconds=open_seconds, run_seconds=run_seconds))  # fmt: skip
        return made[-1]

    yield make
    for session in made:
        session.close()


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("how", ["plain", "prints"])
def test_it_computes_there_and_what_is_printed_is_no_answer(how: str, opened: Opening) -> None:
    session = opened(how)
    for _ in range(3):
        doubled, names = session.run(ONE)
        assert np.array_equal(doubled, 2 * ONE["x"]) and names.tolist() == ["x"]
    assert session.actual() == {"device": "cpu", "modules": []}, "the far side imports what its file does, no more"
    process = session.process_id
    assert alive(process) and process != os.getpid()
    session.close()
    session.close()
    assert not alive(process)
    with pytest.raises(WorkerCrash, match="Toy is gone: it was closed"):
        session.run(ONE)


def test_large_arrays_go_through(opened: Opening) -> None:
    x = np.random.default_rng(0).normal(size=(64, 3, 256, 256)).astype(np.float32)  # 50 MB: more than any pipe holds
    assert np.array_equal(opened("plain").run({"x": x})[0], 2 * x)


def test_the_clock_stands_beside_the_runtime(opened: Opening) -> None:
    spent = opened("sleeps").timed({"x": np.ones(1 << 20, np.float32)}, 5)
    assert len(spent) == 5 and all(15e6 < one < 400e6 for one in spent)


@pytest.mark.parametrize(
    ("how", "told"),
    [("raises", "Toy can't run the model: RuntimeError: first line"), ("refuses", "the shape is wrong")],
)
def test_what_the_runtime_raises_is_an_input_error_and_the_session_lives_on(
    how: str, told: str, opened: Opening
) -> None:
    session = opened(how)
    for _ in range(2):
        with pytest.raises(InputError) as caught:
            session.run(ONE)
        assert caught.value.what == told and type(caught.value) is InputError
    assert session.actual()["device"] == "cpu"


@pytest.mark.parametrize(
    ("how", "told"),
    [("aborts", r"Toy: its process was ended by SIGABRT; its last words: .*my last"), ("exits", "ended with code 7")],
)  # fmt: skip
def test_a_crash_is_an_error_of_this_session_alone(how: str, told: str, opened: Opening) -> None:
    session, other = opened(how), opened("plain")
    with pytest.raises(WorkerCrash, match=told):
        session.run(ONE)
    with pytest.raises(WorkerCrash, match="is gone: its process"):
        session.run(ZERO)
    assert np.array_equal(other.run(ONE)[0], 2 * ONE["x"])


def test_a_run_without_end_is_stopped(opened: Opening) -> None:
    session = opened("hangs", run_seconds=0.5)
    assert not session.run(ZERO)[0].any()
    began, process = time.monotonic(), session.process_id
    with pytest.raises(WorkerTimeout, match=r"more than 0\.5 s and was stopped"):
        session.run(ONE)
    assert time.monotonic() - began < 20 and not alive(process)


def test_one_that_never_opens_is_stopped(opened: Opening) -> None:
    with pytest.raises(WorkerTimeout, match="more than 1 s"):
        opened("never", open_seconds=1.0)


def test_what_opening_raises_keeps_its_class_and_cure(opened: Opening) -> None:
    with pytest.raises(MissingError) as caught:
        opened("missing")
    assert caught.value.do == "penstock env add x" and caught.value.exit_code == 3


def test_one_that_clings_is_killed(opened: Opening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(far, "CLOSE_SECONDS", 0.3)
    session = opened("clings")
    process = session.process_id
    session.close()
    assert not alive(process)


def test_an_interrupted_answer_is_not_taken_for_the_next(opened: Opening, monkeypatch: pytest.MonkeyPatch) -> None:
    session = opened("plain")

    def interrupted(_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(session._far, "_read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.run(ONE)
    monkeypatch.undo()
    with pytest.raises(WorkerCrash, match="interrupted"):
        session.run(ZERO)


def test_a_process_is_kept_for_the_next_where_that_is_asked_for(opened: Opening) -> None:
    with kept.keeping():
        first = opened("plain")
        process = first.process_id
        first.close()
        first.close()
        assert alive(process)
        with pytest.raises(WorkerCrash, match="it was closed"):
            first.run(ONE)
        second = opened("raises")
        assert second.process_id == process
        with pytest.raises(InputError, match="first line"):
            second.run(ONE)
        with pytest.raises(MissingError):  # a session that can't be opened is no reason to end the process
            opened("missing")
        third = opened("aborts")
        assert third.process_id not in (process, second.process_id)
        second.close()
        with pytest.raises(WorkerCrash, match="SIGABRT"):
            third.run(ONE)
        third.close()
        assert opened("plain").process_id == process
        left = opened("plain")
        other = left.process_id
        left.close()
        assert alive(other)
    assert not alive(other)
    last = opened("plain")
    last.close()
    assert not alive(last.process_id)


def test_a_python_that_is_gone() -> None:
    with pytest.raises(MissingError, match="can't be started"):
        FarSession("Toy", Path("/nowhere/python"), "x:y", None, open_seconds=1, run_seconds=1)
