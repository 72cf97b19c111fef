"""Convert: say a model in another opset, node by node, and prove that it computes the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from penstock import graph, guard, proof
from penstock.errors import InputError, PenstockError
from penstock.opsets import Change, Refused
from penstock.opsets.whole import NotConvertibleError, changed_meaning, converted, known, lowest, ready
from penstock.passes._soundness import Soundness, refusal_of
from penstock.proof import Proof
from penstock.rewriting.run import count, weight_bytes
from penstock.stages._optimize_steps import declare
from penstock.stages.optimize import MAIN

if TYPE_CHECKING:
    import onnx_ir as ir


PROOF_MEMORY_BYTES = 768 << 20  # most memory of the proof, beside 6 times the weights


@dataclass(frozen=True, slots=True)
class ConvertSettings:
    """How the result is proved."""

    proof: bool = True  # run the result beside the original and compare
    proof_seeds: int = 3  # made-up inputs for each set of sizes
    proof_seconds: float = 20.0  # longest that the proof may run the models
    proof_bytes: int = 1 << 30  # largest weights that are run twice


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was done. ``limits`` tells, where the lowest opset was asked for, which nodes can't be said below it."""

    opset_before: int
    opset_after: int
    ir_version_before: int
    ir_version_after: int
    nodes_before: int
    nodes_after: int
    changes: tuple[Change, ...]
    inlined: str  # why the local functions were replaced by their bodies; empty where they were not
    limits: tuple[Refused, ...]
    proof: Proof


def convert(model_path: Path, opset: int | Literal["lowest"], settings: ConvertSettings, into: Path) -> Conversion:
    """Convert a model and save it as ``into``/``model.onnx``. A model is converted whole or not at all.

    Raises :class:`NotConvertibleError` with every node whose meaning would be lost, ``GateError`` where the proof finds
    a difference, ``UsageError`` for an opset that there isn't, ``InputError`` for a model that can't be read.
    """
    with guard.rare_collection():
        source = graph.load(model_path)
        ready(source, str(model_path))
        own = source.opset_imports.get("", 0)
        limits: tuple[Refused, ...] = ()
        if isinstance(opset, str):
            target, limits = lowest(source)
        else:
            target = known(opset)
        model, done, inlined = converted(source, target)
        if done.refused:
            raise NotConvertibleError(done.refused, target, str(model_path))
        before = (count(source), source.ir_version or 0, weight_bytes(source))
        _write(model, own, target, model_path, into / MAIN)
        result = Conversion(
            own, target, before[1], model.ir_version, before[0], count(model), done.changes, inlined, limits,
            _proved(model_path, into / MAIN, before[2], settings),
        )  # fmt: skip
    if result.proof.state == "failed":
        what = f"the converted model computes something else: {result.proof.reason}"
        raise changed_meaning(model_path, what)
    return result


def _write(model: ir.Model, source_opset: int, target: int, source: Path, path: Path) -> None:
    from penstock.opsets import ir_version

    graph.tidy(model)
    declare(model)
    model.ir_version = ir_version.fitting(model, source_opset, target)
    full = Soundness.of(graph.load(source)).full
    try:
        graph.save(model, path)
    except (ValueError, TypeError) as error:
        what = f"the model can't be written: {graph.first_line(error)}"
        raise InputError("unwritable-model", what, where=str(source), do="check it with onnx.checker") from error
    complaint = refusal_of(path, full=full)
    if complaint and (full or not refusal_of(source)):
        what, do = f"the converted model is invalid: {complaint}", "report this with the model"
        raise PenstockError("invalid-result", what, where=str(source), do=do)


def _proved(source: Path, result: Path, weights: int, settings: ConvertSettings) -> Proof:
    if not settings.proof:
        return proof.skipped("it was switched off")
    if weights > settings.proof_bytes:
        what = f"its weights have {weights:,} bytes, {settings.proof_bytes:,} are run twice (--proof-bytes)"
        return proof.skipped(what)
    memory = PROOF_MEMORY_BYTES + 6 * weights  # two models, as files, as weights and as packed weights
    return proof.prove(
        source, result, seeds=settings.proof_seeds, seconds=settings.proof_seconds, memory_bytes=memory,
        other_opset=True,
    )  # fmt: skip
