"""The bench on a made-up backend and a made-up clock: every figure follows from a script, none from real time."""

from __future__ import annotations

import gc
import math
import os
import random
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock import registry, settings, worker
from penstock.backends import Loadable
from penstock.deployment import Deployment, Role
from penstock.errors import InputError, UsageError
from penstock.jsonable import Json, from_json, to_json
from penstock.stages.bench import BenchSettings, Subject, bench, configured
from penstock.timing import pinning
from penstock.timing.figures import Memory, Ratio, Throughput, Timing
from penstock.timing.footprint import footprint, measure
from penstock.timing.ladder import ladder
from penstock.timing.rounds import interleave, reason, warm_up

MS = 1_000_000
FEEDS = {"x": np.zeros((1, 3), dtype=np.float32)}
BATCH = {"x": np.zeros((32, 3), dtype=np.float32)}
QUICK = BenchSettings(min_rounds=6, calls_per_round=4, seconds=0.02, footprint=False)


@dataclass
class Clock:
    """A clock that moves only when something says so."""

    now: int = 0

    def __call__(self) -> int:
        return self.now


@dataclass
class Stand:
    """The made-up runtime and what it was asked. ``ms``: latency per deployment; ``phases`` slows whole rounds."""

    clock: Clock = field(default_factory=Clock)
    ms: dict[str, float] = field(default_factory=dict)
    fails_after: dict[str, int] = field(default_factory=dict)  # runs
    refuses: tuple[str, ...] = ()
    no_batch: tuple[str, ...] = ()
    jitter: random.Random | None = None
    spread: tuple[float, float] = (0.8, 1.25)
    runs: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    collecting: set[bool] = field(default_factory=set)
    affinity: set[tuple[int, ...]] = field(default_factory=set)

    def available(self) -> str:
        return ""

    def facts(self) -> dict[str, Json]:
        self.clock.now += 1000 * MS  # an import: nobody's load time
        return {}

    def load(self, model: Loadable, deployment: Deployment) -> Session:
        if deployment.name in self.refuses:
            raise InputError("no", "the runtime refuses the model", do="try another")
        self.clock.now += 7 * MS
        return Session(self, deployment.name)


@dataclass
class Session:
    stand: Stand
    name: str
    count: int = 0

    def run(self, feeds: Mapping[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        self.count += 1
        batch = len(next(iter(feeds.values())))
        if self.count > self.stand.fails_after.get(self.name, 10**9):
            raise RuntimeError("it broke\nwith a long tail")
        if batch > 1 and self.name in self.stand.no_batch:
            raise ValueError("no such batch")
        self.stand.runs.append(self.name)
        self.stand.collecting.add(gc.isenabled())
        if hasattr(os, "sched_getaffinity"):
            self.stand.affinity.add(tuple(sorted(os.sched_getaffinity(0))))
        factor = self.stand.jitter.uniform(*self.stand.spread) if self.stand.jitter else 1.0
        first = 10.0 if self.count == 1 else 1.0
        self.stand.clock.now += int(self.stand.ms[self.name] * batch * first * factor * MS)
        return []

    def actual(self) -> dict[str, Json]:
        if self.name == "mute":
            raise RuntimeError("no facts")
        return {"device": "made up"}

    def close(self) -> None:
        self.stand.closed.append(self.name)
        raise RuntimeError("a runtime that fails in parting")


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
    made = Stand()
    monkeypatch.setattr(registry, "load", lambda kind, name: made)
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    yield made
    if before:
        assert os.sched_getaffinity(0) == before
    assert gc.isenabled()


def subject(name: str, *, role: Role = "candidate", dynamic: bool = True, threads: int = 1) -> Subject:
    deployment = Deployment(name, "v", "0" * 64, "fp32", "made-up", threads=threads, role=role)
    return Subject(deployment, Loadable(Path("model.onnx")), dynamic)


def timing(name: str, rounds_ms: Sequence[float]) -> Timing:
    p50, absent = float(np.median(rounds_ms)), Throughput(reason="none")
    samples = np.zeros((1, 1), dtype=np.int64)
    return Timing(
        name, p50, 0, 0, 0, 0, 1, tuple(rounds_ms), 0, 0, 0, True, Memory(), absent, None, {}, 0, samples
    )  # fmt: skip


def test_figures_follow_from_the_script(stand: Stand) -> None:
    stand.ms = {"eager": 2.0, "fast": 0.5}
    found = bench([subject("eager", role="baseline"), subject("fast")], FEEDS, BATCH, QUICK, clock=stand.clock)
    eager, fast = found.timings
    assert (found.baseline, found.failures) == ("eager", ())
    assert (eager.p50_ms, eager.p95_ms, eager.p99_ms, eager.min_ms, eager.mean_ms) == (2.0,) * 5
    assert (fast.load_ms, fast.first_run_ms) == (7.0, 5.0)
    assert eager.steady
    assert eager.warmup_calls == 50
    assert found.rounds == len(eager.rounds_ms) == len(fast.rounds_ms) >= 6
    assert eager.samples_ns.shape[0] == found.rounds
    assert eager.count == eager.samples_ns.size
    assert fast.to_baseline is not None
    assert fast.to_baseline.text() == "0.25× (0.25–0.25)"
    assert eager.to_baseline is not None
    assert eager.to_baseline.text() == "no difference (1.00–1.00)"
    assert fast.throughput.samples_per_s == pytest.approx(2000)
    assert fast.throughput.batch == 32
    assert fast.actual == {"device": "made up"}
    assert fast.peak_rss_mb is None
    assert sorted(stand.closed) == ["eager", "fast"]
    to_json(replace(fast, samples_ns=np.zeros((1, 1))))


def test_noise_that_hits_both_shows_no_difference(stand: Stand) -> None:
    stand.ms, stand.jitter = {"a": 1.0, "b": 1.0}, random.Random(5)
    found = bench([subject("a"), subject("b")], FEEDS, None, replace(QUICK, min_rounds=30), clock=stand.clock)
    assert found.timings[1].to_baseline is not None
    assert found.timings[1].to_baseline.text().startswith("no difference (")
    assert "no inputs" in found.timings[0].throughput.reason


def test_failures_are_values(stand: Stand) -> None:
    stand.ms = dict.fromkeys(["fine", "dies-first", "dies-warm", "dies-late", "mute"], 1.0)
    stand.fails_after = {"dies-first": 0, "dies-warm": 5, "dies-late": 60}
    stand.refuses, stand.no_batch = ("refused",), ("fine",)
    names = ["refused", "dies-first", "dies-warm", "dies-late", "fine", "mute"]
    found = bench([subject(name) for name in names], FEEDS, BATCH, QUICK, clock=stand.clock)
    assert [one.name for one in found.timings] == ["fine", "mute"]
    reasons = {one.name: one.reason for one in found.failures}
    assert list(reasons) == names[:4]
    assert reasons["refused"] == "the runtime refuses the model; try another"
    assert reasons["dies-first"] == reasons["dies-warm"] == "RuntimeError: it broke"
    assert reasons["dies-late"].startswith("it failed in round 3: RuntimeError")
    assert found.timings[0].throughput.reason == "batch 32 failed: ValueError: no such batch"
    assert found.timings[1].actual == {"problem": "RuntimeError: no facts"}
    assert found.baseline == ""  # the first one, which was refused
    assert found.timings[0].to_baseline is None
    assert sorted(stand.closed) == sorted([*names[1:]])


def test_all_may_fail(stand: Stand) -> None:
    stand.refuses = ("a",)
    found = bench([subject("a")], FEEDS, None, QUICK, clock=stand.clock)
    assert (found.timings, found.rounds, len(found.failures)) == ((), 0, 1)
    assert bench([], FEEDS, None, QUICK, clock=stand.clock).timings == ()


def test_a_fixed_batch_has_no_throughput(stand: Stand) -> None:
    stand.ms = {"a": 1.0}
    found = bench([subject("a", dynamic=False)], FEEDS, BATCH, QUICK, clock=stand.clock)
    assert found.timings[0].throughput.reason == "the model's batch size is fixed"


def test_collector_is_off_in_bursts_and_the_work_is_pinned(stand: Stand) -> None:
    stand.ms = {"a": 1.0}
    found = bench([subject("a")], FEEDS, None, QUICK, clock=stand.clock)
    assert False in stand.collecting
    if hasattr(os, "sched_getaffinity"):
        assert found.pinned_cpus == (max(os.sched_getaffinity(0)),)
        assert stand.affinity == {found.pinned_cpus}
    free = bench([subject("a")], FEEDS, None, replace(QUICK, pin=False), clock=stand.clock)
    assert free.pinned_cpus == ()


def test_pinning_is_undone_after_an_interrupt(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object) -> Session:
        raise KeyboardInterrupt

    monkeypatch.setattr(stand, "load", interrupt)
    with pytest.raises(KeyboardInterrupt):
        bench([subject("a")], FEEDS, None, QUICK, clock=stand.clock)


def test_cautions(stand: Stand) -> None:
    stand.ms, stand.jitter, stand.spread = {"slow": 300.0, "b": 1.0}, random.Random(1), (0.5, 2.0)
    found = bench([subject("slow"), subject("b", threads=2)], FEEDS, None, QUICK, clock=stand.clock)
    assert any(text.startswith("slow: its latency was not steady after ") for text in found.cautions)
    assert "the deployments use different numbers of threads: 1, 2" in found.cautions
    assert any("p95 over p50" in text and "slow" in text for text in found.noise)
    assert found.noisy


def test_wrong_use(stand: Stand) -> None:
    with pytest.raises(UsageError, match="named 'x' to compare with"):
        bench([subject("a")], FEEDS, None, replace(QUICK, baseline="x"), clock=stand.clock)
    with pytest.raises(UsageError, match="two deployments"):
        bench([subject("a"), subject("a")], FEEDS, None, QUICK, clock=stand.clock)


def test_settings_are_declared() -> None:
    assert [one.name for one in settings.fields("bench")][:2] == ["warmup_calls", "min_rounds"]
    assert all(one.help for one in settings.fields("bench"))
    changed = configured(subject("a").deployment, BenchSettings(threads=3, io_binding=True))
    assert (changed.threads, changed.io_binding, changed.name) == (3, True, "a")


def test_warm_up_waits_until_steady() -> None:
    clock = Clock()
    latencies = iter([*[10 * MS - i * 100_000 for i in range(80)], *[2 * MS] * 1000])

    def run() -> None:
        clock.now += next(latencies)

    found = warm_up(run, calls=50, seconds=10, clock=clock)
    assert found.steady
    assert found.call_ns == 2 * MS
    assert 80 + 20 <= found.calls <= 80 + 40


def test_warm_up_is_bounded() -> None:
    clock, source = Clock(), random.Random(0)

    def run() -> None:
        clock.now += source.choice([1, 2, 4]) * MS * (1 + clock.now // (50 * MS))

    found = warm_up(run, calls=50, seconds=0.3, clock=clock)
    assert (found.steady, found.calls >= 50) == (False, True)

    def slow() -> None:
        clock.now += 2000 * MS

    assert warm_up(slow, calls=50, seconds=1, clock=clock).calls == 3


def test_rounds_are_shuffled_by_the_seed_and_bounded() -> None:
    def order(seed: int) -> list[str]:
        clock, seen = Clock(), list[str]()

        def make(name: str) -> Any:
            def run() -> None:
                clock.now += MS
                seen.append(name)

            return run

        runs = {name: make(name) for name in "abc"}
        timed = interleave(
            runs, dict.fromkeys(runs, float(MS)), min_rounds=8, calls_per_round=2, seconds=0.001, seed=seed, clock=clock
        )
        assert {len(rounds) for rounds in timed.samples.values()} == {8}
        return seen

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert len(order(1)) == 3 * 8 * 2  # bursts of one call, and the one before it that doesn't count


def test_rounds_end_even_if_time_stands_still() -> None:
    timed = interleave(
        {"a": lambda: None}, {"a": 0.0}, min_rounds=2, calls_per_round=1, seconds=1.0, seed=0, clock=lambda: 0
    )
    assert len(timed.samples["a"]) == 1000


def test_ladder_steps_multiply_to_the_total() -> None:
    source = np.random.default_rng(2)
    chain = {"eager": 8.0, "ort": 4.0, "int8": 1.0}
    timings = [
        timing(name, [value * factor for factor in source.uniform(0.95, 1.05, 40)]) for name, value in chain.items()
    ]
    found = ladder(timings, ["eager", "absent", "ort", "int8"])
    assert found.missing == ("absent",)
    assert [(step.before, step.name) for step in found.steps] == [("eager", "ort"), ("ort", "int8")]
    assert found.total is not None
    assert math.prod(step.gain.ratio for step in found.steps) == pytest.approx(found.total.ratio)
    assert found.steps[0].gain.low < 2 < found.steps[0].gain.high
    assert ladder(timings, ["eager"]).total is None


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (Ratio(0.381, 0.374, 0.392, 30), "0.38× (0.37–0.39)"),
        (Ratio(1.01, 0.99, 1.03, 30), "no difference (0.99–1.03)"),
        (Ratio(0.0123, 0.0119, 0.0131, 30), "0.012× (0.012–0.013)"),
        (Ratio(56.31, 44.04, 180.2, 30), "56.3× (44.0–180)"),
        (Ratio(2.0, 0.0, math.inf, 3), "2.00× (no interval from 3 rounds)"),
    ],
)
def test_words_of_a_ratio(ratio: Ratio, text: str) -> None:
    assert ratio.text() == text


def test_reasons_are_one_line() -> None:
    assert reason(ValueError("a\nb")) == "ValueError: a"
    assert reason(RuntimeError()) == "RuntimeError"


def test_footprint_passes_all_that_is_needed(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    stand.ms = {"a": 1.0}

    def here(target: str, argument: Json, *, timeout_s: float, memory_bytes: int | None = None) -> Json:
        assert (target, timeout_s) == ("penstock.timing.footprint:measure", 5.0)
        return measure(argument)

    monkeypatch.setattr(worker, "call", here)
    model = Loadable(None, source="model.py:Net", weights="weights.pt")
    found = footprint(subject("a").deployment, model, FEEDS, timeout_s=5.0)
    assert found.reason == ""
    if sys.platform == "linux":
        assert found.peak_mb is not None
        assert found.loaded_mb is not None
        assert found.peak_mb >= found.loaded_mb > 0


def test_footprint_of_a_real_session(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    held = helper.make_tensor("w", TensorProto.FLOAT, [2_000_000], np.ones(2_000_000, dtype=np.float32).tobytes(), True)
    graph = helper.make_graph(
        [helper.make_node("ReduceSum", ["w"], ["s"]), helper.make_node("Add", ["x", "s"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [held],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    deployment = replace(subject("a").deployment, backend="onnxruntime")
    found = footprint(deployment, Loadable(path), FEEDS, timeout_s=120)
    assert found.reason == ""
    if sys.platform == "linux":
        assert found.imported_mb is not None
        assert found.peak_mb is not None
        assert found.peak_mb > found.imported_mb + 8  # the weights alone are 8 MB
    missing = footprint(deployment, Loadable(tmp_path / "absent.onnx"), FEEDS, timeout_s=120)
    assert missing.peak_mb is None
    assert missing.reason
    assert from_json(Memory, to_json(missing)) == missing


def test_strays_are_threads_that_may_leave() -> None:
    own = pinning.threads()
    assert pinning.strays(own, ()) == 0
    if hasattr(os, "sched_getaffinity"):
        assert own
        assert pinning.strays(own, tuple(os.sched_getaffinity(0))) == 0
        assert pinning.strays(own, (10**6,)) >= 1


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system can't bind threads")
def test_threads_born_pinned_are_let_go() -> None:
    before, end = os.sched_getaffinity(0), threading.Event()
    born: list[int] = []
    ready = threading.Event()

    def work() -> None:
        born.append(threading.get_native_id())
        ready.set()
        end.wait()

    thread = threading.Thread(target=work)
    try:
        with pinning.pinned(1) as cpus:
            thread.start()
            ready.wait()
            assert os.sched_getaffinity(born[0]) == set(cpus)
        assert os.sched_getaffinity(born[0]) == os.sched_getaffinity(0) == before
    finally:
        end.set()
        thread.join()
