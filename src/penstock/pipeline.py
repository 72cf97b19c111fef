"""The pipeline: settings → ordered stages → a build folder with the chosen deployment and the evidence.

Transforms go through the cache; measures are steps of the journal, so an interrupted build goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from penstock import (
    custom_domains,
    datasets,
    golden,
    graph,
    history,
    machine,
    measures,
    precheck,
    preflight,
    reproduction,
    store,
    synthetic_feeds,
    transforms,
    trial,
)
from penstock.backends import Loadable
from penstock.build_feeds import for_build
from penstock.build_settings import BuildSettings, lock_text
from penstock.errors import GateError, InputError, PenstockError, UsageError
from penstock.frontends import Source
from penstock.journal import Journal
from penstock.jsonable import Json, to_json
from penstock.ledger import Append, Entry
from penstock.measures import Runnable
from penstock.progress import SILENT, Progress
from penstock.record import Record
from penstock.stages import optimize
from penstock.stages import quantize as quantize_stage
from penstock.stages.evaluate import metric_digest
from penstock.stages.inspect import inspect
from penstock.stages.place import place, reference
from penstock.stages.select import Selection, select
from penstock.store import BuildFolder, Cache
from penstock.summary import Row, rows
from penstock.transforms import Transformed
from penstock.variant import Variant
from penstock.verdict import Verdict

if TYPE_CHECKING:
    import numpy as np

    from penstock.data import Dataset
    from penstock.feeds import RoleFeeds
    from penstock.timing.ladder import Ladder


@dataclass(frozen=True, slots=True)
class BuildResult:
    """What a build gave: its folder, the table of deployments, the chosen one, the ladder and what made it noisy."""

    folder: Path
    variants: tuple[Variant, ...]
    rows: tuple[Row, ...]
    chosen: str
    nearest_miss: str
    ladder: Ladder
    notes: tuple[str, ...]
    resumed: tuple[str, ...]
    reads: Mapping[str, str]  # absolute path → SHA-256 of what the export read


def build(
    settings: BuildSettings, output: Path, *, cache: Path | None = None, progress: Progress = SILENT
) -> BuildResult:
    """Run the whole pipeline into the folder ``output``.

    Raises ``UsageError``, ``InputError``, ``StoreError`` or ``MissingError`` for what the user has to mend; a build in
    which nothing fits the limits is a result whose ``chosen`` is empty.
    """
    preflight.check(settings)
    folder = BuildFolder(output)
    folder.open()
    clock = history.Clock(progress)
    kept = Cache(cache or store.default_cache())
    try:
        with precheck.limits(settings.check):
            one = Build(settings, folder, kept, clock, Journal(folder))
            result = one.run()
    finally:
        folder.close()
    from_cache = {name for name, hit in one.transformed.items() if hit}
    left = from_cache.union(result.resumed, ["data"])  # opening it is no step
    taken = {name: seconds for name, seconds in clock.seconds.items() if name not in left}
    history.remember(kept.root, history.key(settings.source), taken)
    return result


class Build:
    """One build while it runs."""

    def __init__(
        self, settings: BuildSettings, folder: BuildFolder, cache: Cache, progress: Progress, journal: Journal
    ) -> None:
        self.settings = settings
        self.folder = folder
        self.cache = cache
        self.progress = progress
        self.journal = journal
        self.transformed: dict[str, bool] = {}  # step → whether it came from the cache
        self.source = Source(settings.source, settings.weights)
        self.variants: list[tuple[Variant, Loadable]] = []
        self.notes: list[str] = []

    def run(self) -> BuildResult:
        """Run the stages in order."""
        dataset = self._open_data()
        exported, data = self._export(dataset)
        data = self._meet_statistics(exported, self._try(exported, data))
        slim = self._optimize(exported)
        self._quantize(slim, data)
        runnables = place(self.variants, self.settings.backends, self.settings.bench)
        self._known_baseline(runnables)
        self.journal.step("place", [r.deployment for r in runnables], lambda append: _each(append, runnables))
        gold = self._golden(exported, data)
        passed = self._verify(runnables, gold)
        self._bench(self._evaluate(passed, data), data)
        chosen = self._select()
        self.journal.close()
        self.write_lock(exported)
        return self._result(chosen, exported)

    def _open_data(self) -> Dataset | None:
        spec = self.settings.data.data or preflight.default_data(self.settings.source)
        if not spec:
            return None
        self.progress.begin("data", spec)
        dataset = datasets.find(spec, self.settings.data, self.progress)
        samples = len(dataset.train) + (len(dataset.evaluate) if dataset.evaluate else 0)
        self.progress.end(f"{dataset.name}: {samples:,} samples, {len(dataset.classes) or 'no'} classes")
        return dataset

    def _export(self, dataset: Dataset | None) -> tuple[Transformed, RoleFeeds]:
        self.progress.begin("export", transforms.source_name(self.source))

        def example() -> Mapping[str, np.ndarray] | None:
            return None if dataset is None or dataset.train is None else dataset.example()

        settings = self.settings.export
        custom_domains.allowed()  # before anything is written: a library may not be there
        drawn = store.digest_of([dataset.digest, dataset.preprocessing]) if dataset else ""
        done = transforms.export_source(self.source, settings, example, drawn, self.cache)
        custom_domains.need_library(custom_domains.used(graph.load(done.path)), self.settings.source)
        self._known_logits(done)
        data, note = for_build(dataset, done.path, self.settings)  # before anything is written: the data may not fit
        self.notes += [note] if note else []
        variant = self._adopt(done, "export")
        self.notes += [f"export: {note}" for note in cast("list[str]", done.facts.get("notes", []))]
        native = transforms.source_variant(done, self.source)
        if native is not None:
            self.journal.step("source", native, lambda append: append(native))
            self.variants.insert(0, (native, Loadable(None, self.source.spec, self.source.weights)))
        opset = graph.load(done.path).opset_imports.get("")
        self.progress.end(f"{variant.name}: opset {opset}, {variant.size_bytes / 1e6:.2f} MB{_cached(done)}")
        return done, data

    def _known_logits(self, exported: Transformed) -> None:
        names = [spec.name for spec in exported.variant.signature.outputs]
        if unknown := sorted(set(self.settings.verify.logits) - set(names)):
            do = f"its outputs are: {', '.join(names)}"
            raise UsageError("unknown-output", f"the model has no output {unknown[0]!r}", where="--logits", do=do)

    def _known_baseline(self, runnables: Sequence[Runnable]) -> None:
        asked, names = self.settings.bench.baseline, [runnable.deployment.name for runnable in runnables]
        if asked and asked not in names:
            do = f"built are: {', '.join(names)}"
            raise UsageError("unknown-baseline", f"{asked!r} is not built", where="[bench] baseline", do=do)

    def _adopt(self, done: Transformed, step: str, stage: str = "") -> Variant:
        """Take a transform's result into the build folder and the ledger, with its inspection."""
        variant = done.variant
        self.transformed[step] = done.cached
        home = self.folder.adopt(variant.name, done.folder, variant.files)

        def run(append: Append) -> None:
            append(variant)
            append(Record(stage or step, variant.name, {}, done.facts, done.measured))
            found = to_json(inspect(home / variant.main))
            append(Record("inspect", variant.name, {}, cast("dict[str, Json]", found)))

        self.journal.step(step, [variant, done.facts], run)
        path = home / variant.main
        self.variants.append((variant, Loadable(path, libraries=custom_domains.libraries(path))))
        return variant

    def _try(self, exported: Transformed, data: RoleFeeds) -> RoleFeeds:
        """Run a model that came as a file on what will be run, in a process that can be killed, before this one does.

        Where the made-up inputs don't suit it, other sizes of the dynamic axes are tried; return the data that does.
        """
        if exported.variant.settings.get("frontend") != "onnx":
            return data
        runs = self._runs(exported, data)
        self.progress.begin("trial", f"{len(runs)} runs in a process of its own")
        key = [exported.variant.digest, dict(data.golden.description), _shapes(runs), *_here()]

        def run(append: Append) -> None:
            sizes: dict[str, int] = {}
            try:
                measured = trial.run(exported.path, runs, self.settings.source)
            except InputError as error:
                made_up = data.preprocessing is None and error.id == "run-failed"
                sizes = trial.find_sizes(exported.path, self.settings.seed) if made_up else {}
                if not sizes:
                    raise self._told(error, data) from error
                other, _ = for_build(None, exported.path, self.settings, sizes)
                try:
                    measured = trial.run(exported.path, self._runs(exported, other), self.settings.source)
                except InputError as still:
                    raise self._told(still, data) from still
            facts: dict[str, Json] = {"sizes": dict(sizes)}
            append(Record("trial", exported.variant.name, data.golden.description, facts, measured))

        entries = self.journal.step("trial", key, run)
        found = next((e.facts.get("sizes") for e in entries if isinstance(e, Record)), None)
        if not found:
            self.progress.end("it loads and runs")
            return data
        sizes = cast("dict[str, int]", found)
        shown = ", ".join(f"{axis} = {size}" for axis, size in sizes.items())
        self.progress.end(f"it runs with {shown}")
        self.notes.append(f"sizes of dynamic axes that the model runs with were found by trial: {shown}")
        return for_build(None, exported.path, self.settings, sizes)[0]

    def _meet_statistics(self, exported: Transformed, data: RoleFeeds) -> RoleFeeds:
        """Bring made-up inputs to the statistics of the export's BatchNormalizations, before anything folds them."""
        settings = self.settings.quantize
        looking = any(quantize_stage.needs_samples(name) for name in (settings.method, *settings.also_methods))
        if not settings.quantize or settings.calibration != "auto" or not looking:
            return data
        path = self._unfolded(exported) if data.calibrate.description.get("kind") == "seeded" else exported.path
        return synthetic_feeds.of_model(path, data, self.settings.data, self.settings.seed, self.cache, self.progress)

    def _unfolded(self, exported: Transformed) -> Path:
        """Return a model with its BatchNormalizations: another export where this one folded them."""
        settings = self.settings.export
        if settings.raw or not exported.facts.get("batch_normalizations"):
            return exported.path
        try:
            raw = transforms.export_source(self.source, replace(settings, raw=True), lambda: None, "", self.cache)
        except PenstockError:  # what folds may be what exports: then there are no statistics
            return exported.path
        return raw.path if raw.variant.signature == exported.variant.signature else exported.path

    def _runs(self, exported: Transformed, data: RoleFeeds) -> list[Mapping[str, np.ndarray]]:
        """Return the golden samples in the golden set's batches, and a batch of each size that other stages use."""
        found: list[Mapping[str, np.ndarray]] = [feeds for _, feeds in golden.runs(data.golden)]
        if data.golden.fixed_batch is not None:
            return found
        found.append(data.golden.first(self.settings.bench.throughput_batch))
        if self.settings.quantize.quantize:
            found.append(data.calibrate.first(self.settings.quantize.calibration_batch))
        scored = data.evaluate or data.select
        return [*found, scored.first(self.settings.evaluate.batch)] if scored is not None else found

    def _told(self, error: InputError, data: RoleFeeds) -> InputError:
        """Name the source; where inputs were made up, a model may want what its signature doesn't say."""
        made_up = data.preprocessing is None and error.id == "run-failed"
        do = "the inputs were made up from the signature; give real ones with --data" if made_up else error.do
        return type(error)(error.id, error.what, where=self.settings.source, do=do)

    def _optimize(self, exported: Transformed) -> Transformed:
        self.progress.begin("optimize")
        try:
            done = transforms.optimize_variant(exported, self.settings.optimize, self.cache)
        except InputError as error:  # it names the store's copy, which says nothing to the user
            raise InputError(error.id, error.what, where=self.settings.source, do=error.do) from error
        steps = (done.folder / optimize.TRACE).read_bytes()
        done = replace(done, facts={**done.facts, "trace_blob": self.folder.blob(steps)})
        reason = str(cast("dict[str, Json]", done.measured["proof"])["reason"])
        self.notes += [f"optimize: {' '.join(told.split())}" for told in optimize.complaints(done.facts, reason)]
        before, after = done.facts["nodes_before"], done.facts["nodes_after"]
        changes = sum(int(record["changes"]) for record in cast("list[dict[str, int]]", done.facts["passes"]))
        if done.variant.digest == exported.variant.digest or not changes:
            self.transformed["optimize"] = done.cached
            run = Record("optimize", "slim", {}, done.facts, done.measured)
            self.journal.step("optimize", done.facts, lambda append: append(run))
            self.progress.end(f"nothing to do: {before} nodes{_cached(done)}")
            return exported
        self._adopt(done, "optimize")
        self.progress.end(f"slim: {before} → {after} nodes{_cached(done)}")
        return done

    def _quantize(self, parent: Transformed, data: RoleFeeds) -> None:
        if not self.settings.quantize.quantize:
            return
        first = self.settings.quantize.method
        self._quantize_by(first, parent, data, "quantize", "")
        for method in dict.fromkeys(self.settings.quantize.also_methods):
            if method != first:
                self._quantize_by(method, parent, data, f"quantize by {method}", method)

    def _quantize_by(self, method: str, parent: Transformed, data: RoleFeeds, step: str, suffix: str) -> None:
        self.progress.begin(step, f"{data.calibrate.count} calibration samples")
        settings = replace(self.settings.quantize, method=method, also_methods=())
        if method != self.settings.quantize.method:  # it is said of the first method alone
            settings = replace(settings, int16_layers=())
        done = transforms.quantize_variant(parent, data.calibrate, settings, self.cache, data.golden, suffix)
        if isinstance(done, InputError):
            reason, name = done.what, suffix or "int8"
            skipped = Record("quantize", name, dict(data.calibrate.description), {"skipped": reason})
            self.journal.step(step, skipped, lambda append: append(skipped))
            self.notes.append(f"no {name} variant: {reason}")
            self.progress.end(f"skipped: {reason}")
            return
        if (done.folder / transforms.HISTOGRAMS).is_file():
            seen = self.folder.blob((done.folder / transforms.HISTOGRAMS).read_bytes())
            done = replace(done, facts={**done.facts, "histograms_blob": seen})
        self.notes += [f"{step}: {note}" for note in cast("list[str]", done.facts.get("notes", []))]
        variant = self._adopt(done, step, "quantize")
        self.progress.end(f"{variant.name}: {variant.size_bytes / 1e6:.2f} MB{_cached(done)}")

    def _golden(self, exported: Transformed, data: RoleFeeds) -> golden.Golden:
        """Run the source itself over the golden inputs: its own framework, or the runtime with all rewrites off."""
        home = self.folder.root / "golden"
        source, who = reference(self.variants)
        key = [source.deployment.digest, who, dict(data.golden.description), self.settings.verify.logits, *_here()]
        self.progress.begin("golden", f"{data.golden.count} samples")

        names = [spec.name for spec in exported.variant.signature.outputs]
        logits = self.settings.verify.logits or (tuple(names[:1]) if data.evaluate is not None and data.classes else ())

        def run(append: Append) -> None:
            session = source.open()
            try:
                made = golden.make(data.golden, session, who, names, logits)
            except InputError as error:
                raise self._told(error, data) from error
            finally:
                session.close()
            facts = golden.write(made, home)
            measured = {key: facts.pop(key) for key in ("outputs_sha256", "noise")}
            if data.preprocessing is not None:
                store.write_json(home / "preprocessing.json", data.preprocessing)
                facts["preprocessing"] = to_json(data.preprocessing)
            append(Record("golden", source.deployment.name, data.golden.description, facts, measured))

        def whole(entries: list[Entry]) -> bool:
            found = next((entry for entry in entries if isinstance(entry, Record)), None)
            return found is not None and golden.is_whole(home, {**found.facts, **found.measured})

        self.journal.step("golden", key, run, whole)
        made = golden.read(home)
        self.progress.end(f"{made.samples} samples, outputs by {who}")
        return made

    def _verify(self, runnables: list[Runnable], gold: golden.Golden) -> list[Runnable]:
        settings = self.settings.verify
        self.progress.begin("verify", f"{len(runnables)} deployments")
        entries = self._measure(
            "verify",
            [settings, gold.description, self._digests(runnables), gold.computed_by],
            lambda append: measures.verify_all(
                runnables, gold, settings, append, self.progress, named=bool(self.settings.backends)
            ),
        )
        refused = {e.deployment for e in entries if isinstance(e, Verdict) and not e.passed}
        if fell := [e for e in entries if isinstance(e, Verdict) and e.gate == "fallback"]:
            told = "; ".join(f"{one.deployment}: {one.measured.reason}" for one in fell)
            raise GateError("fell-back", f"what ran isn't what was asked for: {told}",
                            do="leave the backend out, or let it pass with --allow-fallback")  # fmt: skip
        self.progress.end(f"{len(runnables) - len(refused)} passed, {len(refused)} refused")
        return [r for r in runnables if r.deployment.name not in refused]

    def _measure(self, name: str, key: Sequence[object], run: object) -> list[Entry]:
        """Run a measure as a step; what it returns is not needed, its entries are."""
        # a measurement holds for this machine and these runtimes
        return self.journal.step(name, [*key, *_here()], lambda append: run(append) and None)  # type: ignore[operator]  # callable

    def _digests(self, runnables: list[Runnable]) -> list[str]:
        return [runnable.deployment.id for runnable in runnables]

    def _evaluate(self, runnables: list[Runnable], data: RoleFeeds) -> list[Runnable]:
        """Score them; return those that could be."""
        able = [r for r in runnables if r.deployment.role != "oracle"]
        roles = [role for role in (data.select, data.evaluate) if role is not None]
        if not roles or not able:
            return runnables
        baseline = next((r.deployment.name for r in able if r.deployment.precision == "fp32"), "")
        self.progress.begin("evaluate", ", ".join(f"{r.description['role']} {r.count:,}" for r in roles))
        settings = self.settings.evaluate
        entries = self._measure(
            "evaluate",
            [settings, metric_digest(settings.metric), self._digests(able), [dict(role.description) for role in roles]],
            lambda append: measures.evaluate_all(
                able, data, baseline, settings, append, self.folder.blob, self.progress
            ),
        )
        refused = {e.deployment for e in entries if isinstance(e, Verdict) and not e.passed}
        self.progress.end(f"{len(able) - len(refused)} deployments, {settings.metric or 'top-1'}")
        return [r for r in runnables if r.deployment.name not in refused]

    def _bench(self, runnables: list[Runnable], data: RoleFeeds) -> None:
        able = [r for r in runnables if r.deployment.role != "oracle"]
        if not able:
            return
        settings, feed = self.settings.bench, data.golden
        self._measure(
            "bench",
            [settings, self._digests(able), dict(feed.description)],
            lambda append: measures.bench_all(able, feed, settings, append, self.folder.blob, self.progress),
        )

    def _select(self) -> Selection:
        self.progress.begin("select", self.settings.select.objective)
        found = select(rows(self.journal.entries), self.settings.select, self.settings.seed)

        def run(append: Append) -> None:
            for verdict in found.verdicts:
                append(verdict)
            measured: dict[str, Json] = {"chosen": found.chosen, "nearest_miss": found.nearest_miss}
            append(Record("select", "build", {}, cast("dict[str, Json]", to_json(self.settings.select)), measured))

        self.journal.step("select", [self.settings.select, self.settings.seed], run)
        self.progress.end(found.chosen or "none fits")
        return found

    def write_lock(self, exported: Transformed) -> None:
        """Leave the settings as resolved, with the inputs and the versions of the tools."""
        names = ("penstock", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "openvino", "torch", "numpy")
        base = reproduction.base_of(self.folder.root)
        read = reproduction.names_of(exported.reads)
        tools, libraries = transforms.versions(*names), custom_domains.key()
        text = lock_text(self.settings, exported.facts, tools, base, read, libraries)
        store.write_bytes(self.folder.root / "penstock.lock.toml", text.encode())

    def _result(self, chosen: Selection, exported: Transformed) -> BuildResult:
        from penstock.ladder import of_build

        entries = self.journal.entries
        table = rows(entries)
        run = next((e for e in entries if isinstance(e, Record) and e.stage == "bench" and e.subject == "run"), None)
        notes = [*self.notes]
        if run is not None:
            noise = cast("list[str]", run.measured.get("noise", []))
            notes += [f"noisy machine: {reason}" for reason in noise]
            notes += cast("list[str]", run.measured.get("cautions", []))
        return BuildResult(
            self.folder.root,
            tuple(variant for variant, _ in self.variants),
            tuple(table),
            chosen.chosen,
            chosen.nearest_miss,
            of_build(table, chosen.chosen, self.settings.seed),
            tuple(notes),
            tuple(self.journal.resumed),
            dict(exported.reads),
        )


def _each(append: Append, runnables: list[Runnable]) -> None:
    for runnable in runnables:
        append(runnable.deployment)


def _shapes(runs: Sequence[Mapping[str, np.ndarray]]) -> list[Json]:
    return [{name: list(array.shape) for name, array in feeds.items()} for feeds in runs]


def _here() -> list[object]:
    """Return what a measurement holds for: this kind of CPU, these runtimes, this version."""
    return [machine.instruction_set(), transforms.versions("penstock", "onnxruntime", "openvino", "torch", "onnx")]


def _cached(done: Transformed) -> str:
    return " (cached)" if done.cached else ""
