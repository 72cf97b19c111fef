"""Dynamic quantization: int8 weights in the file, activations quantized at run time. It needs no calibration data.

What becomes of each kind of node stands in :mod:`penstock.quantization.dynamic`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from penstock import graph
from penstock.errors import InputError, UsageError
from penstock.quantizers import FLOAT

if TYPE_CHECKING:
    import numpy as np

    from penstock.jsonable import Json
    from penstock.quantization.placement import Layer
    from penstock.stages.quantize import QuantizeSettings

NEEDS_SAMPLES = False
READS = frozenset({
    "consumer", "activations", "format", "quantize_outputs", "per_channel", "force_small", "force_conv", "target_cpu",
})  # fmt: skip
_OPSET = 11  # the first with DynamicQuantizeLinear
_UNSERVED = {
    "integer-only": "it has no float arithmetic, and ranges are found in float at run time",
    "openvino": "OpenVINO computes its integers in many steps, slower than it computes the float model",
    "tensorrt": "TensorRT has no DynamicQuantizeLinear",
}


def available() -> str:
    """Return "": it runs nothing."""
    return ""


def quantize(
    model: Path, batches: Iterable[Mapping[str, np.ndarray]], settings: QuantizeSettings, into: Path
) -> Mapping[str, Json]:
    """Quantize ``model``; see :class:`penstock.quantizers.Quantizer`. ``batches`` aren't looked at."""
    from penstock.quantization import dynamic, prepare, saturation

    need(settings)
    loaded = graph.load(model)
    prepare.refuse_quantized(loaded, model)
    graph.inline(loaded)
    before = prepare.results(loaded)
    made = prepare.raised(prepare.folded(loaded), _OPSET, model)
    prepare.named(made)
    exclude = prepare.known_names(made, settings.exclude, before)
    bits = saturation.bits(settings.target_cpu)
    wanted = dynamic.Wanted(exclude, settings.per_channel, settings.force_small, settings.force_conv, bits)
    layers, weights = dynamic.quantize(made, wanted)
    done = [layer for layer in layers if layer.state == "integer"]
    if not done:
        flags = [flag for flag in ("--force-small", "--force-conv") if any(flag in layer.reason for layer in layers)]
        do = FLOAT + (f", or use {' and '.join(flags)}" if flags else "")
        raise InputError("nothing-to-quantize", _nothing(layers), where=str(model), do=do)
    left = sorted({layer.op for layer in layers if layer.state == "float"})
    graph.tidy(made)
    graph.save(made, into)
    return {
        "method": "dynamic", "precision": "int8", "format": "dynamic", "activations": "uint8", "weights": "int8",
        "per_channel": settings.per_channel, "calibration_samples": 0,
        "calibration": "none: every tensor's range is taken anew in each run, over all samples of its batch",
        "consumer": settings.consumer, "target_cpu": settings.target_cpu, "weight_bits": bits,
        "notes": [saturation.unmeasured(settings.target_cpu)] if bits < 8 else [],
        "operators_left_in_float": list(left),
        "layers": [
            {"node": one.node, "op": one.op, "state": one.state, "reason": one.reason, **weights.get(one, {})}
            for one in layers
        ],
    }  # fmt: skip


def need(settings: QuantizeSettings) -> None:
    """Raise ``UsageError`` for settings that this method can't serve."""
    if settings.consumer in _UNSERVED:
        what = f"the method 'dynamic' can't serve {settings.consumer!r}: {_UNSERVED[settings.consumer]}"
        raise UsageError("wrong-consumer", what, where="--method dynamic", do="choose --method static")
    if settings.activations not in ("", "uint8"):
        what = f"at run time activations become uint8, not {settings.activations}"
        raise UsageError("bad-setting", what, where="--activations", do="leave it out, or choose --method static")
    if settings.quantize_outputs:
        what = "the results of dynamically quantized layers are float"
        raise UsageError("bad-setting", what, where="--quantize-outputs", do="leave it out, or choose --method static")
    if settings.format != "qdq":
        what = f"the method 'dynamic' has one form of its own, and can't write {settings.format!r}"
        raise UsageError("bad-setting", what, where="--format", do="leave it out, or choose --method static")


def _nothing(layers: tuple[Layer, ...]) -> str:
    """Say why nothing could be quantized."""
    if not layers:
        return "there is nothing worth quantizing: no MatMul, Gemm or LSTM"
    reasons = {f"{layer.op}: {layer.reason}": None for layer in layers}
    return f"there is nothing worth quantizing: {'; '.join(list(reasons)[:3])}"
