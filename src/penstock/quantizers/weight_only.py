"""Weight-only quantization: the weights of MatMul and Gemm as 4 or 8 bit integers in blocks, activations in float.

It makes files small, and reading weights fast: what the time of a transformer goes into where few rows are computed at
once. Weights are rounded to the nearest (rtn), on grids by half-quadratic splitting (hqq), or so that those to come
make up for the error of each on the calibration samples (gptq).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from penstock import calibration, graph
from penstock.calibration import Batches
from penstock.errors import InputError, UsageError
from penstock.quantizers import FLOAT

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from penstock.jsonable import Json
    from penstock.quantization.block_layers import Kept
    from penstock.quantization.blocks import Form
    from penstock.stages.quantize import QuantizeSettings

NEEDS_SAMPLES = False  # GPTQ does, and looks at them itself
READS = frozenset({
    "consumer", "weight_bits", "block_size", "weight_rounding", "zero_points", "weight_format", "least_weights",
    "embeddings", "int8_activations",
})  # fmt: skip
BLOCKS = (0, 16, 32, 64, 128, 256)
OPSET, OPSET_OF_CHANNELS = 21, 13  # of DequantizeLinear with blocks, or with a scale for each column
SESSION_KEY = "session.qdq_matmulnbits_accuracy_level"


def available() -> str:
    """Return "": it needs nothing but ONNX Runtime, which is always there."""
    return ""


def need(settings: QuantizeSettings) -> None:
    """Raise ``UsageError`` for a form that nothing can run."""
    asked(settings)


def quantize(
    model: Path, batches: Iterable[Mapping[str, np.ndarray]], settings: QuantizeSettings, into: Path
) -> Mapping[str, Json]:
    """Quantize ``model``; see :class:`penstock.quantizers.Quantizer`."""
    from penstock.quantization import block_emit, block_layers, block_rounding, prepare

    form, nbits, rounding = asked(settings), settings.weight_format == "matmulnbits", settings.weight_rounding
    loaded, before = _prepared(model, form, settings.exclude, nbits)
    order = {block_layers.called(node): number for number, node in enumerate(graph.all_nodes(loaded))}
    exclude = prepare.fitting(filter(None, (node.name for node in graph.all_nodes(loaded))), settings.exclude)
    matrices, kept = block_layers.find(
        loaded, form, exclude=exclude, least=settings.least_weights, nbits=nbits, tables=settings.embeddings
    )
    if not matrices:
        raise InputError(
            "nothing-to-quantize", _nothing(kept), where=str(model), do=f"{FLOAT}, or try another --method"
        )
    divides = settings.consumer == "openvino"
    wanted = [(one, block_layers.fitting(form, one, divides=divides, nbits=nbits)) for one in matrices]
    seen = 0
    if rounding == "gptq":
        samples = batches if isinstance(batches, Batches) else calibration.of_list(batches)
        calibration.check(samples)
        seen, done = samples.count, block_rounding.by_gptq(loaded, wanted, samples)
    else:
        done = block_rounding.to_nearest(wanted, half=rounding == "hqq")
    size, stored, writer = block_layers.bytes_of(matrices), 0, block_emit.Writer(loaded)
    said: list[Json] = []
    layers: list[dict[str, Json]] = [
        {"node": one.node, "op": one.op, "state": "float", "reason": one.reason} for one in kept
    ]
    for matrix, held, told in done:
        stored += held.nbytes
        for node in matrix.nodes:
            layers.append({"node": block_layers.called(node), "op": node.op_type, "state": "weights", **told})
        if matrix.layout == "table":
            writer.table(matrix, held)
        elif nbits:
            writer.nbits(matrix, held, 4 if settings.int8_activations else 1)
        else:
            writer.standard(matrix, held)
            if settings.consumer == "ort-cpu":
                said += [name for node in matrix.nodes if (name := writer.unclip(node))]
    graph.tidy(loaded)
    graph.save(loaded, into)
    return {
        "method": "weight-only", "precision": f"int{form.bits}", "format": settings.weight_format,
        "rounding": rounding, "zero_points": form.zero, "block_size": form.size, "calibration_samples": seen,
        "opset_raised_from": before if loaded.opset_imports.get("") != before else None,
        "clipping_said_as_max": said, "weight_bytes_before": size, "weight_bytes_after": stored,
        **_session(nbits, settings),
        "layers": [*sorted(layers, key=lambda one: order.get(str(one["node"]), 0))],
    }  # fmt: skip


def _session(nbits: bool, settings: QuantizeSettings) -> dict[str, Json]:
    """Tell what a session of ONNX Runtime has to be told, where it would round activations of the standard form."""
    if nbits or settings.consumer != "ort-cpu":
        return {}
    told = f"ONNX Runtime rounds activations to int8 here unless its session sets {SESSION_KEY} to 1"
    return {"session_options": {SESSION_KEY: "1"}, "notes": [told]}


def asked(settings: QuantizeSettings) -> Form:
    """Return the form that the settings ask for. Raises ``UsageError`` for one that nothing can run."""
    from penstock.quantization.blocks import Form

    bits, size, zero = settings.weight_bits, settings.block_size, settings.zero_points
    nbits, consumer = settings.weight_format == "matmulnbits", settings.consumer
    wrong = {
        "--weight-bits": ("weights have 4 or 8 bits", bits not in (4, 8)),
        "--block-size": (f"a block has {', '.join(map(str, BLOCKS[1:]))} weights, or 0: all of a column",
                         size not in BLOCKS),
        "--zero-points": ("zero points that are no integers are MatMulNBits's, of 4 bits: --weight-format matmulnbits",
                          zero == "float" and not (nbits and bits == 4)),
        "--int8-activations": ("in the standard format that is the deployment's: a build measures both",
                               settings.int8_activations and not nbits),
    }  # fmt: skip
    for flag, (what, is_wrong) in wrong.items():
        if is_wrong:
            raise UsageError("bad-setting", what, where=flag, do="see docs/weight-only.md")
    unserved = {
        "it computes on integers alone, and activations stay in float: --method static": consumer == "integer-only",
        "TensorRT runs no MatMulNBits: --weight-format standard": nbits and consumer == "tensorrt",
        "TensorRT's weights have no zero points: --zero-points none": zero != "none" and consumer == "tensorrt",
    }
    for why, is_unserved in unserved.items():
        if is_unserved:
            what, _, do = f"the method 'weight-only' can't serve {consumer!r}: {why}".rpartition(": ")
            raise UsageError("wrong-consumer", what, where="--consumer", do=f"choose {do}")
    return Form(bits, size, zero)  # type: ignore[arg-type]  # one of its choices


def _prepared(path: Path, form: Form, exclude: tuple[str, ...], nbits: bool) -> tuple[ir.Model, int | None]:
    """Return the model, of an opset that has what will be written, and the opset that it had."""
    from penstock.quantization import prepare

    loaded = prepare.prepared(path, opset=1, exclude=exclude, need_finite=False)  # each matrix is looked at later
    before = loaded.opset_imports.get("")
    if nbits:
        return loaded, before
    try:
        made = prepare.raised(loaded, OPSET if form.size or form.bits == 4 else OPSET_OF_CHANNELS, path)
    except InputError as error:
        do = "--weight-format matmulnbits leaves the opset as it is, for ONNX Runtime alone"
        raise InputError(error.id, error.what, where=error.where, do=do) from error
    prepare.named(made)
    return made, before


def _nothing(kept: list[Kept]) -> str:
    """Say why no layer is left."""
    near = [one for one in kept if one.op in ("MatMul", "Gemm")]
    if not near:
        return "there is no MatMul or Gemm, whose weights are what this method stores in fewer bits"
    more = f" (the other {len(near) - 1} MatMul and Gemm have reasons of their own)" if len(near) > 1 else ""
    largest = max(near, key=lambda one: one.weights)
    return f"there are no weights to store in fewer bits: {largest.op} {largest.node!r}: {largest.reason}{more}"
