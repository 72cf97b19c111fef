"""The verbs as functions on files: what the commands call, and what a program imports from ``penstock``.

Each takes and returns dataclasses; each writes its output whole or not at all.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from penstock import (
    calibration,
    datasets,
    feeds,
    graph,
    outputs,
    pipeline,
    precheck,
    store,
    synthetic_feeds,
    trial,
)
from penstock.asked import asked_of, fallback
from penstock.build_settings import BuildSettings
from penstock.data import DataSettings
from penstock.errors import InputError, UsageError
from penstock.feeds import check_fit
from penstock.frontends import Exported, Source
from penstock.golden import read as read_golden
from penstock.ledger import finished
from penstock.progress import SILENT, Progress
from penstock.record import Record
from penstock.running import golden_for, need_fit, opened, role_feeds, runnables, runnables_of
from penstock.stages import bench as bench_stage
from penstock.stages import convert as convert_stage
from penstock.stages import evaluate as evaluate_stage
from penstock.stages import export as export_stage
from penstock.stages import inspect as inspect_stage
from penstock.stages import optimize as optimize_stage
from penstock.stages import quantize as quantize_stage
from penstock.stages import select as select_stage
from penstock.stages.bench import BenchResult, BenchSettings, Subject
from penstock.stages.convert import Conversion, ConvertSettings
from penstock.stages.evaluate import EvaluateSettings, Evaluation, PairedDifference
from penstock.stages.export import ExportSettings
from penstock.stages.inspect import Inspection
from penstock.stages.optimize import Optimized, OptimizeSettings
from penstock.stages.quantize import QuantizeSettings
from penstock.stages.select import Selection, SelectSettings
from penstock.stages.verify import Verification, VerifySettings
from penstock.store import BuildFolder, Cache
from penstock.summary import Row, rows
from penstock.targets import tflite
from penstock.targets.tflite import TfliteSettings
from penstock.verdict import Outcome
from penstock.verifying import verified

if TYPE_CHECKING:
    from penstock.jsonable import Json


@dataclass(frozen=True, slots=True)
class Quantized:
    """An int8 model: where it lies, its size, what it was calibrated on, and what the quantizer says of it."""

    output: str
    size_bytes: int
    calibrated_on: Mapping[str, Json]
    facts: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class Scored:
    """A deployment's score, and its difference to the first one's on the same samples (``None`` for the first)."""

    deployment: str
    evaluation: Evaluation
    difference: PairedDifference | None
    asked: Mapping[str, Json] = field(default_factory=dict)  # of the deployment
    actual: Mapping[str, Json] = field(default_factory=dict)  # what its runtime says that it ran
    caution: str = ""  # where the two differ


def build(
    settings: BuildSettings, output: str | Path, *, cache: str | Path | None = None, progress: Progress = SILENT
) -> pipeline.BuildResult:
    """Run the whole pipeline into the folder ``output``; see :func:`penstock.pipeline.build`."""
    return pipeline.build(settings, Path(output), cache=Path(cache) if cache else None, progress=progress)


def export(
    source: str,
    output: str | Path,
    settings: ExportSettings | None = None,
    *,
    weights: str = "",
    data: DataSettings | None = None,
) -> Exported:
    """Write the ONNX model of ``source`` to the file ``output``, proved against the source.

    Raises ``InputError`` or ``MissingError``, and ``GateError`` when the export computes something else.
    """
    example = datasets.find(data.data, data).example() if data and data.data else None
    with store.scratch() as work:
        made = work / "out" / Path(output).name
        made.parent.mkdir()
        done = export_stage.export(Source(source, weights), settings or ExportSettings(), made, example)
        _adopt(made.parent, Path(output).parent)
    return done


def _adopt(made: Path, target: Path) -> None:
    """Copy the files of a scratch folder to where the user wants them, the external data first."""
    for file in sorted(made.rglob("*"), key=lambda path: path.suffix == ".onnx"):
        if file.is_file():
            store.copy_file(file, target / file.relative_to(made))


def inspect(model: str | Path) -> Inspection:
    """Tell what a model is made of and what it costs. Raises ``InputError`` for what is no sound model."""
    return inspect_stage.inspect(Path(model))


def optimize(
    model: str | Path, output: str | Path, settings: OptimizeSettings | None = None, *, trace: str | Path | None = None
) -> Optimized:
    """Rewrite a model's graph to a fixpoint, prove it, and write it to the file ``output``; the log to ``trace``.

    In the model's own folder the result shares with it the weights in files beside them that weren't changed.
    Raises ``InputError`` for a model that can't be read, ``GateError`` with ``strict`` where a pass fails.
    """
    settings, source, target = settings or OptimizeSettings(), Path(model), Path(output)
    outputs.keep_apart({"-o": output, "--trace": trace}, {})  # the model may be replaced by what is proved to be it
    outputs.keep_apart({"--trace": trace}, {"the model that is read": model})
    beside = target.parent.resolve() == source.parent.resolve() and not settings.runtime
    shared = precheck.files_beside(source)
    if beside and shared:
        with store.replacing(target) as part:
            data = _free_name(target, {file.name for file in shared})
            done = optimize_stage.optimize(source, settings, part.parent, name=part.name, data=data, beside=True)
    else:
        # what may be large is written where it will lie, and not copied once more
        with store.scratch(target.parent if shared else None) as work:
            done = optimize_stage.optimize(source, settings, work, name=target.name)
            for file in sorted(work.iterdir(), key=lambda path: path.name == target.name):
                (store.move_file if shared else store.copy_file)(file, target.parent / file.name)
    if trace is not None:
        store.write_bytes(Path(trace), done.trace_json().encode())
    return done


def _free_name(target: Path, taken: set[str]) -> str:
    """Return a name for the weights beside a file that isn't one of those ``taken``."""
    names = (f"{target.name}{f'-{number}' if number else ''}.data" for number in range(len(taken) + 1))
    return next(name for name in names if name not in taken)


def convert(
    model: str | Path, output: str | Path, opset: int | Literal["lowest"], settings: ConvertSettings | None = None
) -> Conversion:
    """Say a model in another opset, prove it, and write it to the file ``output``; ``"lowest"`` finds the lowest.

    Raises ``GateError``, with nothing written, where a node would lose its meaning (its ``nodes`` tells which and why)
    or the proof finds a difference; ``UsageError`` for an opset that there isn't, ``InputError`` for a broken model.
    """
    with store.scratch() as work:
        done = convert_stage.convert(Path(model), opset, settings or ConvertSettings(), work)
        target = Path(output)
        for file in sorted(work.iterdir(), key=lambda path: path.suffix == ".onnx"):
            store.copy_file(file, target if file.name == optimize_stage.MAIN else target.parent / file.name)
    return done


def write(model: str | Path, output: str | Path, settings: TfliteSettings | None = None) -> Mapping[str, Json]:
    """Write a model, float or quantized, as a TensorFlow Lite file; return what became of it.

    Raises ``InputError``, with nothing written, for a model that can't be said in TFLite's operators, with the nodes.
    """
    outputs.keep_apart({"-o": output}, {"the model that is read": model})
    return tflite.write(Path(model), settings or TfliteSettings(), Path(output))


def quantize(
    model: str | Path,
    output: str | Path,
    settings: QuantizeSettings | None = None,
    *,
    data: DataSettings | None = None,
    seed: int = 0,
    asked: Collection[str] | None = None,
    golden: str | Path | None = None,
) -> Quantized:
    """Write an int8 model to the file ``output``; return what was done. Raises ``InputError``.

    Without data it calibrates on inputs that meet the model's BatchNorm statistics, or on random ones where it has
    none, and the result says so. Raises ``UsageError`` where ``output`` is the model or the data itself, and for a
    setting that the method doesn't read or that others leave without effect. ``asked`` names those that were asked for
    (default: all that differ from their defaults). ``golden`` is the golden set of an earlier build, real data that the
    calibration samples are held against instead of those that are dealt from the same data.
    """
    settings, data = settings or QuantizeSettings(), data or DataSettings()
    held = {} if golden is None else {
        f"the golden set's {name}": Path(golden) / name for name in ("golden.json", "inputs.npz", "outputs.npz")
    }  # fmt: skip
    outputs.keep_apart({"-o": output}, {"the model that is read": model, "the data that is read": data.data, **held})
    asked = quantize_stage.changed(settings) if asked is None else asked
    quantize_stage.need_read(asked, [settings.method])
    quantize_stage.need_effect(asked, settings, data=bool(data.data))
    if golden is not None and not (data.data and quantize_stage.needs_samples(settings.method)):
        where = f"with --method {settings.method}, which calibrates nothing" if data.data else "without --data"
        raise UsageError("bad-setting", f"--golden has no effect {where}", where="--golden", do="leave it out")
    roles = role_feeds(Path(model), data, seed)

    kept = Cache(store.default_cache())
    trial.survive(Path(model), calibration.tried(roles.calibrate, settings.calibration_batch), str(model))
    if settings.calibration == "auto" and quantize_stage.needs_samples(settings.method):
        roles = synthetic_feeds.of_model(Path(model), roles, data or DataSettings(), seed, kept)
    batches = calibration.of_feeds(roles.calibrate, settings.calibration_batch, golden=roles.golden, cache=kept)
    batches = replace(batches, golden=_earlier(Path(golden), model)) if golden is not None else batches
    with store.scratch() as work:
        made = work / Path(output).name
        facts = dict(quantize_stage.quantize(Path(model), batches, settings, made))
        _adopt(work, Path(output).parent)
    if facts.get("calibration_samples") != 0:  # a method may have looked at none; batches may overlap
        facts["calibration_samples"] = roles.calibrate.count
    return Quantized(str(output), Path(output).stat().st_size, roles.calibrate.description, facts)


def _earlier(folder: Path, model: str | Path) -> calibration.Batches:
    """Read what the golden set of an earlier build gave to a model of these inputs."""
    from penstock.quantization import notices

    found = read_golden(folder)
    do = "give the golden folder of a build of this model on real data"
    if found.description.get("kind") != "data":
        what = "this golden set was made from the model's signature, which says nothing of the scale of real data"
        raise InputError("bad-golden", what, where=str(folder), do=do)
    signature = graph.signature(graph.load(Path(model)))
    wanted, given = [spec.name for spec in signature.inputs], [*found.feeds[0]] if found.feeds else []
    if sorted(given) != sorted(wanted):
        what = f"this golden set has the inputs {', '.join(given)}, and the model {', '.join(wanted)}"
        raise InputError("bad-golden", what, where=str(folder), do=do)
    held = replace(calibration.of_list(found.feeds), description={"kind": notices.EARLIER})
    try:
        for one in held:
            check_fit(one, signature, "the golden set", whole=bool(found.description.get("whole")))
        calibration.check(held)
    except InputError as error:
        raise InputError("bad-golden", f"of the golden set: {error.what}", where=str(folder), do=do) from error
    return held


def verify(
    model: str | Path,
    against: str,
    settings: VerifySettings | None = None,
    *,
    backend: str = "onnxruntime",
    data: DataSettings | None = None,
    weights: str = "",
    seed: int = 0,
    options: Mapping[str, str] | None = None,
) -> Verification:
    """Hold a model on a backend against its source: another model, a PyTorch source, or a build's ``golden`` folder.

    ``options`` are the backend's own, for the model (``{"optimization": "disabled"}`` for ONNX Runtime as written).
    Raises ``InputError`` when either can't be run at all; a difference is in the result's ``outcome``.
    """
    path, settings = Path(model), settings or VerifySettings()
    runnable = runnables_of(path, backend, 1, "model", options=options)[0]
    gold = golden_for(path, against, data or DataSettings(), weights, seed)
    need_fit(path, gold, against)
    trial.survive(path, gold.feeds, str(path))
    session, asked = runnable.open(), runnable.deployment
    try:
        found = verified(runnable.model, asked, session, gold, settings)
        actual = dict(session.actual()) if found.samples else {}
    finally:
        session.close()
    fell = "" if settings.allow_fallback or not found.outcome.passed else fallback(asked, actual)
    outcome = Outcome(False, f"it fell back: {fell}") if fell else found.outcome
    return replace(found, outcome=outcome, asked=asked_of(asked), actual=actual)


def evaluate(
    models: Sequence[str | Path],
    data: DataSettings,
    settings: EvaluateSettings | None = None,
    *,
    backend: str = "onnxruntime",
    seed: int = 0,
    progress: Progress = SILENT,
) -> list[Scored]:
    """Score models on the evaluate role; each after the first also against the first, on the same samples.

    Raises ``UsageError`` without labelled data.
    """
    settings = settings or EvaluateSettings()
    if not data.data:
        raise UsageError("no-data", "evaluate needs labelled data", do="give it with --data")
    found: list[Scored] = []
    for runnable in runnables(models, [backend], BenchSettings()):
        assert runnable.model.path is not None
        roles = role_feeds(runnable.model.path, data, seed, classes=not settings.metric)
        signature = graph.signature(graph.load(runnable.model.path))
        if not settings.metric and not feeds.has_classes(signature):
            what = f"top-1 means nothing for the output {signature.outputs[0].text()}"
            raise UsageError("no-metric", what, do="name a measure with --metric module:function")
        if roles.evaluate is None:
            raise UsageError("no-labels", f"{data.data} has no labels to evaluate on", do="give labelled data")
        runs = [roles.golden.first(1), roles.evaluate.first(settings.batch)]
        trial.survive(runnable.model.path, runs, str(runnable.model.path))
        progress.begin("evaluate", runnable.deployment.name)
        with opened(runnable) as session:
            score = evaluate_stage.evaluate(session, roles.evaluate, settings, progress, runnable.deployment.name)
            actual = dict(session.actual())
        progress.end(f"{runnable.deployment.name}: {score.score:.4f}")
        gap = evaluate_stage.paired(score, found[0].evaluation) if found else None
        asked = runnable.deployment
        found.append(Scored(asked.name, score, gap, asked_of(asked), actual, fallback(asked, actual)))
    return found


def bench(
    models: Sequence[str | Path],
    settings: BenchSettings | None = None,
    *,
    backends: Sequence[str] = ("onnxruntime",),
    data: DataSettings | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> BenchResult:
    """Time models side by side on the same inputs. All must take the same inputs; see :mod:`penstock.stages.bench`."""
    settings = settings or BenchSettings()
    made = runnables(models, backends, settings)
    signatures = {graph.signature(graph.load(Path(model))).inputs for model in models}
    if len({tuple((spec.name, spec.dtype) for spec in inputs) for inputs in signatures}) > 1:
        what = "the models take different inputs, so they can't be timed on the same ones"
        raise InputError("signatures-differ", what, do="time models of one source together")
    roles = role_feeds(Path(models[0]), data or DataSettings(), seed)
    free = any(runnable.dynamic_batch for runnable in made) and not roles.golden.whole
    batch = roles.golden.first(settings.throughput_batch) if free else None
    for model in models:
        trial.survive(Path(model), [roles.golden.first(1), *([batch] if batch else [])], str(model))
    subjects = [Subject(r.deployment, r.model, r.dynamic_batch and free) for r in made]
    return bench_stage.bench(subjects, roles.golden.first(1), batch, settings, progress, named=True)


def select(folder: str | Path, settings: SelectSettings | None = None) -> tuple[Selection, list[Row]]:
    """Choose again from a finished build, from what it measured; nothing is run and nothing is written.

    Raises ``InputError`` where the folder holds no finished build.
    """
    home = BuildFolder(Path(folder))
    steps = finished(home.read_ledger())
    if not any(done.step == "bench" for done, _ in steps):
        do = "give the output folder of penstock build"
        raise InputError("no-build", "here is no build that got as far as its measurements", where=str(folder), do=do)
    settings = settings or SelectSettings()
    entries = [entry for done, part in steps if done.step != "select" for entry in part]
    table = rows(entries)
    measured = any(isinstance(e, Record) and e.stage == "evaluate" for e in entries)
    if settings.max_drop is not None and not measured:
        do = "build it again with labelled data (--data)"
        raise UsageError("no-metric", "--max-drop needs an accuracy, and this build measured none", do=do)
    selection = select_stage.select(table, settings, _seed(home.root))
    for verdict in selection.verdicts:
        next(row for row in table if row.deployment.name == verdict.deployment).verdicts.append(verdict)
    return selection, table


def _seed(folder: Path) -> int:
    """Return the seed that a build was made with, so that its figures are judged as it judged them."""
    import tomllib

    try:
        return int(tomllib.loads((folder / "penstock.lock.toml").read_text(encoding="utf-8"))["seed"])
    except (OSError, ValueError, KeyError):
        return 0


__all__ = ["bench", "build", "convert", "evaluate", "export", "inspect", "optimize", "quantize", "select", "verify"]
