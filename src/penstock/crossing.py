"""Crossing: models, or all that a build made, times backends against one golden set; and an earlier one beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from penstock import aside, backend_options, golden, graph, registry, reproduction, running, store, trial, worker
from penstock.backends import Backend, Loadable, device_of, runs
from penstock.data import DataSettings
from penstock.deployment import Deployment, named
from penstock.errors import InputError, MissingError, PenstockError, UsageError
from penstock.frontends import Source
from penstock.jsonable import Json, from_json
from penstock.measures import Runnable
from penstock.progress import SILENT, Progress
from penstock.record import Record
from penstock.stages import consistency, export
from penstock.stages.consistency import SOURCE, Cell, Matrix
from penstock.stages.verify import VerifySettings
from penstock.variant import Variant
from penstock.verdict import Verdict

if TYPE_CHECKING:
    from penstock.golden import Golden

ALL = "all"


def crossed(
    models: Sequence[str | Path], against: str = "", settings: VerifySettings | None = None, *,
    backends: Sequence[str] = (ALL,), data: DataSettings | None = None, weights: str = "", seed: int = 0,
    threads: int = 1, baseline: str | Path | None = None, progress: Progress = SILENT,
) -> Matrix:  # fmt: skip
    """Hold models, or all that a build made, against one golden set on several backends.

    ``models`` is one build folder, whose golden set is taken, or model files with ``against`` (as in
    :func:`penstock.api.verify`). ``backends``: names, or "all": those that can run here, and why the others can't.
    Where the source is a PyTorch module, the backends that run modules are among them, for it.
    ``baseline`` is an earlier build's folder, or a file that an earlier ``penstock verify --json`` wrote.

    Raises ``InputError``, ``UsageError``, or ``MissingError`` where a backend that was named can't run here.
    """
    with aside.one_process():
        return _crossed(models, against, settings, backends, data, weights, seed, threads, baseline, progress)


def _crossed(
    models: Sequence[str | Path], against: str, settings: VerifySettings | None, backends: Sequence[str],
    data: DataSettings | None, weights: str, seed: int, threads: int, baseline: str | Path | None, progress: Progress,
) -> Matrix:  # fmt: skip
    held = None if baseline is None else earlier(Path(baseline))
    paths = _models(models)
    source = _torch_source(models, against, weights, backends)
    if source is not None and "source" in paths:
        do = "give the file another name"
        raise UsageError("double-model", "a model is called as the module that it is held against: source", do=do)
    chosen, missing, modules = _backends(backends, modules=source is not None)
    gold = _golden(models, against, paths, data, weights, seed)
    cells: list[Cell] = []
    made: list[Runnable] = []
    for name, path in paths.items():
        precision = graph.precision(graph.load(path, weights=False))
        gone = [one for one in missing if one not in modules]
        absent = [Deployment(named(name, one), name, "", precision, one, device=_device(one)) for one in gone]
        cells += [consistency.absent(one, missing[one.backend]) for one in absent]
        runnables = [
            replace(found, deployment=replace(found.deployment, threads=threads))
            for one in chosen
            if runs(running.of_name(one), precision)
            for found in running.runnables_of(path, one, threads, name)
        ]
        running.need_fit(path, gold, against or str(models[0]))
        try:
            trial.survive(path, gold.feeds, str(path))
        except worker.WorkerCrash:  # of the trial's runtime: the others are opened aside
            made += runnables
        except (worker.WorkerTimeout, worker.WorkerMemory) as error:  # more than a model may take, wherever it runs
            cells += [consistency.refused(one.deployment, error.what) for one in runnables]
        else:
            made += runnables
    if source is not None:
        made = [Runnable(_of_source(one, threads), source, True) for one in modules if one not in missing] + made
        cells += [
            consistency.absent(_of_source(one, threads), missing[one], of_module=True)
            for one in modules if one in missing
        ]  # fmt: skip
    cells += consistency.cross(made, gold, settings or VerifySettings(), progress, named=ALL not in backends)
    order = {one: place for place, one in enumerate(dict.fromkeys(registry.names("backends")))}
    rank = {name: place for place, name in enumerate(dict.fromkeys([SOURCE, *paths]))}
    last = len(order)  # of a backend that isn't installed any more
    cells.sort(key=lambda cell: (rank[cell.variant], order.get(cell.backend.partition("+")[0], last), cell.backend))
    found = Matrix(gold.computed_by, gold.samples, tuple(cells))
    return found if held is None else replace(found, regressions=consistency.regressions(cells, held))


def _device(backend: str) -> str:
    try:
        return device_of(running.of_name(backend))
    except MissingError:  # a plug-in that doesn't load: nobody knows
        return "cpu"


def _models(given: Sequence[str | Path]) -> dict[str, Path]:
    """Name the models: a build's variants, or files."""
    folder = Path(given[0])
    if len(given) == 1 and folder.is_dir() and (folder / "ledger.jsonl").is_file():
        variants = [e for e in store.BuildFolder(folder).read_ledger() if isinstance(e, Variant) and e.format == "onnx"]
        paths = {one.name: folder / "models" / one.name / one.main for one in variants}
        if not paths:
            raise InputError("no-build", "here is no build that made a model", where=str(folder),
                             do="give the output folder of penstock build")  # fmt: skip
        for one in variants:  # what the build recorded is what is run
            for file in one.files:
                path = folder / "models" / one.name / file.path
                if not path.is_file() or store.file_digest(path) != file.sha256:
                    what = f"the model {one.name!r} isn't what the build made"
                    do = "run the build again: it goes on where something is missing"
                    raise InputError("model-changed", what, where=str(path), do=do)
        return paths
    found = dict(running.named_models(given))
    if len(found) < len(given):
        raise UsageError("double-model", "two models would have one name", do="give them files of other names")
    return found


def _golden(
    given: Sequence[str | Path], against: str, paths: Mapping[str, Path], data: DataSettings | None, weights: str,
    seed: int,
) -> Golden:  # fmt: skip
    folder = Path(given[0])
    if not against and len(given) == 1 and (folder / "golden" / "golden.json").is_file():
        return golden.read(folder / "golden")
    if not against:
        raise UsageError("no-reference", "there is nothing to hold the models against",
                         do="name the source with --against, or give a build's folder")  # fmt: skip
    return running.golden_for(next(iter(paths.values())), against, data or DataSettings(), weights, seed)


def _torch_source(given: Sequence[str | Path], against: str, weights: str, backends: Sequence[str]) -> Loadable | None:
    """Return the module that the models are held against, of a build the one that it was made from, if it is one.

    A build's folder may be somebody else's, and its lock file names code: that is run where a backend for modules is
    named alone. One that has changed since gives other numbers than the golden set has, and its cell says so.
    """
    folder = Path(given[0])
    base = Path()
    of_modules = [name for name in ("torch", "torch-compile") if name in registry.names("backends")]
    named = any(backend_options.split(name)[0] in of_modules for name in backends)
    if not against and named and (lock := folder / "penstock.lock.toml").is_file():
        told, base = reproduction.settings_of(lock), reproduction.read_lock(lock).base
        against, weights = str(told.get("source", "")), weights or str(told.get("weights", ""))
    if not against or (Path(against) / "golden.json").is_file():
        return None
    head, _, name = against.rpartition(":")
    if head.endswith(".py"):
        against = f"{base / head}:{name}"
    weights = str(base / weights) if weights else ""
    try:
        is_module = export.frontend(Source(against, weights))[0] == "torch"
    except PenstockError:  # it isn't there any more; the golden set is
        return None
    return Loadable(None, against, weights) if is_module else None


def _of_source(backend: str, threads: int) -> Deployment:
    plain, given = backend_options.asked(backend)
    role = cast(Backend, running.of_name(backend)).ROLE
    name = named("source", backend)
    return Deployment(name, SOURCE, "", "fp32", plain, threads=threads, role=role, options=given)


def _backends(asked: Sequence[str], *, modules: bool) -> tuple[list[str], dict[str, str], list[str]]:
    """Return the backends that can run model files here, of "all" why others can't, and those that run ``modules``."""
    names = list(dict.fromkeys(asked))
    if ALL in names:  # those that were named with options stand beside the plain ones
        names = list(dict.fromkeys([*registry.names("backends"), *(name for name in names if name != ALL)]))
    chosen, missing, of_modules = [], {}, []
    for name in names:
        try:
            backend = cast(Backend, running.of_name(name))
            problem = backend.available()
        except MissingError as error:
            if ALL not in asked:
                raise
            missing[name] = error.what
            continue
        if "onnx" not in backend.FORMATS:
            if modules and "torch" in backend.FORMATS:
                of_modules.append(name)
            elif ALL in asked:
                continue
            else:
                do = "name onnxruntime, openvino or reference, or a module as the source: --against file.py:Class"
                raise UsageError("wrong-backend", f"the backend {name!r} runs no .onnx files", do=do)
        if problem and ALL not in asked:
            raise MissingError("backend-missing", f"the backend {name!r} can't run here", do=problem)
        if problem:
            missing[name] = problem
        elif name not in of_modules:
            chosen.append(name)
    return chosen, missing, of_modules


def earlier(path: Path) -> dict[str, Cell]:
    """Read what an earlier build, or an earlier matrix, had. Raises ``InputError``."""
    if path.is_dir():
        return _of_build(path)
    do = "give the folder of a build, or what `penstock verify --backends … --json` printed"
    try:
        told = cast("dict[str, Json]", json.loads(path.read_bytes()))
        cells = cast("dict[str, Json]", told["result"])["cells"]
        found = [from_json(Cell, one) for one in cast("list[Json]", cells)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError("bad-baseline", f"this is no earlier result: {error}", where=str(path), do=do) from error
    return {one.name: one for one in found}


def _of_build(folder: Path) -> dict[str, Cell]:
    from penstock.metrics import Difference

    entries = store.BuildFolder(folder).read_ledger()
    deployments = {one.name: one for one in entries if isinstance(one, Deployment)}
    passed = {one.deployment: one.passed for one in entries if isinstance(one, Verdict) and one.gate == "verify"}
    found = {}
    for one in entries:
        if not isinstance(one, Record) or one.stage != "verify" or one.subject not in deployments:
            continue
        outputs = {
            name: from_json(Difference, told) for name, told in cast("dict[str, Json]", one.measured["outputs"]).items()
        }
        if outputs:
            found[one.subject] = consistency.of_outputs(
                deployments[one.subject], outputs, "agrees" if passed.get(one.subject) else "differs"
            )
    if not found:
        raise InputError("no-build", "here is no build that verified anything", where=str(folder),
                         do="give the output folder of penstock build")  # fmt: skip
    return found


def markdown(matrix: Matrix) -> str:
    """Return the matrix as Markdown, for a comment of a CI job."""
    backends = list(dict.fromkeys(cell.backend for cell in matrix.cells))
    variants = list(dict.fromkeys(cell.variant for cell in matrix.cells))
    lines = [f"**{'Consistent' if matrix.holds else 'Not consistent'}**: {matrix.samples} samples, held against "
             f"{matrix.computed_by}.", "", "| backend | " + " | ".join(variants) + " |",
             "|---|" + "---|" * len(variants)]  # fmt: skip
    for backend in backends:
        row = [shown(matrix.cell(variant, backend)) for variant in variants]
        lines.append(f"| {backend} | " + " | ".join(row) + " |")
    told = [f"- {cell.name}: {cell.state}: {cell.reason}" for cell in matrix.cells if cell.reason]
    told += [f"- {cell.name}: {cell.note}" for cell in matrix.cells if cell.note]
    told += [f"- {name}: ran {how_many}" for name, how_many in matrix.shortened.items()]
    told += [f"- {name}: no backend could run it" for name in matrix.unrun]
    told += [f"- {name}: worse than before: {why}" for name, why in matrix.regressions.items()]
    note = "Largest difference of a value, to the largest value."
    return "\n".join([*lines, "", note, *([""] if told else []), *told, ""])


def shown(cell: Cell | None) -> str:
    """Show a cell in few letters: its largest relative difference, the share of flipped answers, or its state."""
    if cell is None:
        return "–"
    if cell.state in ("can't run", "not here"):
        return cell.state
    level = f"{cell.relative:.1e}" if cell.relative is not None else f"{cell.mismatches or 0.0:.1%} unequal"
    flips = f", {cell.flips:.1%} flipped" if cell.flips else ""
    return f"{level}{flips}{f' {cell.state.upper()}' if cell.state in consistency.BREACHES else ''}"
