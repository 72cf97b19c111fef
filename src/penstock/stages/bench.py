"""Bench: deployments side by side in one process, in rounds, and each one's ratio to the baseline.

1. bind to the last CPUs; load each deployment and time its load and its first run;
2. warm each up until it is steady;
3. rounds in shuffled order, each deployment a burst of calls per round (``penstock.timing.rounds``);
4. rounds at the throughput batch, for those whose batch is free;
5. memory, each in a process of its own;
6. what made the machine noisy meanwhile.

A deployment that fails at any of it is reported with its reason; the others go on.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, cast

from penstock import machine, registry
from penstock.asked import fallback, in_float
from penstock.backends import Backend, Loadable, NodeTime, Session, only_stored
from penstock.deployment import Deployment
from penstock.errors import MissingError, UsageError
from penstock.jsonable import Json
from penstock.progress import SILENT, Progress
from penstock.settings import option
from penstock.timing import pinning
from penstock.timing.figures import Memory, Throughput, Timing, ratio, summarise
from penstock.timing.footprint import footprint
from penstock.timing.rounds import Calls, Clock, Timed, Warmth, interleave, reason, warm_up
from penstock.timing.throughput import throughput

if TYPE_CHECKING:
    import numpy as np

Feeds = Mapping[str, "np.ndarray"]


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """How latency, throughput and memory are measured."""

    warmup_calls: int = option(50, "calls of warm-up at least, more until it is steady", minimum=1)
    min_rounds: int = option(30, "rounds at least", minimum=1)
    calls_per_round: int = option(10, "calls in one deployment's burst of a round", minimum=1)
    seconds: float = option(
        2.0, "time to spend on each deployment's rounds, in seconds", flag="--bench-seconds", minimum=0
    )
    throughput_batch: int = option(32, "batch size at which throughput is measured", minimum=1)
    threads: int = option(1, "threads of each deployment", minimum=1)
    pin: bool = option(True, "bind the work to fixed CPUs")
    io_binding: bool = option(False, "bind inputs and outputs once instead of passing them at every call")
    baseline: str = option("", "the deployment to compare with; empty: eager PyTorch if it is there, else the first")
    seed: int = option(0, "seed of the order of the rounds and of the bootstrap", flag="--bench-seed", minimum=0)
    footprint: bool = option(True, "measure memory, each deployment in a process of its own")
    nodes: int = option(0, "slowest nodes to name of each deployment, by its runtime's own profile", minimum=0)
    footprint_timeout_s: float = option(120.0, "time allowed for one memory measurement, in seconds", minimum=1)


@dataclass(frozen=True, slots=True)
class Subject:
    """A deployment to measure, its model, and whether it takes any batch size."""

    deployment: Deployment
    model: Loadable
    has_dynamic_batch: bool


@dataclass(frozen=True, slots=True)
class Failure:
    """A deployment that could not be measured, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class BenchResult:
    """What a bench gave. ``noise`` names what made the machine noisy, ``cautions`` what else limits a comparison."""

    timings: tuple[Timing, ...]  # in the order of the subjects
    failures: tuple[Failure, ...]
    baseline: str  # "" when the baseline could not be measured
    rounds: int
    pinned_cpus: tuple[int, ...]
    environment: Mapping[str, Json]
    noise: tuple[str, ...]
    cautions: tuple[str, ...]

    @property
    def noisy(self) -> bool:
        """Whether the figures are to be distrusted."""
        return bool(self.noise)


def configured(deployment: Deployment, settings: BenchSettings) -> Deployment:
    """Return the deployment with the threads and the I/O binding of the settings, for whoever makes deployments."""
    return replace(deployment, threads=settings.threads, io_binding=settings.io_binding)


@dataclass(slots=True)
class _Bench:
    """A subject on its way through the steps."""

    subject: Subject
    session: Session
    load_ms: float
    first_run_ms: float
    tids: frozenset[int]
    warmth: Warmth = field(default_factory=lambda: Warmth(0, False, 0.0))
    stray_threads: int = 0


def bench(
    subjects: Sequence[Subject],
    feeds: Feeds,
    batch_feeds: Feeds | None,
    settings: BenchSettings,
    progress: Progress = SILENT,
    *,
    clock: Clock = time.perf_counter_ns,
    named: bool = False,
) -> BenchResult:
    """Measure the deployments on ``feeds`` (a batch of one) and ``batch_feeds`` (the throughput batch, or none).

    A deployment runs with its own threads and I/O binding; see :func:`configured`. Raises ``UsageError`` when two
    subjects share a name or the baseline is none of them; what fails in a deployment is a ``Failure``, but for what is
    missing where the backends were ``named``: that is raised as a ``MissingError``.
    """
    names = [subject.deployment.name for subject in subjects]
    baseline = _baseline(subjects, names, settings.baseline)
    progress.begin("bench", f"{len(names)} deployments")
    environment = machine.describe()
    failures: dict[str, str] = {}
    threads = max((subject.deployment.threads for subject in subjects), default=1)
    ready: dict[str, _Bench] = {}
    with pinning.pinned(threads, pin=settings.pin) as cpus:
        before = machine.moment(clock=clock)
        try:
            for done, subject in enumerate(subjects):
                progress.step(done, len(subjects), f"loading {subject.deployment.name}")
                load = partial(_load, subject, feeds, clock, ready)
                _try(load, subject.deployment.name, failures, missing=not named)
            for done, (name, item) in enumerate(list(ready.items())):
                progress.step(done, len(ready), f"warming up {name}")
                if not _try(partial(_warm, item, feeds, settings, cpus, clock), name, failures):
                    _close(ready.pop(name).session)
            timed = _rounds(ready, feeds, settings, clock, progress)
            failures |= timed.failures
            at_batch = _throughput({n: ready[n] for n in timed.samples}, batch_feeds, settings, clock)
            nodes, untold = {}, {}
            for name in timed.samples:
                nodes[name], untold[name] = _nodes(ready[name].session, feeds, settings)
            actual = {name: _actual(ready[name].session) for name in timed.samples}
        finally:
            for item in ready.values():
                _close(item.session)
        after = machine.moment(clock=clock)
    timings: list[Timing] = []
    for name in (name for name in names if name in timed.samples):
        memory = Memory(reason="not asked for")
        if settings.footprint:
            subject, limit = ready[name].subject, settings.footprint_timeout_s
            progress.step(len(timings), len(timed.samples), f"memory of {name}")
            memory = footprint(subject.deployment, subject.model, feeds, timeout_s=limit)
        timings.append(_timing(name, ready[name], timed, memory, at_batch[name], actual[name], nodes[name]))
    timings, baseline = _compare(timings, baseline, settings.seed)
    noise = machine.noise(before, after, {t.name: t.p95_ms / t.p50_ms for t in timings if t.p50_ms}, environment)
    progress.end(f"{len(timings)} measured, {len(failures)} failed")
    return BenchResult(
        tuple(timings),
        tuple(Failure(name, failures[name]) for name in names if name in failures),
        baseline,
        len(timings[0].rounds_ms) if timings else 0,
        cpus,
        environment,
        noise,
        _cautions(timings, subjects, untold),
    )


def _baseline(subjects: Sequence[Subject], names: list[str], asked: str) -> str:
    if doubles := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError("double-deployment", f"two deployments are named {doubles[0]!r}", do="measure each one once")
    if asked and asked not in names:
        raise UsageError(
            "unknown-baseline",
            f"there is no deployment named {asked!r} to compare with",
            where="[bench] baseline",
            do=f"known are: {', '.join(names)}",
        )
    given = [subject.deployment.name for subject in subjects if subject.deployment.role == "baseline"]
    return asked or next(iter([*given, *names]), "")


def _try(work: Callable[[], None], name: str, failures: dict[str, str], *, missing: bool = True) -> bool:
    try:
        work()
    except Exception as error:  # whatever a runtime raises is its own answer: a value, and the others go on
        if isinstance(error, MissingError) and not missing:
            raise
        failures[name] = reason(error)
        return False
    return True


def _load(subject: Subject, feeds: Feeds, clock: Clock, ready: dict[str, _Bench]) -> None:
    backend = cast(Backend, registry.load("backends", subject.deployment.backend))
    if problem := backend.available():
        raise MissingError("no-backend", problem)
    backend.facts()  # imports the runtime, so that the first to use it doesn't pay for it
    earlier = pinning.threads()
    start = clock()
    session = backend.load(subject.model, subject.deployment)
    loaded = clock()
    try:
        session.run(feeds)
    except Exception:
        _close(session)
        raise
    first_run_ms = (clock() - loaded) / 1e6
    tids = pinning.threads() - earlier
    ready[subject.deployment.name] = _Bench(subject, session, (loaded - start) / 1e6, first_run_ms, tids)


def _warm(item: _Bench, feeds: Feeds, settings: BenchSettings, cpus: tuple[int, ...], clock: Clock) -> None:
    run = Calls(item.session, feeds)
    item.warmth = warm_up(run, calls=settings.warmup_calls, seconds=settings.seconds, clock=clock)
    item.stray_threads = pinning.strays(item.tids, cpus)


def _rounds(
    ready: Mapping[str, _Bench], feeds: Feeds, settings: BenchSettings, clock: Clock, progress: Progress
) -> Timed:
    return interleave(
        {name: Calls(item.session, feeds) for name, item in ready.items()},
        {name: item.warmth.call_ns for name, item in ready.items()},
        min_rounds=settings.min_rounds,
        calls_per_round=settings.calls_per_round,
        seconds=settings.seconds,
        seed=settings.seed,
        clock=clock,
        heard=lambda done: progress.step(done, 0, "rounds"),
    )


def _throughput(
    ready: Mapping[str, _Bench], batch_feeds: Feeds | None, settings: BenchSettings, clock: Clock
) -> dict[str, Throughput]:
    if not batch_feeds:
        return dict.fromkeys(ready, Throughput(reason="there are no inputs for a larger batch"))
    batch = int(next(iter(batch_feeds.values())).shape[0])
    free = {name: item for name, item in ready.items() if item.subject.has_dynamic_batch}
    runs = {name: Calls(item.session, batch_feeds) for name, item in free.items()}
    found = throughput(runs, batch, seconds=settings.seconds / 4, seed=settings.seed, clock=clock)
    fixed = Throughput(batch, reason="the model's batch size is fixed")
    return {name: found.get(name, fixed) for name in ready}


def _actual(session: Session) -> dict[str, Json]:
    try:
        return dict(session.actual())
    except Exception as error:  # the timing stands without it
        return {"problem": reason(error)}


def _nodes(session: Session, feeds: Feeds, settings: BenchSettings) -> tuple[tuple[NodeTime, ...], str]:
    """Time the nodes, where that is asked for; without any, say why."""
    if not settings.nodes:
        return (), ""
    times = getattr(session, "nodes", None)
    try:
        found = tuple(times(feeds, settings.calls_per_round)) if times is not None else ()
    except Exception as error:  # the timing stands without them
        return (), f"its nodes can't be timed: {reason(error)}"
    return found, "" if found else "its runtime gives no times of nodes"


def _close(session: Session) -> None:
    with contextlib.suppress(Exception):  # what was measured stands, whatever a runtime says in parting
        session.close()


def _timing(
    name: str, item: _Bench, timed: Timed, memory: Memory, throughput: Throughput, actual: Mapping[str, Json],
    nodes: tuple[NodeTime, ...],
) -> Timing:  # fmt: skip
    import numpy as np

    samples = np.array(timed.samples[name], dtype=np.int64)  # (rounds, calls)
    medians = tuple(float(value) / 1e6 for value in np.median(samples, axis=1))
    return Timing(
        name=name, **summarise(samples), count=samples.size, rounds_ms=medians, load_ms=item.load_ms,
        first_run_ms=item.first_run_ms, warmup_calls=item.warmth.calls, steady=item.warmth.steady, memory=memory,
        throughput=throughput, to_baseline=None, actual=actual, stray_threads=item.stray_threads, nodes=nodes,
        samples_ns=samples,
    )  # fmt: skip


def _compare(timings: list[Timing], baseline: str, seed: int) -> tuple[list[Timing], str]:
    base = next((timing for timing in timings if timing.name == baseline), None)
    if base is None:
        return timings, ""
    compared = [replace(t, to_baseline=ratio(t.rounds_ms, base.rounds_ms, seed)) for t in timings]
    return compared, baseline


def _cautions(
    timings: Sequence[Timing], subjects: Sequence[Subject], untold: Mapping[str, str]
) -> tuple[str, ...]:  # fmt: skip
    """Return what else makes a comparison unfair."""
    found = [f"{t.name}: its latency was not steady after {t.warmup_calls} calls" for t in timings if not t.steady]
    found += [f"{t.name}: {t.stray_threads} of its threads left the pinned CPUs" for t in timings if t.stray_threads]
    precisions = {subject.deployment.name: subject.deployment.precision for subject in subjects}
    found += [f"{t.name}: {told}" for t in timings if (told := only_stored(precisions[t.name], t.actual))]
    asked = {subject.deployment.name: subject.deployment for subject in subjects}
    files = {subject.deployment.name: subject.model.path for subject in subjects}
    for timing in timings:
        deployment, path = asked[timing.name], files[timing.name]
        told = fallback(deployment, timing.actual) or (in_float(deployment, timing.actual, path) if path else "")
        found += [f"{timing.name}: {told}"] if told else []
    found += [f"{t.name}: {untold[t.name]}" for t in timings if untold.get(t.name)]
    if len(threads := sorted({subject.deployment.threads for subject in subjects})) > 1:
        found.append(f"the deployments use different numbers of threads: {', '.join(map(str, threads))}")
    return tuple(found)
