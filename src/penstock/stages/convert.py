"""Convert: say a model in another opset, node by node, and prove that it computes the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from penstock import graph, guard, proof
from penstock.errors import GateError, InputError, PenstockError, UsageError
from penstock.opsets import Change, Refused, history
from penstock.passes._soundness import Soundness, refusal_of
from penstock.proof import Proof
from penstock.rewriting.run import count, weight_bytes
from penstock.stages.optimize import MAIN, declare

if TYPE_CHECKING:
    import onnx_ir as ir

    from penstock.opsets.steps import Converted

SHOWN = 5  # refused nodes that an error spells out


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


class NotConvertibleError(GateError):
    """Some nodes can't be said in the opset with the same meaning: ``nodes`` tells which, and why."""

    def __init__(self, nodes: tuple[Refused, ...], opset: int, where: str) -> None:
        self.nodes = nodes
        shown = "; ".join(f"{one.op} {one.node!r}: {one.reason}" for one in nodes[:SHOWN])
        more = f"; and {len(nodes) - SHOWN} more" if len(nodes) > SHOWN else ""
        things = "1 node loses its meaning" if len(nodes) == 1 else f"{len(nodes)} nodes lose their meaning"
        do = "choose another opset (--opset lowest finds the lowest), or change these nodes in the source"
        super().__init__("meaning-lost", f"{things} in opset {opset}: {shown}{more}", where=where, do=do)


def convert(model_path: Path, opset: int | Literal["lowest"], settings: ConvertSettings, into: Path) -> Conversion:
    """Convert a model and save it as ``into``/``model.onnx``. A model is converted whole or not at all.

    Raises :class:`NotConvertibleError` with every node whose meaning would be lost, ``GateError`` where the proof finds
    a difference, ``UsageError`` for an opset that there isn't, ``InputError`` for a model that can't be read.
    """
    with guard.rare_collection():
        source = _opened(model_path)
        own = source.opset_imports.get("", 0)
        limits: tuple[Refused, ...] = ()
        if isinstance(opset, str):
            target, limits = lowest(source)
        else:
            target = _known(opset)
        model, done, inlined = _converted(source, target)
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
        raise GateError("conversion-differs", what, where=str(model_path), do="report it with the model")
    return result


def lowest(model: ir.Model) -> tuple[int, tuple[Refused, ...]]:
    """Find the lowest opset that every node can be said in, and the nodes that can't be said in the one below."""
    from penstock.opsets.steps import convert as convert_all

    found: tuple[int, tuple[Refused, ...]] | None = None
    for inline in (False, True):
        tried = model.clone()
        if inline and not _inline(tried):
            break
        refused = convert_all(tried, history.LOWEST, stop=True).refused
        reached = max((one.opset for one in refused), default=history.LOWEST)
        if found is None or reached < found[0]:
            found = reached, tuple(one for one in refused if one.opset == reached)
        if not any(one.function for one in refused):
            break
    assert found is not None
    return found


def _opened(path: Path) -> ir.Model:
    from penstock.passes import sort_nodes

    model = graph.load(path)
    if (own := model.opset_imports.pop("ai.onnx", None)) is not None:
        model.opset_imports.setdefault("", own)
    newest = max([model.opset_imports.get("", 0), *(f.opset_imports.get("", 0) for f in model.functions.values())])
    if newest > history.newest():
        what = f"the model is of opset {newest}, and the newest that is known here is {history.newest()}"
        raise InputError("unknown-opset", what, where=str(path), do="install a newer onnx")
    sort_nodes.run(model)
    return model


def _known(opset: int) -> int:
    if history.LOWEST <= opset <= history.newest():
        return opset
    do = f"choose {history.LOWEST} to {history.newest()}, or lowest"
    raise UsageError("unknown-opset", f"nothing is converted to opset {opset}", do=do)


def _converted(source: ir.Model, target: int) -> tuple[ir.Model, Converted, str]:
    """Convert a copy; where a function stands in the way, a copy with all functions inlined."""
    from penstock.opsets.steps import convert as convert_all

    model = source.clone()
    done = convert_all(model, target)
    first = next((one for one in done.refused if one.function), None)
    if first is not None:
        flat = source.clone()
        if _inline(flat):
            again = convert_all(flat, target)
            if len(again.refused) < len(done.refused):
                why = f"{first.op} {first.node!r} in the function {first.function}: {first.reason}"
                return flat, again, why
    return model, done, ""


def _inline(model: ir.Model) -> bool:
    """Inline all functions where they are of the model's own opset, and stand for few enough nodes."""
    from penstock.passes._library import expanded_size, quiet
    from penstock.stages.optimize import MOST_EXPANDED

    own = model.opset_imports.get("")
    if any(function.opset_imports.get("", own) != own for function in model.functions.values()):
        return False
    if expanded_size(model, MOST_EXPANDED) >= MOST_EXPANDED:
        return False
    with quiet():
        return graph.inline(model)


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
