"""fp16: weights and arithmetic in half floats, which reach 65504; what leaves that range stays in fp32, by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from penstock.jsonable import Json
    from penstock.stages.quantize import QuantizeSettings


READS = frozenset({"consumer", "half_compute", "half_margin"})


def available() -> str:
    """Return "": it needs nothing but ONNX Runtime, which is always there."""
    return ""


def need(settings: QuantizeSettings) -> None:
    """Raise ``UsageError`` for a consumer that fp16 is no use to."""
    from penstock.quantization.half.convert import need_floats
    from penstock.quantization.half.types import FP16

    need_floats(FP16, settings)


def quantize(
    model: Path, batches: Iterable[Mapping[str, np.ndarray]], settings: QuantizeSettings, into: Path
) -> Mapping[str, Json]:
    """Convert ``model``; see :class:`penstock.quantizers.Quantizer`."""
    from penstock.quantization.half.convert import write
    from penstock.quantization.half.types import FP16

    return write(FP16, model, batches, settings, into)
