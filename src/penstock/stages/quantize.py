"""Quantize: from a float model and calibration data to an int8 model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from penstock import apart, registry
from penstock.errors import InputError, MissingError
from penstock.settings import option

if TYPE_CHECKING:
    import numpy as np

    from penstock.jsonable import Json
    from penstock.quantizers import Quantizer


CONSUMERS = ("ort-cpu", "openvino", "integer-only", "tensorrt")
ACTIVATIONS = ("uint8", "int8", "uint16", "int16")
RANGES = ("minmax", "moving-average", "percentile", "entropy", "mse")


@dataclass(frozen=True, slots=True)
class QuantizeSettings:
    """How a model is quantized."""

    quantize: bool = option(True, "make quantized variants", flag="--quantize/--no-quantize")
    method: str = option("static", "quantization method, see `penstock list quantizers`")
    consumer: str = option("ort-cpu", "what will run it: decides which tensors are quantized", choices=CONSUMERS)
    activations: str = option("", "type of activations (default: the consumer's own)", choices=("", *ACTIVATIONS))
    ranges: str = option("mse", "how ranges are chosen from what calibration saw", choices=RANGES)
    percentile: float = option(99.99, "share of the values in per cent that `--ranges percentile` keeps", minimum=50)
    per_channel: bool = option(True, "one scale per output channel of a weight", flag="--per-channel/--per-tensor")
    quantize_outputs: bool = option(False, "quantize the result of the last layer too, which clips it")
    calibration_batch: int = option(32, "samples per calibration batch, where the model's batch is dynamic", minimum=1)
    exclude: tuple[str, ...] = option((), "names of nodes to leave in float")
    half_compute: bool = option(
        True, "fp16, bf16: compute in 16 bits, not only store the weights so", flag="--half-compute/--half-storage"
    )
    half_margin: float = option(2.0, "fp16, bf16: how many times larger values may be than on the samples", minimum=1)


def quantize(
    model: Path, batches: Iterable[Mapping[str, np.ndarray]], settings: QuantizeSettings, into: Path
) -> Mapping[str, Json]:
    """Write the quantized model to the file ``into``; return facts for the record.

    ``batches`` are calibration feeds of equal size. Raises ``InputError`` for a model that can't be quantized.
    """
    name = settings.method
    method = cast("Quantizer", registry.load("quantizers", name))
    if apart.foreign("quantizers", name):
        return apart.quantize(name, model, batches, settings, into)
    facts = quantize_with(method, model, batches, settings, into)
    if not into.is_file():
        what, do = f"the quantizer {name!r} wrote no model", "tell its authors, or choose another: --method"
        raise InputError("plug-in-failed", what, where=str(model), do=do)
    return facts


def quantize_with(
    method: Quantizer, model: Path, batches: Iterable[Mapping[str, np.ndarray]], settings: QuantizeSettings, into: Path
) -> dict[str, Json]:
    """Quantize by a method that was found, in this process. Raises ``MissingError`` where it can't run here."""
    name = settings.method
    with registry.blamed("quantizers", name):
        if problem := method.available():
            raise MissingError("missing-extra", f"the quantizer {name!r} can't run here", do=problem)
        return dict(method.quantize(model, batches, settings, into) or {})
