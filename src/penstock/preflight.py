"""What of a build's settings can't run here: found before anything runs, for the build, its plan and the doctor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

from penstock import backend_options, custom_domains, datasets, graph, precheck, registry, user_code
from penstock.backends import Backend
from penstock.build_settings import BuildSettings
from penstock.errors import InputError, MissingError, PenstockError, UsageError
from penstock.frontends import Source
from penstock.quantizers import Quantizer
from penstock.stages import export, quantize

VARIANTS = ("source", "fp32", "fp16", "bf16", "slim", "int8", "int4")  # whose deployments a baseline may name


def check(settings: BuildSettings) -> None:
    """Raise the first of the problems."""
    for problem in problems(settings):
        raise problem


def problems(settings: BuildSettings) -> Iterator[PenstockError]:
    """Yield all that stands in the way of a build with these settings; nothing of the model is run."""
    for look in (
        _runtime,
        _source,
        _data,
        _custom_domains,
        _passes,
        _quantizer,
        _backends,
        _baseline,
        _metric,
        _limits,
    ):
        try:
            look(settings)
        except PenstockError as error:
            yield error


def default_data(source: str) -> str:
    """Return the data set that a source brings with it, or an empty text."""
    return "digits" if source == "zoo:digits" else ""


def _runtime(settings: BuildSettings) -> None:
    """Exports are proved on ONNX Runtime, model files are tried on it, and the golden set comes from it."""
    if problem := _available(cast(Backend, registry.load("backends", "onnxruntime"))):
        raise MissingError("backend-missing", "every build runs ONNX Runtime, and it can't run here", do=problem)


def _source(settings: BuildSettings) -> None:
    if not settings.source:
        return  # the doctor may be asked without one
    source = Source(settings.source, settings.weights)
    _, frontend = export.frontend(source)
    _ask(frontend, "need", source)
    if not settings.data.data and not default_data(settings.source):
        _ask(frontend, "need_example", source, settings.export)
    if source.weights and not Path(source.weights).is_file():
        raise InputError("no-such-file", "there is no such file of weights", where=source.weights, do="check --weights")


def _ask(plugin: object, hook: str, *arguments: object) -> None:
    """Let a plug-in say whether it can read what it claims; it need not have such a function."""
    need: Callable[..., None] | None = getattr(plugin, hook, None)
    if need is not None:
        need(*arguments)


def _data(settings: BuildSettings) -> None:
    if spec := settings.data.data or default_data(settings.source):
        _ask(datasets.source(spec), "need", spec)


def _custom_domains(settings: BuildSettings) -> None:
    with precheck.limits(settings.check):
        custom_domains.allowed()


def _passes(settings: BuildSettings) -> None:
    known = registry.names("passes")
    for name in settings.optimize.passes:
        registry.load("passes", name)
    for name in (*settings.optimize.skip, *settings.optimize.also):
        if name not in known:
            registry.load("passes", name)  # raises, with the nearest name


def _quantizer(settings: BuildSettings) -> None:
    if not settings.quantize.quantize:
        if settings.quantize.exclude:
            do = "leave one of --exclude and --no-quantize out"
            raise UsageError("bad-setting", "nodes are left in float, and nothing is quantized", where="exclude", do=do)
        if settings.quantize.int16_layers:
            what, do = (
                "layers get 16 bits, and nothing is quantized",
                "leave one of --int16-layers and --no-quantize out",
            )
            raise UsageError("bad-setting", what, where="int16_layers", do=do)
        return
    for name in (settings.quantize.method, *settings.quantize.also_methods):
        method = cast(Quantizer, registry.load("quantizers", name))
        if problem := _available(method):
            raise MissingError("missing-extra", f"the quantizer {name!r} can't run here", do=problem)
        _ask(method, "need", replace(settings.quantize, method=name))
    methods = dict.fromkeys((settings.quantize.method, *settings.quantize.also_methods))
    quantize.need_read(quantize.changed(settings.quantize), methods)


def _backends(settings: BuildSettings) -> None:
    for name, _ in map(backend_options.asked, settings.backends):
        if problem := _available(cast(Backend, registry.load("backends", name))):
            raise MissingError("backend-missing", f"the backend {name!r} can't run here", do=problem)


def _available(plugin: Backend | Quantizer) -> str:
    try:
        return plugin.available()
    except Exception as error:  # a third party's: asked for by name, it can't be left out
        return graph.first_line(error)


def _baseline(settings: BuildSettings) -> None:
    asked = settings.bench.baseline
    if not asked:
        return
    variant, at, backend = asked.partition("+")[0].partition("@")
    known = variant in VARIANTS or variant.partition("-")[2] in settings.quantize.also_methods
    if not at or not known:
        do = f"name a deployment, such as fp32@onnxruntime; variants are {', '.join(VARIANTS)}"
        raise UsageError("unknown-baseline", f"{asked!r} is no deployment", where="[bench] baseline", do=do)
    registry.load("backends", backend)
    if settings.backends and backend not in [backend_options.split(one)[0] for one in settings.backends]:
        do = f"add {backend} to --backends, or compare with another"
        raise UsageError("unknown-baseline", f"{asked!r} is not built", where="[bench] baseline", do=do)


def _metric(settings: BuildSettings) -> None:
    if settings.evaluate.metric:
        user_code.function(settings.evaluate.metric, "the metric")


def _limits(settings: BuildSettings) -> None:
    if settings.select.max_drop is not None and not settings.data.data and not default_data(settings.source):
        do = "give labelled data with --data, or leave --max-drop out"
        raise UsageError("no-metric", "--max-drop needs an accuracy, and there is no data to measure it on", do=do)
