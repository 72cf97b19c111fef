"""Static quantization: integers for activations and weights, on grids that are chosen from calibration samples.

x ≈ scale · (integer - zero point): activations on grids with a zero point, weights on symmetric ones with a scale for
each output channel, biases int32 (Jacob et al., arXiv 1712.05877). What is quantized goes by the consumer's table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from penstock import calibration, graph
from penstock.calibration import Batches
from penstock.errors import InputError
from penstock.jsonable import to_json
from penstock.quantizers import FLOAT

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from penstock.jsonable import Json
    from penstock.quantization.study import Choice, Quantized, Study
    from penstock.quantization.wide import Computed
    from penstock.stages.quantize import QuantizeSettings


READS = frozenset({
    "consumer", "activations", "ranges", "percentile", "equalize", "smooth", "correct_bias", "guard", "rounding",
    "format", "int16_layers", "per_channel", "quantize_outputs", "sensitivity", "target_cpu",
})  # fmt: skip


_RECURRENT = ("GRU", "LSTM", "RNN")
_DYNAMIC = ("Attention", "Gemm", "LSTM", "MatMul")  # what the dynamic method takes, in bodies too


def available() -> str:
    """Return "": it needs nothing but ONNX Runtime, which is always there."""
    return ""


def need(settings: QuantizeSettings) -> None:
    """Raise ``UsageError`` for what the consumer can't be served with."""
    from penstock.quantization.studying import of_settings

    of_settings(settings)


def quantize(
    model: Path, batches: Iterable[Mapping[str, np.ndarray]], settings: QuantizeSettings, into: Path
) -> Mapping[str, Json]:
    """Quantize ``model``; see :class:`penstock.quantizers.Quantizer`."""
    from penstock.quantization import account, automatic, notices, qoperator, saturation, wide
    from penstock.quantization.guard import guarded
    from penstock.quantization.studying import of_settings, studied

    samples = batches if isinstance(batches, Batches) else calibration.of_list(batches)
    choice = of_settings(settings)
    study, balanced = studied(model, samples, choice)
    if not study.placed(choice).weights:
        raise _nothing(study, choice, model)
    choice, tried = automatic.resolved(study, choice)
    choice, left = guarded(study, choice) if settings.guard else (choice, [])
    if left:  # without the worst layers the outputs may have another best way
        choice, tried = automatic.resolved(study, replace(choice, ranges=settings.ranges))
    done = study.quantized(choice)
    kept = qoperator.convert(done.model) if settings.format == "qoperator" else {}
    graph.tidy(done.model)
    graph.save(done.model, into)
    hazard: list[str] = []
    clipping: list[saturation.Saturation] = []
    if choice.weight_bits == saturation.SAFE_BITS:
        if settings.format == "qdq" or choice.dtype == "uint8":  # else the runtime has a kernel that isn't emulated
            full = study.quantized(replace(choice, weight_bits=8, correct_bias="none", rounding="nearest"))
            clipping = saturation.measure(study, full, samples)
        hazard = [saturation.note(clipping, settings.target_cpu)]
    told = _sensitivity(study, choice, done, settings.sensitivity)
    ran, said = _wide(study, choice, done, into)
    used = {name: study.statistics[name] for name in done.grids if name in study.statistics}
    return {
        "method": "static", "precision": "int8", "format": settings.format.upper(), "consumer": choice.consumer,
        "activations": choice.dtype, "weights": "int8", "per_channel": choice.per_channel, "ranges": choice.ranges,
        "equalize": choice.equalize, "correct_bias": choice.correct_bias, "rounding": choice.rounding,
        "calibration_samples": samples.count, "calibration_batch": samples.size,
        "outputs_left_in_float": _float_outputs(done), "operators_left_in_float": [*_float_operators(done)],
        "ranges_tried_db": to_json(tried), "guarded": to_json(left),
        "int16_layers": [*sorted(done.placement.int16)], "int16_tensors": [*sorted(done.placement.wide)],
        "int16_computed": to_json(ran),
        "balanced": [
            {"before": one.before, "after": [*one.after], "alpha": one.alpha, "gain_db": one.gain_db, "by": one.by}
            for one in balanced
        ],
        **told,
        "layers": qoperator.told(account.layers(
            study.model, done.placement, done.grids, done.weights, study.statistics,
            wide.reasons(ran, choice.wide_dtype)
            | {one.node: f"alone it makes {one.share:.0%} of the error at the output" for one in left},
        ), kept),
        "histograms": account.histograms(used, done.grids),
        "target_cpu": settings.target_cpu, "weight_bits": choice.weight_bits,
        "saturation": to_json([one for one in clipping if one.share > 0]),
        "notes": [
            *study.notes, *_recurrent(study), *hazard, *said, *_unquantized(done, settings), *notices.few(samples, used)
        ],
    }  # fmt: skip


def _sensitivity(study: Study, choice: Choice, done: Quantized, seconds: float) -> dict[str, Json]:
    """Measure each layer's effect, where that is asked for."""
    from penstock.quantization import sensitivity

    if not seconds:
        return {}
    ranked, left = sensitivity.layers(study, choice, seconds=seconds)
    study.look([name for name in done.grids if name in study.statistics], histogram=True)
    errors = sensitivity.tensors(done.grids, study.statistics)
    return {"sensitivity": to_json(ranked), "sensitivity_not_reached": [*left], "tensor_errors": to_json(errors)}


def _wide(study: Study, choice: Choice, done: Quantized, path: Path) -> tuple[list[Computed], list[str]]:
    """Tell what becomes of activations of 16 bits: ask ONNX Runtime, or say what another runtime has to take."""
    from penstock.quantization import wide

    if done.placement.int16 and choice.consumer != "ort-cpu":
        names = wide.uneven(done.placement, study.model)
        said = f"{', '.join(names)}: 8 bits in and {choice.wide_dtype} out, which {choice.consumer} has to take"
        return [], [said] if names else []
    if choice.consumer != "ort-cpu" or not (done.placement.int16 or choice.dtype == choice.wide_dtype):
        return [], []
    try:
        ran = wide.computed(path, study.model, done.placement)
    except InputError as error:  # its custom operators, say
        return [], [f"what ONNX Runtime makes of {choice.wide_dtype} activations isn't known: {error.what}"]
    told = wide.note(ran, choice.wide_dtype)
    return ran, [told] if told else []


def _nothing(study: Study, choice: Choice, model: Path) -> InputError:
    """Say why no layer can be quantized."""
    from penstock.quantization.placement import WEIGHTED

    reasons = [layer for layer in study.placed(choice).layers if layer.op in WEIGHTED]
    if not reasons:
        held = {node.op_type for node in study.model.graph}
        bodies = Counter(node.op_type for node in study.model.graph.all_nodes() if node.graph is not study.model.graph)
        inside = {op: count for op, count in sorted(bodies.items()) if op in (*WEIGHTED, *_RECURRENT)}
        what = f"there is nothing worth quantizing: no {', '.join(WEIGHTED)}"
        if inside:
            counted = ", ".join(f"{count} {op}" for op, count in inside.items())
            what += f" in the main graph, and the bodies of If, Loop and Scan ({counted}) aren't gone into"
        suits = any(op in (*held, *inside) for op in _DYNAMIC)
        do = "try --method dynamic, which takes MatMul, Gemm and LSTM, in bodies too" if suits else FLOAT
        return InputError("nothing-to-quantize", what, where=str(model), do=do)
    first = reasons[0]
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    what = f"no layer can be quantized: {first.op} {first.node!r}: {first.reason}{more}"
    do = "--quantize-outputs" if "--quantize-outputs" in first.reason else f"try --method dynamic, or {FLOAT}"
    return InputError("nothing-to-quantize", what, where=str(model), do=do)


def _float_outputs(done: Quantized) -> list[Json]:
    return [
        str(value.name) for value in done.model.graph.outputs
        if _maker(value) != "DequantizeLinear" and not value.is_graph_input()
    ]  # fmt: skip


def _unquantized(done: Quantized, settings: QuantizeSettings) -> list[str]:
    """Tell which outputs are float although they were asked for quantized: what is behind the last layer makes them."""
    if not settings.quantize_outputs or not (left := _float_outputs(done)):
        return []
    makers = {str(value.name): _maker(value) for value in done.model.graph.outputs}
    listed = ", ".join(f"{name!r} ({makers[str(name)]})" for name in left)
    return [f"made in float from the last layer's quantized result: {listed}"]


def _maker(value: ir.Value) -> str:
    node = value.producer()
    return node.op_type if node is not None else ""


def _float_operators(done: Quantized) -> list[str]:
    from penstock.quantization.placement import WEIGHTED

    ops = {*WEIGHTED, *_RECURRENT}
    return sorted({layer.op for layer in done.placement.layers if layer.op in ops and layer.state == "float"})


def _recurrent(study: Study) -> list[str]:
    """Tell of recurrent layers, which stay in float, and how much of the weights they hold."""
    layers = [node for node in study.model.graph if node.op_type in _RECURRENT and node.domain == ""]
    held = {value for node in layers for value in node.inputs if value is not None and value.const_value is not None}
    inside = sum(_count(value) for value in held)
    if not inside:
        return []
    every = sum(_count(value) for value in study.model.graph.initializers.values())
    ops = ", ".join(sorted({node.op_type for node in layers}))
    do = "; --method dynamic has integers for LSTM" if "LSTM" in ops else ""
    return [f"{ops} stays in float, with {inside / every:.0%} of the weights: this method has no integers for it{do}"]


def _count(value: ir.Value) -> int:
    return 0 if value.const_value is None else int(value.const_value.size)
