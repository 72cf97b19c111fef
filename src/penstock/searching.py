"""A search on a real model: makes candidates, scores and times them beside the float model, keeps what it measured."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from penstock import (
    calibration,
    custom_domains,
    feeds,
    graph,
    machine,
    outputs,
    precheck,
    registry,
    store,
    transforms,
    trial,
)
from penstock.asked import fallback
from penstock.backends import Backend, Loadable, ways
from penstock.data import DataSettings
from penstock.deployment import Deployment, named
from penstock.errors import InputError, MissingError, PenstockError, UsageError
from penstock.jsonable import Json, from_json, to_json
from penstock.measures import Runnable
from penstock.progress import SILENT, Progress
from penstock.stages import bench as bench_stage
from penstock.stages import evaluate as evaluate_stage
from penstock.stages import quantize as quantize_stage
from penstock.stages.bench import BenchSettings, Subject, configured
from penstock.stages.evaluate import EvaluateSettings
from penstock.stages.quantize import QuantizeSettings
from penstock.stages.search import (
    BACKENDS,
    Candidate,
    Measured,
    Searched,
    SearchSettings,
    climb,
    need_read,
    plain,
    same,
    told,
    unusable,
)
from penstock.store import Cache, Made, digest_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from penstock.feeds import Feeds, RoleFeeds
    from penstock.quantizers import Quantizer

OTHERS = ("dynamic", "fp16", "weight-only")
MODEL = "model.onnx"
# what a runtime calls an option of a deployment
CALLED = {"onnxruntime": "session.{}".format, "openvino": str.upper}


def search(
    model: str | Path,
    output: str | Path,
    data: DataSettings,
    settings: SearchSettings | None = None,
    *,
    quantize: QuantizeSettings | None = None,
    evaluate: EvaluateSettings | None = None,
    bench: BenchSettings | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
    asked: Mapping[str, Collection[str]] | None = None,
) -> Searched:
    """Find the fastest quantized model within an accuracy budget and write it to the file ``output``.

    Accuracy is measured on the select split. Nothing is written where none fits: the result's ``chosen`` is empty.
    Raises ``UsageError`` without labelled data, for a consumer that nothing here can stand for, and for a setting that
    a search doesn't read; ``MissingError`` where the consumer's runtime isn't installed; ``InputError`` for a model
    that can't be quantized at all. ``asked`` names by section what was asked for, to be held to what a search reads
    (default: all settings that differ from their defaults).
    """

    from penstock import running

    evaluate, quantize, bench = evaluate or EvaluateSettings(), quantize or QuantizeSettings(), bench or BenchSettings()
    need_read(quantize, "quantize", None if asked is None else asked.get("quantize", ()))
    need_read(bench, "bench", None if asked is None else asked.get("bench", ()))
    backend_of(quantize.consumer)
    outputs.keep_apart({"-o": output}, {"the model that is read": model, "the data that is read": data.data})
    if not data.data:
        raise UsageError("no-data", "a search measures accuracy and needs labelled data", do="give it with --data")
    path = Path(model)
    roles = running.role_feeds(path, data, seed, classes=not evaluate.metric)
    if roles.select is None:
        do = "give labelled data, and --select-samples of 1 or more"
        raise UsageError("no-labels", f"{data.data} leaves no labelled samples for the select split", do=do)
    signature = graph.signature(graph.load(path))
    if not evaluate.metric and not feeds.has_classes(signature):
        what = f"top-1 means nothing for the output {signature.outputs[0].text()}"
        raise UsageError("no-metric", what, do="name a measure with --metric module:function")
    trial.survive(path, [roles.golden.first(1), roles.select.first(evaluate.batch)], str(path))
    return run(
        path, Path(output), roles, quantize, settings or SearchSettings(), evaluate, bench,
        Cache(store.default_cache()), progress,
    )  # fmt: skip


def run(
    model: Path, output: Path, roles: RoleFeeds, base: QuantizeSettings, settings: SearchSettings,
    evaluating: EvaluateSettings, timing: BenchSettings, cache: Cache, progress: Progress = SILENT,
) -> Searched:  # fmt: skip
    """Search, and write the chosen model to ``output``. Raises ``InputError`` where there is nothing to search in."""
    assert roles.select is not None
    progress.begin("search", f"{roles.select.count} samples of the select split, {settings.evaluations} models at most")
    one = _Search(model, roles, evaluating, timing, cache, settings, progress, backend_of(base.consumer))
    methods = [name for name in OTHERS if name in registry.names("quantizers") and _can_run(name)]
    base = replace(base, sensitivity=0.0)  # nothing of it would be told
    found = replace(climb(base, settings, methods, one.measure, one.ranking), backend=one.backend)
    if found.chosen:
        made = one.made(next(candidate for candidate in one.tried if candidate.name == found.chosen))
        for file in sorted(made.rglob("*"), key=lambda path: path.suffix == ".onnx"):
            if file.is_file():
                store.copy_file(file, output if file.name == MODEL else output.parent / file.relative_to(made))
    progress.end(found.chosen or "nothing fits the budget")
    return found


def _can_run(name: str) -> bool:
    return not cast("Quantizer", registry.load("quantizers", name)).available()


def backend_of(consumer: str) -> str:
    """Return the backend that measures for a consumer. Raises ``UsageError`` where there is none.

    Raises ``MissingError`` where it can't run here.
    """
    if consumer not in BACKENDS:
        what = f"a search measures every model that it makes, and no backend here stands for {consumer!r}"
        do = f"search for {' or '.join(BACKENDS)}; `penstock quantize --consumer {consumer}` makes a model unmeasured"
        raise UsageError("cannot-serve", what, where="--consumer", do=do)
    name = BACKENDS[consumer]
    if problem := cast(Backend, registry.load("backends", name)).available():
        what = f"the backend {name!r}, on which a search for {consumer!r} measures, can't run here"
        raise MissingError("backend-missing", what, do=problem)
    return name


@dataclass(slots=True)
class _Search:
    model: Path
    roles: RoleFeeds
    evaluating: EvaluateSettings
    timing: BenchSettings
    cache: Cache
    settings: SearchSettings
    progress: Progress
    backend: str
    tried: list[Candidate] = field(default_factory=list)
    seen: dict[tuple[str, str], Measured] = field(default_factory=dict)  # by the file's digest and the way
    digest: str = ""
    plain: evaluate_stage.Evaluation | None = None  # the float model's

    def __post_init__(self) -> None:
        self.digest = digest_of([store.file_digest(file) for file in (self.model, *precheck.files_beside(self.model))])

    @property
    def _select(self) -> Feeds:
        assert self.roles.select is not None
        return self.roles.select

    def measure(self, candidate: Candidate, timed: bool) -> Measured:
        """Make, score and, where asked for, time a candidate; or take over what was measured before."""
        if candidate not in self.tried:
            self.tried.append(candidate)
        self.progress.step(
            min(len(self.seen) + 1, self.settings.evaluations), self.settings.evaluations, candidate.name
        )
        key = self._key("measured", candidate, timed)
        if not self.settings.fresh and (entry := self.cache.get(key)) is not None:
            # another way to the same settings may have been called by other steps
            found = replace(from_json(Measured, entry.facts["measured"]), name=candidate.name, reused=True)
            return self._first(candidate, found.digest) or self._noted(candidate, found)
        try:
            made = self.made(candidate)
        except (InputError, UsageError) as error:
            if isinstance(error, UsageError) and len(self.tried) == 1:
                raise  # what was asked for can't be had; later ones are the search's own
            return unusable(error, candidate.name)
        digest = _digest(made)
        if (other := self._first(candidate, digest)) is not None:
            return other
        if self.plain is None:
            self.plain = self._score(self._runnable(self.model, "float"))
        try:
            found = replace(self._figures(candidate, made / MODEL, self.plain, timed), digest=digest)
        except PenstockError as error:
            told = unusable(InputError(error.id, error.what), candidate.name)
            return replace(told, settings=plain(candidate.settings))
        self.cache.put(key, lambda into: Made({"measured": to_json(found)}))
        return self._noted(candidate, found)

    def _noted(self, candidate: Candidate, found: Measured) -> Measured:
        self.seen[found.digest, candidate.way] = found
        return found

    def _first(self, candidate: Candidate, digest: str) -> Measured | None:
        """Return the figures of an earlier candidate whose file this one's is too; ``None`` where there is none."""
        other = self.seen.get((digest, candidate.way))
        return same(candidate, other) if other is not None and other.name != candidate.name else None

    def _figures(
        self, candidate: Candidate, path: Path, plain_score: evaluate_stage.Evaluation, timed: bool
    ) -> Measured:
        runnable = self._runnable(path, candidate.name, candidate.way)
        score = self._score(runnable)
        gap = evaluate_stage.paired(score, plain_score)
        latency, span = self._time(runnable) if timed else (None, None)
        size = sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file())
        called = CALLED[self.backend]
        return Measured(
            candidate.name, score.score, -100 * gap.difference, (-100 * gap.high, -100 * gap.low), latency, span, size,
            "", settings=plain(candidate.settings), told=self._told(candidate),
            options={called(name): value for name, value in runnable.deployment.options.items()},
            ways=() if candidate.way else tuple(way for way in self._ways(graph.load(path, weights=False)) if way),
        )  # fmt: skip

    def made(self, candidate: Candidate) -> Path:
        """Return the folder of a candidate's model, made or taken from the cache."""
        key = self._key("made", candidate, False)

        def make(into: Path) -> Made:
            batches = calibration.of_feeds(
                self.roles.calibrate, candidate.settings.calibration_batch, golden=self.roles.golden, cache=self.cache
            )
            facts = quantize_stage.quantize(self.model, batches, candidate.settings, into / MODEL)
            return Made({"told": told(facts)})

        if self.cache.get(key) is None:
            self.cache.put(key, make)
        return self.cache.folder(key) / "files"

    def _told(self, candidate: Candidate) -> Mapping[str, Json]:
        entry = self.cache.get(self._key("made", candidate, False))
        return cast("dict[str, Json]", entry.facts.get("told") or {}) if entry is not None else {}

    def _key(self, what: str, candidate: Candidate, timed: bool) -> str:
        data = [dict(self.roles.calibrate.description), dict(self._select.description)]
        here = [machine.instruction_set(), os.cpu_count(), machine.threads(), machine.describe().get("cpu")]
        metric = evaluate_stage.metric_digest(self.evaluating.metric)
        run_by = [self.backend, dict(cast(Backend, registry.load("backends", self.backend)).facts()), candidate.way]
        measuring = [self.evaluating, metric, self.timing, timed, run_by] if what == "measured" else []
        tools = transforms.quantizer_tools(candidate.settings.method)
        made_by = [*transforms.quantizer_code(), tools, custom_domains.key()]
        return digest_of(["search", what, self.digest, candidate.settings, data, here, made_by, measuring])

    def _ways(self, model: ir.Model) -> Mapping[str, Mapping[str, str]]:
        return ways(cast(Backend, registry.load("backends", self.backend)), model)

    def _runnable(self, path: Path, name: str, way: str = "") -> Runnable:
        loaded = graph.load(path)
        deployment = Deployment(
            named(name, self.backend), name, store.file_digest(path), graph.precision(loaded), self.backend,
            options=self._ways(loaded).get(way, {}),
        )  # fmt: skip
        model = Loadable(path, libraries=custom_domains.libraries(path))
        return Runnable(configured(deployment, self.timing), model, graph.signature(loaded).fixed_batch is None)

    def _score(self, runnable: Runnable) -> evaluate_stage.Evaluation:
        session = runnable.open()
        try:
            name = runnable.deployment.name
            found = evaluate_stage.evaluate(session, self._select, self.evaluating, SILENT, name)
            if told := fallback(runnable.deployment, session.actual()):
                raise InputError("fell-back", f"what ran isn't what was asked for: {told}")
            return found
        finally:
            session.close()

    def _time(self, runnable: Runnable) -> tuple[float | None, tuple[float, float] | None]:
        """Time a model beside the float one, in one run."""
        pair = [self._runnable(self.model, "float"), runnable]
        subjects = [Subject(one.deployment, one.model, one.dynamic_batch) for one in pair]
        asked = replace(self.timing, baseline=pair[0].deployment.name, footprint=False)
        done = bench_stage.bench(subjects, self.roles.golden.first(1), None, asked)
        if done.failures:
            raise InputError("run-failed", f"it can't be timed: {done.failures[0].reason}")
        ratio = next(one.to_baseline for one in done.timings if one.name == runnable.deployment.name)
        return (None, None) if ratio is None else (ratio.ratio, (ratio.low, ratio.high))

    def ranking(self, candidate: Candidate) -> Sequence[str]:
        """Return the integer layers of a candidate, the one that the output minds most first; kept as the rest is."""
        key = self._key("ranked", candidate, False)
        if self.settings.fresh or self.cache.get(key) is None:
            ranked = self._ranked(candidate)
            self.cache.put(key, lambda into: Made({"ranked": [*ranked]}))
            return ranked
        entry = self.cache.get(key)
        assert entry is not None
        return cast("list[str]", entry.facts["ranked"])

    def _ranked(self, candidate: Candidate) -> list[str]:
        from penstock.quantization import automatic, sensitivity
        from penstock.quantization.studying import of_settings, studied

        batches = calibration.of_feeds(
            self.roles.calibrate, candidate.settings.calibration_batch, golden=self.roles.golden, cache=self.cache
        )
        choice = of_settings(candidate.settings)
        study, _ = studied(self.model, batches, choice)
        choice, _ = automatic.resolved(study, choice)
        ranked, left = sensitivity.layers(study, choice)
        return [one.node for one in ranked] + left


def _digest(folder: Path) -> str:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return digest_of([[str(file.relative_to(folder)), store.file_digest(file)] for file in files])
