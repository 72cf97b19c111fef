"""Measures of a build: each runs deployments and appends records and verdicts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from penstock import graph, registry
from penstock.asked import asked_of, fallback
from penstock.backends import Backend, Loadable, Session
from penstock.deployment import Deployment
from penstock.errors import InputError, MissingError, PenstockError
from penstock.jsonable import Json, to_json
from penstock.ledger import Append
from penstock.record import Record
from penstock.rehearsal import rehearse
from penstock.stages.bench import BenchResult, BenchSettings, Subject, bench
from penstock.stages.evaluate import EvaluateSettings, Evaluation, evaluate, paired
from penstock.stages.verify import VerifySettings
from penstock.verdict import Outcome, Verdict
from penstock.verifying import verified

if TYPE_CHECKING:
    import numpy as np

    from penstock.feeds import Feeds, RoleFeeds
    from penstock.golden import Golden
    from penstock.progress import Progress

Keep = Callable[[bytes], str]  # keeps bytes as a blob, returns their SHA-256


@dataclass(frozen=True, slots=True)
class Runnable:
    """A deployment and where its model is to be loaded from."""

    deployment: Deployment
    model: Loadable
    dynamic_batch: bool

    @property
    def is_of_a_third_party(self) -> bool:
        """Whether the backend comes from a package of its own."""
        return self.deployment.backend in registry.origins("backends")

    def open(self) -> Session:
        """Load it. Raises ``InputError`` or ``MissingError``."""
        name = self.deployment.backend
        backend = cast(Backend, registry.load("backends", name))
        if self.model.libraries and not getattr(backend, "LOADS_LIBRARIES", False):
            what = "this backend loads no library of custom operators, and the model has some"
            do = "run it on onnxruntime"
            raise InputError("runtime-refuses", what, where=self.deployment.name, do=do)
        if not self.is_of_a_third_party:
            return backend.load(self.model, self.deployment)
        with _explained(name, "load"):
            return _ThirdParty(backend.load(self.model, self.deployment), name)


@contextlib.contextmanager
def _explained(backend: str, verb: str) -> Iterator[None]:
    """Turn whatever a third party's backend raises into an ``InputError``, which is about this deployment alone."""
    try:
        yield
    except PenstockError:
        raise
    except (Exception, SystemExit) as error:
        what = f"the backend {backend!r} can't {verb} the model: {graph.first_line(error)}"
        id = "runtime-refuses" if verb == "load" else "run-failed"
        raise InputError(id, what, do="run this model on another backend, or update the plug-in") from error


class _ThirdParty:
    """A session of a third party's backend, which may raise anything and return anything."""

    def __init__(self, session: Session, backend: str) -> None:
        self._session, self._backend = session, backend

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        import numpy as np

        with _explained(self._backend, "run"):
            found: object = self._session.run(feeds)
            if not isinstance(found, list | tuple) or not all(isinstance(one, np.ndarray) for one in found):
                raise TypeError(f"it returns no list of arrays, but {_kind(found)}")
            return list(found)

    def actual(self) -> Mapping[str, Json]:
        """Tell what it tells; what it can't tell is no reason to do without its numbers."""
        try:
            told = to_json(dict(self._session.actual()))
        except Exception as error:  # a third party's
            return {"problem": f"{type(error).__name__}: {graph.first_line(error)}"}
        assert isinstance(told, dict)
        return told

    def close(self) -> None:
        with contextlib.suppress(Exception):  # what it was opened for is done
            self._session.close()


def _kind(found: object) -> str:
    if isinstance(found, list | tuple):
        kinds = ", ".join(dict.fromkeys(type(one).__name__ for one in found))
        return f"a {type(found).__name__} of {kinds}"
    return f"a {type(found).__name__}"


def measured_json(value: object) -> dict[str, Json]:
    """Return a dataclass as the ``measured`` part of a record."""
    found = to_json(value)
    assert isinstance(found, dict)
    return found


def verify_all(
    runnables: Sequence[Runnable], golden: Golden, settings: VerifySettings, append: Append, progress: Progress,
    named: bool = False,
) -> list[Runnable]:  # fmt: skip
    """Hold every deployment against the golden set; return those that passed.

    Raises ``MissingError`` where the backends were ``named`` and what one needs turns out to be missing.
    """
    passed = []
    for done, runnable in enumerate(runnables):
        deployment = runnable.deployment
        progress.step(done, len(runnables), deployment.name)
        seconds = settings.oracle_seconds if deployment.role == "oracle" else None
        asked: dict[str, Json] = {"asked": asked_of(deployment)}
        try:
            if runnable.is_of_a_third_party:
                rehearse(runnable.model, deployment, golden.feeds)
            session = runnable.open()
        except PenstockError as error:
            if named and isinstance(error, MissingError):
                raise
            append(Verdict("load", deployment.name, Outcome(False, error.what)))
            continue
        try:
            found = verified(runnable.model, deployment, session, golden, settings, seconds=seconds)
            actual = _actual(session, found.outcome)
        finally:
            session.close()
        measured = measured_json(found) | {"actual": to_json(actual)}
        for key in ("inputs", "asked"):  # they stand in the record itself
            measured.pop(key)
        append(Record("verify", deployment.name, golden.description, asked, measured))
        append(Verdict("verify", deployment.name, found.outcome))
        if not settings.allow_fallback and (why := fallback(deployment, actual)):
            append(Verdict("fallback", deployment.name, Outcome(False, why)))
        elif found.outcome.passed:
            passed.append(runnable)
    return passed


def _actual(session: Session, outcome: Outcome) -> Mapping[str, Json]:
    """Return what ran; of a session whose process died in a run, which the outcome tells, nothing is known."""
    try:
        return session.actual()
    except PenstockError as error:
        return {"problem": error.what} if outcome.passed else {}


def evaluate_all(
    runnables: Sequence[Runnable],
    data: RoleFeeds,
    baseline: str,
    settings: EvaluateSettings,
    append: Append,
    keep: Keep,
    progress: Progress,
) -> None:
    """Score every deployment on the select and the evaluate role, against the baseline on the same samples.

    One that fails, its process having died, say, is refused with the reason, and the others go on. Where the baseline
    fails, or all do, there is nothing to hold anything against, and the error is raised.
    """
    import numpy as np

    failed: dict[str, PenstockError] = {}
    first = sorted(runnables, key=lambda r: r.deployment.name != baseline)  # the baseline goes first
    for role, feeds in (("select", data.select), ("evaluate", data.evaluate)):
        if feeds is None:
            continue
        reference: Evaluation | None = None
        records: dict[str, Record] = {}
        for runnable in first:
            name = runnable.deployment.name
            if name in failed:
                continue
            try:
                found, actual = _scored(runnable, feeds, settings, progress, f"{name} on {role}")
            except PenstockError as error:
                if name == baseline or len(failed) + 1 == len(first):
                    raise
                failed[name] = error
                continue
            if name == baseline:
                reference = found
            gap = paired(found, reference) if reference is not None and name != baseline else None
            measured: dict[str, Json] = {
                "score": found.score, "low": found.low, "high": found.high, "samples": found.samples,
                "difference": None if gap is None else to_json(gap) | {"baseline": baseline},  # type: ignore[operator]  # a dataclass gives a dict
                "scores_blob": keep(np.ascontiguousarray(found.scores, dtype="<f8").tobytes()),
            }  # fmt: skip
            facts: dict[str, Json] = {
                "metric": found.metric, "interval": found.interval, "asked": asked_of(runnable.deployment),
            }  # fmt: skip
            measured["actual"] = to_json(dict(actual))
            records[name] = Record("evaluate", name, feeds.description, facts, measured)
        for runnable in runnables:
            if runnable.deployment.name in records:
                append(records[runnable.deployment.name])
    for name, why in failed.items():
        append(Verdict("evaluate", name, Outcome(False, f"it can't be scored: {why.what}")))


def _scored(
    runnable: Runnable, feeds: Feeds, settings: EvaluateSettings, progress: Progress, what: str
) -> tuple[Evaluation, Mapping[str, Json]]:
    session = runnable.open()
    try:
        return evaluate(session, feeds, settings, progress, what), session.actual()
    finally:
        session.close()


def bench_all(
    runnables: Sequence[Runnable],
    feeds: Feeds,
    settings: BenchSettings,
    append: Append,
    keep: Keep,
    progress: Progress,
) -> BenchResult:
    """Time all deployments interleaved and append a record for each."""
    import numpy as np

    subjects = [Subject(r.deployment, r.model, r.dynamic_batch and not feeds.whole) for r in runnables]
    free = any(subject.has_dynamic_batch for subject in subjects)
    batch = feeds.first(settings.throughput_batch) if free else None
    result = bench(subjects, feeds.first(1), batch, settings, progress)
    facts = cast("dict[str, Json]", to_json(settings))
    failures = {failure.name: failure.reason for failure in result.failures}
    timings = {timing.name: timing for timing in result.timings}
    run: dict[str, Json] = {
        "baseline": result.baseline, "rounds": result.rounds, "pinned_cpus": list(result.pinned_cpus),
        "noise": list(result.noise), "cautions": list(result.cautions),
    }  # fmt: skip
    append(Record("bench", "run", feeds.description, facts, run, dict(result.environment)))
    for runnable in runnables:
        name = runnable.deployment.name
        if name in timings:
            timing = timings[name]
            blob = keep(np.ascontiguousarray(timing.samples_ns, dtype="<i8").tobytes())
            measured = measured_json(replace(timing, samples_ns=np.zeros(0, dtype=np.int64)))
            measured.pop("samples_ns")
            measured |= {"samples_ns_blob": blob, "samples_shape": list(timing.samples_ns.shape)}
        else:
            measured = {"failure": failures.get(name, "it was not measured")}
        asked: dict[str, Json] = {"asked": asked_of(runnable.deployment)}
        append(Record("bench", name, feeds.description, asked, measured))
    return result
