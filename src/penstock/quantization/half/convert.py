"""Convert: from a float32 model and calibration samples to a model in fp16 or bf16, with a reason for every layer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from penstock import graph, store
from penstock.calibration import Batch, Batches, of_list, size
from penstock.errors import InputError, UsageError
from penstock.jsonable import Json, to_json
from penstock.quantization import prepare, probe
from penstock.quantization.half import chains, operators, placing, rounding, running, seen, sums
from penstock.quantization.half.attempt import Attempt
from penstock.quantization.half.binding import ONE_TYPE, bound, is_float32
from penstock.quantization.half.reasons import Reason, Reasons
from penstock.quantization.half.types import HALVES, Half
from penstock.rewriting.knowledge import Knowledge
from penstock.rewriting.walk import graphs_of

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from penstock.stages.quantize import QuantizeSettings

COMPARED = 32  # samples on which the result is compared with the float model


@dataclass(frozen=True, slots=True)
class Converted:
    """The model, ready to be saved, and what was done to it."""

    model: ir.Model
    facts: Mapping[str, Json]


def write(
    half: Half, model: Path, samples: Iterable[Batch], settings: QuantizeSettings, into: Path
) -> Mapping[str, Json]:
    """Convert a model file into another, and return what was done to it: the method of this half's name."""
    made = convert(model, samples if isinstance(samples, Batches) else of_list(samples), half, settings)
    graph.save(made.model, into)
    return made.facts


def need_floats(half: Half, settings: QuantizeSettings) -> None:
    """Raise ``UsageError`` for a consumer that computes on integers alone."""
    if settings.consumer == "integer-only":
        what = f"an integer-only consumer has no float arithmetic, so {half.name} is no use to it"
        raise UsageError("bad-option", what, where="--consumer", do="choose another consumer, or --method static")


def convert(
    path: Path, batches: Batches, half: Half, settings: QuantizeSettings,
    done: Callable[[int, int], None] | None = None,
) -> Converted:  # fmt: skip
    """Convert a model file. Raises ``InputError`` for one that can't be or needn't be converted, ``UsageError``."""
    need_floats(half, settings)
    model = _loaded(path, half, settings.exclude)
    bindings = {str(node.name): bound(node, model.opset_imports, half) for node in model.graph}
    roots = [node for node in model.graph if node.op_type in operators.AFTER_ZERO]
    watched = set().union(*(operators.behind(node) for node in roots))
    looked = seen.look(model, batches, half, watched, done)
    found = Reasons(model, half, looked, bindings, settings.half_margin)
    found.formal(prepare.fitting(found.nodes, settings.exclude))
    found.ranges()
    bounds, measurable = found.questionable()
    found.sums(bounds, sums.measured(model, measurable, batches, looked, done))
    delicate = found.delicate(rounding.losses(model, _rounded(found), batches, half, done))
    found.chains(chains.grown(model, found, dict.fromkeys([*delicate, *found.roots()]), batches))
    if not settings.half_compute:
        for name, binding in bindings.items():
            if binding.possible:
                found.add(found.nodes[name], Reason("the weights alone were to be stored in 16 bits", "store"))
    with store.scratch() as work:
        attempt = Attempt(model, found, path, settings.consumer, work, *_float_results(model, batches, work))
        made, chosen = attempt.settle()
    told = attempt.told
    last = placing.tail(model)
    layers = [_layer(node, found, chosen, last) for node in model.graph]
    kept = [one for one in layers if one["state"] == "fp32"]
    facts: dict[str, Json] = {
        "method": half.name, "precision": half.name, "consumer": settings.consumer,
        "calibration_samples": batches.count, "margin": settings.half_margin, "casts": made.casts,
        "nodes_in_16_bits": len(chosen), "nodes_in_fp32": len(kept),
        "weight_bytes_in_16_bits": made.half_bytes, "weight_bytes_in_fp32": made.float_bytes,
        "runs_on": told, "notes": to_json(running.notes(told, half)), "layers": to_json(layers),
        "operators_left_in_float": to_json(sorted({str(one["op"]) for one in kept})),
    }  # fmt: skip
    return Converted(made.model, facts)


def _loaded(path: Path, half: Half, exclude: Collection[str]) -> ir.Model:
    """Get a model ready, at an opset whose operators take the type where it can be said in one.

    In a later opset there is more to fuse, as of a HardSwish, which runtimes then compute in one go.
    """
    try:
        model = _folded_again(prepare.prepared(path, opset=half.opset, exclude=exclude), exclude)
    except InputError as error:
        if error.id != "cannot-raise-opset":
            raise
        model = prepare.prepared(path, exclude=exclude)  # fewer operators take it there; these stay in fp32
    _type(model)
    if (precision := graph.precision(model)) in HALVES:
        what = f"most of the model's weights are in {precision} already"
        raise InputError("already-quantized", what, where=str(path), do="start from the float32 model")
    values = [*probe.values(model).values(), *(v for one in graphs_of(model) for v in one.initializers.values())]
    if not any(is_float32(value) for value in values):
        types = {value.dtype for value in values if value.dtype is not None}
        kinds = sorted(kind.name for kind in types if kind.is_floating_point())
        held = f"its floats are {', '.join(kinds)}" if kinds else "it computes on no floats"
        what = f"there is nothing to convert to {half.name}: {held}, none is FLOAT"
        raise InputError("nothing-to-quantize", what, where=str(path), do="start from the float32 model")
    return model


def _folded_again(model: ir.Model, exclude: Collection[str]) -> ir.Model:
    """Fuse what the raised opset allows, unless a node that is to be left alone would go."""
    folded = prepare.folded(model.clone())
    prepare.named(folded)
    left = prepare.fitting(_names(model), exclude)
    return folded if left <= _names(folded) else model


def _names(model: ir.Model) -> set[str]:
    return {node.name for node in model.graph.all_nodes() if node.name}


def _type(model: ir.Model) -> None:
    """Find the types of all values, as far as they can be known."""
    import onnx_ir as ir

    known = Knowledge(model)
    known.learn(model.graph)
    for node in model.graph:
        known.visit(node)
        first = next((value for value in node.inputs if is_float32(value)), None)
        if node.domain == "com.microsoft" and node.op_type in ONE_TYPE and first is not None:
            for index, value in enumerate(node.outputs):
                whole = node.op_type == "EmbedLayerNormalization" and index == 1
                value.type = value.type or ir.TensorType(ir.DataType.INT32 if whole else ir.DataType.FLOAT)


def _rounded(found: Reasons) -> dict[str, list[int]]:
    """Return which inputs of which nodes are rounded in a trial: those read or made in 16 bits, as it stands."""
    candidates = {name for name in found.nodes if found.bindings[name].possible and name not in found.found}
    rounded: dict[str, list[int]] = {}
    for name, node in found.nodes.items():
        for index, value in enumerate(node.inputs):
            if value is None or not is_float32(value) or not found.bindings[name].possible:
                continue
            maker = value.producer()
            made_narrow = maker is not None and str(maker.name) in candidates
            if made_narrow or (name in candidates and index in found.bindings[name].inputs):
                rounded.setdefault(name, []).append(index)
    return rounded


def _float_results(model: ir.Model, batches: Batches, work: Path) -> tuple[list[Batch], list[list[np.ndarray]]]:
    """Run the float model on the first samples."""
    feeds: list[Batch] = []
    for batch in batches:
        if sum(map(size, feeds)) >= COMPARED:
            break
        feeds.append(batch)
    session = probe.opened(model.clone(), work)
    try:
        return feeds, [[_plain(output) for output in session.run(batch)] for batch in feeds]
    finally:
        session.close()


def _plain(output: object) -> np.ndarray:
    """Return an output for comparison; what isn't a tensor of numbers isn't compared."""
    import numpy as np

    return output if isinstance(output, np.ndarray) and output.dtype.kind in "biuf" else np.zeros(0, np.int8)


def _layer(node: ir.Node, found: Reasons, chosen: Collection[str], last: Collection[str]) -> dict[str, Json]:
    name, half = str(node.name), found.half
    told: dict[str, Json] = {"node": name, "op": node.op_type}
    reason = found.found.get(name)
    if name in chosen:
        return told | {"state": half.name, "reason": found.notes.get(name, "")}
    if reason is None and not found.bindings[name].possible:
        return told | {"state": "untouched", "reason": "it has nothing to do with floats"}
    reason = reason or Reason(placing.LAST if name in last else placing.BESIDE, "store")
    told |= {"state": "fp32", "reason": reason.text}
    if reason.tensor:
        told["tensor"] = reason.tensor
    if reason.high is not None:
        told |= {"low": reason.low, "high": reason.high}
    return told
