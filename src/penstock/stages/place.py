"""Place: cross the variants with the backends that can run them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from penstock import backend_options, deployment, graph, registry
from penstock.backends import Backend, Loadable, device_of, runs, ways
from penstock.deployment import Deployment
from penstock.errors import MissingError, UsageError
from penstock.measures import Runnable
from penstock.stages.bench import BenchSettings, configured
from penstock.variant import Variant


def place(
    variants: Sequence[tuple[Variant, Loadable]], backends: Sequence[str], settings: BenchSettings
) -> list[Runnable]:
    """Return every deployment that can run here; ``backends`` empty: all that are there and run unasked.

    Raises ``UsageError`` when none of them could be chosen.
    """
    made: list[Runnable] = []
    for variant, model in variants:
        for name in backends or registry.names("backends"):
            name, given = backend_options.split(name)
            try:
                backend = cast(Backend, registry.load("backends", name))
            except MissingError:
                continue  # a broken plug-in, listed by `penstock list`
            if not backends and not getattr(backend, "BY_DEFAULT", True):
                continue  # it takes too long to be run unasked
            # the oracle holds for the float model; of an int8 one it knows no runtime's rounding
            vain = backend.ROLE == "oracle" and variant.precision not in ("fp32", "fp16")
            fits = variant.format in backend.FORMATS and runs(backend, variant.precision)
            if vain or not fits or not _runs_here(backend):
                continue
            for way, options in backend_options.ways(_ways(name, backend, variant, model), given).items():
                plain = Deployment(
                    deployment.named(variant.name, name, way),
                    variant.name, variant.digest, variant.precision, name,
                    role=backend.ROLE, options=options, precision_hint=getattr(backend, "HINT", ""),
                    device=device_of(backend),
                )  # fmt: skip
                made.append(Runnable(configured(plain, settings), model, variant.signature.fixed_batch is None))
    if not any(runnable.deployment.role == "candidate" for runnable in made):
        do = "name another with --backends; `penstock list backends` shows which can run here"
        raise UsageError("no-candidate", "none of the backends can deploy this model", do=do)
    return made


def reference(variants: Sequence[tuple[Variant, Loadable]]) -> tuple[Runnable, str]:
    """Return what computes the golden outputs, and how to call it: the source itself, as literally as it can be run."""
    variant, model = variants[0]
    if variant.format == "torch":
        return Runnable(Deployment("source", variant.name, variant.digest, "fp32", "torch"), model, True), "PyTorch"
    options = {"optimization": "disabled"}
    plain = Deployment("source", variant.name, variant.digest, variant.precision, "onnxruntime", options=options)
    return Runnable(plain, model, True), "ONNX Runtime with its optimizations off"


def _ways(name: str, backend: Backend, variant: Variant, model: Loadable) -> Mapping[str, Mapping[str, str]]:
    """Return the ways in which a backend can compute a variant."""
    if model.path is None or variant.precision not in ("int4", "int8", "mixed"):
        return {"": {}}
    with registry.blamed("backends", name):
        return ways(backend, graph.load(model.path, weights=False))


def _runs_here(backend: Backend) -> bool:
    try:
        return not backend.available()
    except Exception:  # a third party's fault; `penstock list` tells it
        return False
