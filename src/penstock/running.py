"""Models and data made ready to run: roles of data, golden sets, and models on backends with a name each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

from penstock import (
    aside,
    backend_options,
    custom_domains,
    datasets,
    feeds,
    golden,
    graph,
    inputs,
    registry,
    store,
    trial,
)
from penstock.backends import Backend, Loadable, Session, device_of, runs, ways
from penstock.data import DataSettings
from penstock.deployment import Deployment, named
from penstock.errors import InputError, MissingError, UsageError
from penstock.feeds import RoleFeeds
from penstock.frontends import Source
from penstock.measures import Runnable
from penstock.signature import Signature
from penstock.stages import export as export_stage
from penstock.stages.bench import BenchSettings

if TYPE_CHECKING:
    from penstock.data import Dataset


A_DAY = 86_400.0  # seconds: a source takes what it takes


def role_feeds(model: Path, settings: DataSettings, seed: int, *, classes: bool = True) -> RoleFeeds:
    """Deal the data of ``settings`` for a model, or make inputs from its signature where there is none."""
    loaded = graph.load(model)
    signature = graph.signature(loaded)
    if not settings.data:
        return feeds.from_seed(signature, inputs.integer_bounds(loaded), settings, seed)
    dataset = _find(settings)
    roles = feeds.from_data(dataset, signature, settings, seed)
    if classes:
        feeds.check_classes(roles, signature, dataset.name)
    return roles


def _find(settings: DataSettings) -> Dataset:
    return datasets.find(settings.data, settings)


def golden_for(path: Path, against: str, data: DataSettings, weights: str, seed: int) -> golden.Golden:
    """Return what a model is held against: a build's golden folder, or what a source gives on the golden inputs."""
    if (Path(against) / "golden.json").is_file():
        return golden.read(Path(against))
    return golden_set(against, weights, role_feeds(path, data, seed), graph.signature(graph.load(path)))


def need_fit(path: Path, gold: golden.Golden, against: str) -> None:
    """Raise ``InputError`` where a model has inputs that a golden set hasn't, or another number of outputs."""
    signature = graph.signature(graph.load(path, weights=False))
    do = f"compare models of one source ({against})"
    if missing := [spec.name for spec in signature.inputs if spec.name not in gold.feeds[0]]:
        what = f"the model's input {missing[0]!r} is not among the golden inputs"
        raise InputError("signatures-differ", what, where=str(path), do=do)
    if len(signature.outputs) != len(gold.output_names):
        what = f"the model has {len(signature.outputs)} outputs, the source {len(gold.output_names)}"
        raise InputError("signatures-differ", what, where=str(path), do=do)


def golden_set(against: str, weights: str, roles: RoleFeeds, signature: Signature) -> golden.Golden:
    """Run a source, a model or a module, over the golden inputs. Raises ``InputError`` where it has other inputs."""
    name, _ = export_stage.frontend(Source(against, weights))
    names = [spec.name for spec in signature.outputs]
    if name == "onnx":
        trial.survive(Path(against), [batch for _, batch in golden.runs(roles.golden)], against)
        other = graph.signature(graph.load(Path(against)))
        if [spec.name for spec in other.inputs] != [spec.name for spec in signature.inputs]:
            what = "the two models have other inputs"
            raise InputError("signatures-differ", what, where=against, do="compare models of one source")
        names = [spec.name for spec in other.outputs]
        plain = Deployment("source", "source", "", "fp32", "onnxruntime", options={"optimization": "disabled"})
        session = Runnable(plain, loadable(Path(against)), True).open()
        who = "ONNX Runtime with its optimizations off"
    else:
        eager = Deployment("source", "source", "", "fp32", name)
        module = Runnable(eager, Loadable(None, against, weights), True)
        session, who = aside.opened(module, run_seconds=A_DAY), "PyTorch"
    try:
        scored = roles.evaluate is not None and bool(roles.classes)
        return golden.make(roles.golden, session, who, names, tuple(names[:1]) if scored else ())
    finally:
        session.close()


def runnables_of(
    path: Path, backend: str, threads: int, name: str, *, io_binding: bool = False,
    options: Mapping[str, str] | None = None,
) -> list[Runnable]:  # fmt: skip
    """Return a model on a backend, the plain way first; with ``options`` there is that way alone.

    ``backend`` may have options behind its name (:mod:`penstock.backend_options`).
    """
    backend, given = backend_options.asked(backend)
    chosen = cast(Backend, registry.load("backends", backend))
    if problem := chosen.available():
        raise MissingError("backend-missing", f"the backend {backend!r} can't run here", do=problem)
    if "onnx" not in chosen.FORMATS:
        do = "name onnxruntime, openvino or reference"
        raise UsageError("wrong-backend", f"the backend {backend!r} runs no .onnx files", do=do)
    loaded = graph.load(path)
    with registry.blamed("backends", backend):
        found = ways(chosen, loaded)
    digest, precision, model = store.file_digest(path), graph.precision(loaded), loadable(path)
    if not runs(chosen, precision):
        what = f"the backend {backend!r} isn't for {precision} models"
        raise UsageError("wrong-backend", what, where=str(path), do="run it on another backend")
    return [
        Runnable(
            Deployment(
                named(name, backend, way), name, digest, precision, backend,
                threads=threads, io_binding=io_binding,
                role=chosen.ROLE, options=plain, precision_hint=getattr(chosen, "HINT", ""),
                device=device_of(chosen),
            ),
            model, graph.signature(loaded).fixed_batch is None,
        )
        for way, plain in backend_options.ways(
            {"": {**found.get("", {}), **options}} if options else found, given
        ).items()
    ]  # fmt: skip


def of_name(backend: str) -> object:
    """Return a backend by its name, which may have options behind it. Raises what loading it raises."""
    return registry.load("backends", backend_options.split(backend)[0])


def named_models(models: Sequence[str | Path]) -> Iterator[tuple[str, Path]]:
    """Name models after their files; several ``model.onnx`` after their folders."""
    paths = [Path(model) for model in models]
    stems = [path.stem for path in paths]
    for path in paths:
        name = path.stem
        if name == "model" or stems.count(name) > 1:
            name = path.resolve().parent.name
        yield name, path


def runnables(models: Sequence[str | Path], backends: Sequence[str], settings: BenchSettings) -> list[Runnable]:
    """Cross models with backends; one that is for some precisions gets those models, if there are any.

    Raises ``InputError``, ``MissingError`` or ``UsageError``.
    """
    named = list(named_models(models))
    kinds = {path: graph.precision(graph.load(path, weights=False)) for _, path in named}
    fit = {backend: {path for path, kind in kinds.items() if runs(of_name(backend), kind)} for backend in backends}
    return [
        runnable
        for name, path in named
        for backend in backends
        if path in fit[backend] or not fit[backend]
        for runnable in runnables_of(path, backend, settings.threads, name, io_binding=settings.io_binding)
    ]


def loadable(path: Path) -> Loadable:
    """Return a model file as a backend takes it, with the libraries of its custom operators."""
    return Loadable(path, libraries=custom_domains.libraries(path))


@contextmanager
def opened(runnable: Runnable) -> Iterator[Session]:
    """Open a session for as long as the block lasts."""
    session = runnable.open()
    try:
        yield session
    finally:
        session.close()
