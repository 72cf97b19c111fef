"""Export: from the source that the user named to an ONNX model that computes the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from penstock import apart, registry
from penstock.errors import MissingError, UsageError
from penstock.settings import option

if TYPE_CHECKING:
    import numpy as np

    from penstock.frontends import Exported, Frontend, Source


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """How a source becomes ONNX."""

    exporter: str = option(
        "auto", "exporter for PyTorch; auto: dynamo, torchscript for what is scripted or what it alone keeps dynamic",
        choices=("auto", "dynamo", "torchscript"),
    )  # fmt: skip
    opset: int | None = option(
        None, "opset to write (default: the lowest that the exporter writes natively)", minimum=13
    )
    input: tuple[str, ...] = option((), "input signature, once per input: 'x:float32[batch,3,height=64,64]'")
    example: str = option("", "module:function that returns example inputs; --input beside it names axes")
    probe: tuple[str, ...] = option((), "module:function that returns inputs which take another branch; repeatable")
    translate: tuple[str, ...] = option((), "ONNX for an operator of PyTorch, once each: 'mylib::op=module:function'")
    keep_function: tuple[str, ...] = option((), "class of submodules to keep as functions of the model, once each")
    static: bool = option(False, "fix all sizes to the example's instead of a dynamic batch")
    raw: bool = option(False, "leave the graph as traced: BatchNorm stays visible")
    batches: tuple[int, ...] = option(
        (1, 2, 3, 7), "batch sizes of the comparison with the source", flag="--export-batches", minimum=1
    )
    tolerance: float = option(1e-4, "largest relative difference to the source", flag="--export-tolerance", minimum=0.0)


def frontend(source: Source) -> tuple[str, Frontend]:
    """Find the frontend that reads ``source``; return its name too. Raises ``UsageError``."""
    for name in registry.claimants("frontends"):
        try:
            candidate = cast("Frontend", registry.load("frontends", name))
        except MissingError:
            continue  # a broken plug-in of somebody else's; `penstock list` tells what is wrong with it
        if _claims(candidate, source.spec):
            return name, candidate
    do = "give model.onnx, file.py:Class, package.module:factory, program.pt2 or zoo:cifar10"
    if not Path(source.spec).exists() and ":" not in source.spec:
        raise UsageError("no-such-file", f"there is no file {source.spec!r}", do=do)
    raise UsageError("unknown-source", f"no frontend reads {source.spec!r}", do=do)


def _claims(candidate: Frontend, spec: str) -> bool:
    try:
        return candidate.claims(spec) is True  # a text that says no is no yes
    except Exception:  # a third party's fault; `penstock list` is where it belongs
        return False


def export(
    source: Source, settings: ExportSettings, into: Path, example: Mapping[str, np.ndarray] | None = None
) -> Exported:
    """Write the ONNX model ``into``. Raises ``InputError`` or ``MissingError``, ``GateError`` if it differs."""
    name, chosen = frontend(source)
    return export_with(name, chosen, source, settings, into, example)


def export_with(
    name: str, chosen: Frontend, source: Source, settings: ExportSettings, into: Path,
    example: Mapping[str, np.ndarray] | None,
) -> Exported:  # fmt: skip
    """Export by the frontend that was found for the source; a third party's does so in a process of its own."""
    if apart.foreign("frontends", name):
        return apart.export(name, source, settings, example, into)
    with registry.blamed("frontends", name):
        return chosen.export(source, settings, example, into)
