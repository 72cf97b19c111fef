"""Transforms of a build: from the source to the variants, each through the cache.

The key of a transform is the digest of its inputs, its settings, the versions of its tools and of its own code; where a
runtime computes something, of the CPU's instruction set as well.
"""

from __future__ import annotations

import inspect as python_inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, cast

from penstock import (
    blame,
    calibration,
    custom_domains,
    graph,
    inputs,
    machine,
    opsets,
    passes,
    places,
    proof,
    quantization,
    registry,
    rewriting,
    specialise,
    store,
)
from penstock.errors import InputError
from penstock.frontends import Source
from penstock.jsonable import Json, dumps, from_json, to_json
from penstock.signature import Signature
from penstock.stages import _optimize_proof, _optimize_steps, export, optimize, quantize
from penstock.store import Cache, CacheEntry, Made, digest_of
from penstock.variant import Precision, Variant

if TYPE_CHECKING:
    import numpy as np

    from penstock.feeds import Feeds

MAIN = "model.onnx"
LIBRARIES = {"nncf": ("nncf",)}  # of the methods that have one of their own
HISTOGRAMS = "histograms.json"  # of what calibration saw, beside the model


@dataclass(frozen=True, slots=True)
class Transformed:
    """A variant, where its files lie, and what the transform said; ``cached`` when nothing had to run."""

    variant: Variant
    folder: Path
    facts: Mapping[str, Json]
    measured: Mapping[str, Json]
    reads: Mapping[str, str]
    cached: bool

    @property
    def path(self) -> Path:
        """The model's main file."""
        return self.folder / self.variant.main


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of installed packages, without what a build of theirs adds; absent ones are left out."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in packages:
        try:
            found[name] = version(name).split("+")[0]
        except PackageNotFoundError:
            continue
    return found


def _code(*modules: object) -> str:
    """Return the digest of the sources of the code that a transform runs."""
    return digest_of([python_inspect.getsource(module) for module in modules])  # type: ignore[arg-type]  # modules


def _files(*packages: ModuleType) -> list[str]:
    """Return the digests of all sources of packages, those of the folders inside them too."""
    folders = [Path(str(package.__file__)).parent for package in packages]
    return [store.file_digest(path) for folder in folders for path in sorted(folder.rglob("*.py"))]


def _through_cache(cache: Cache, key: str, make: Callable[[Path], Made]) -> tuple[CacheEntry, bool]:
    if entry := cache.get(key):
        return entry, True
    return cache.put(key, make), False


def _variant(
    name: str, entry: CacheEntry, precision: Precision, parents: tuple[str, ...], step: str,
    settings: Mapping[str, Json], tools: Mapping[str, str], main: str = MAIN,
) -> Variant:  # fmt: skip
    signature = from_json(Signature, entry.facts["signature"])
    digest = digest_of(entry.files)
    return Variant(name, digest, "onnx", precision, entry.files, main, signature, parents, step, settings, tools)


def export_source(
    source: Source,
    settings: export.ExportSettings,
    example: Callable[[], Mapping[str, np.ndarray] | None],
    example_digest: str,
    cache: Cache,
) -> Transformed:
    """Export the source, or take the export from the cache if nothing that it read has changed since."""
    frontend_name, frontend = export.frontend(source)
    with registry.blamed("frontends", frontend_name):
        tools = dict(frontend.tools())
    plain = {k: v for k, v in asdict(settings).items() if frontend_name != "onnx"}
    spec = source.spec if source.spec.startswith("zoo:") else _resolved(source.spec)
    weights = str(Path(source.weights).resolve()) if source.weights else ""
    # the key names the files; the entry lists what was read from them, with digests that every hit checks
    key = digest_of(["export", spec, weights, plain, _places(settings), example_digest, tools, _frontend_code()])
    key = digest_of([key, custom_domains.key()]) if custom_domains.key() else key

    def make(into: Path) -> Made:
        done = export.export_with(frontend_name, frontend, source, settings, into / MAIN, example())
        if not (into / MAIN).is_file():
            what = f"the frontend {frontend_name!r} wrote no model"
            raise InputError("plug-in-failed", what, where=source.spec, do="tell its authors, or export it otherwise")
        return Made({"signature": to_json(done.signature), **done.facts}, done.measured, done.reads)

    entry, cached = _through_cache(cache, key, make)
    precision = graph.precision(graph.load(cache.folder(key) / "files" / MAIN))
    read = sorted(entry.reads.values())
    if settings.translate and plain:
        plain["translate"] = [_without_folders(text) for text in settings.translate]
    settings_json = {"source": source_name(source), "frontend": frontend_name, "read": list(read), **plain}
    if custom := entry.facts.get("custom_domains"):
        settings_json["custom_domains"] = custom
    shown = to_json(settings_json)
    assert isinstance(shown, dict)
    variant = _variant(precision, entry, precision, (), "export", shown, tools)
    return Transformed(variant, cache.folder(key) / "files", entry.facts, entry.measured, entry.reads, cached)


def _places(settings: export.ExportSettings) -> list[str]:
    """Return where the user's functions lie: one name means other files in other folders."""
    named = [text.partition("=")[2] for text in settings.translate] + [settings.example]
    return [_resolved(spec) for spec in named if spec]


def _without_folders(text: str) -> str:
    op, _, spec = text.partition("=")
    return f"{op}={source_name(Source(spec))}"


def source_name(source: Source) -> str:
    """Return the source without the folders of this machine: ``net.py:Net``, ``model.onnx``."""
    head, colon, name = source.spec.rpartition(":")
    if colon and name.isidentifier():
        return f"{Path(head).name if head.endswith('.py') else head}:{name}"
    return Path(source.spec).name


def _resolved(spec: str) -> str:
    head, colon, name = spec.rpartition(":")
    if colon and name.isidentifier():
        return f"{Path(head).resolve() if head.endswith('.py') else f'{Path.cwd()}:{head}'}:{name}"
    return str(Path(spec).resolve())


def _frontend_code() -> str:
    own = [store.file_digest(Path(str(module.__file__))) for module in (graph, inputs, places)]
    return digest_of([registry.fingerprint("frontends"), *own])


def optimize_variant(parent: Transformed, settings: optimize.OptimizeSettings, cache: Cache) -> Transformed:
    """Run the passes to a fixpoint."""
    tools = versions("onnx", "onnx-ir", "onnxscript")
    code = registry.fingerprint("passes")
    key = digest_of(
        [
            "optimize",
            parent.variant.digest,
            settings,
            tools,
            _code(optimize, _optimize_steps, _optimize_proof, specialise, graph, proof, blame),
            code,
            _files(rewriting, opsets),
        ]
    )

    def make(into: Path) -> Made:
        done = optimize.optimize(parent.path, settings, into)
        shape = graph.signature(graph.load(into / optimize.MAIN))
        store.write_bytes(into / optimize.TRACE, done.trace_json().encode())
        return Made({"signature": to_json(shape), **done.facts()}, done.measured())

    entry, cached = _through_cache(cache, key, make)
    plain = to_json(settings)
    assert isinstance(plain, dict)
    model = replace(entry, files=tuple(file for file in entry.files if file.path != optimize.TRACE))
    variant = _variant(
        "slim", model, parent.variant.precision, (parent.variant.digest,), "optimize", plain, tools, optimize.MAIN
    )
    return Transformed(variant, cache.folder(key) / "files", entry.facts, entry.measured, {}, cached)


def quantize_variant(
    parent: Transformed,
    feeds: Feeds,
    settings: quantize.QuantizeSettings,
    cache: Cache,
    golden: Feeds | None = None,
    suffix: str = "",
) -> Transformed | InputError:
    """Quantize with the calibration feeds; a model that can't be quantized gives the reason back."""
    tools = quantizer_tools(settings.method)
    inputs = [parent.variant.digest, dict(feeds.description), settings, tools, *quantizer_code()]
    inputs += [dict(golden.description)] if golden is not None else []
    # ranges come out of a runtime, whose kernels and sums differ between instruction sets and numbers of threads
    key = digest_of(["quantize", *inputs, machine.instruction_set(), os.cpu_count(), machine.threads()])

    def make(into: Path) -> Made:
        batches = calibration.of_feeds(feeds, settings.calibration_batch, golden=golden, cache=cache)
        facts = dict(quantize.quantize(parent.path, batches, settings, into / MAIN))
        if (seen := facts.pop("histograms", None)) is not None:
            store.write_bytes(into / HISTOGRAMS, dumps(seen).encode())
        shape = to_json(graph.signature(graph.load(into / MAIN)))
        if facts.get("calibration_samples") != 0:  # a method may have looked at none; batches may overlap
            facts["calibration_samples"] = feeds.count
        return Made({**facts, "signature": shape})

    try:
        entry, cached = _through_cache(cache, key, make)
    except InputError as error:
        return error
    plain = to_json(settings)
    assert isinstance(plain, dict)
    shown = {**plain, "calibration": dict(feeds.description)}
    model = replace(entry, files=tuple(file for file in entry.files if file.path != HISTOGRAMS))
    precision = cast("Precision", entry.facts.get("precision", "int8"))
    name = precision if suffix in ("", precision) else f"{precision}-{suffix}"
    variant = _variant(name, model, precision, (parent.variant.digest,), "quantize", shown, tools)
    return Transformed(variant, cache.folder(key) / "files", entry.facts, entry.measured, {}, cached)


def quantizer_tools(method: str) -> dict[str, str]:
    """Return the versions that a quantized model hangs on: of a library that the method is a wrapper of, too."""
    return versions("onnx", "onnx-ir", "onnxruntime", *LIBRARIES.get(method, ()))


def quantizer_code() -> tuple[dict[str, str], list[str]]:
    """Return digests of the code that makes a quantized model: the methods', and the numerics behind them.

    The model is optimized before it is quantized: what the passes make of it is what gets its grids.
    """
    numerics = [_code(quantize, calibration, graph), *_files(quantization, passes, rewriting, opsets)]
    return registry.fingerprint("quantizers"), numerics


def source_variant(exported: Transformed, source: Source) -> Variant | None:
    """Return the source itself as a variant, where its framework can run it; it has no files of its own here."""
    if exported.variant.settings.get("frontend") != "torch":
        return None
    digest = digest_of(sorted(exported.reads.values()))
    return Variant(
        "source", digest, "torch", "fp32", (), source_name(source), exported.variant.signature, (), "source", {},
        versions("torch"),
    )  # fmt: skip
