"""bf16: weights and arithmetic in bfloat16, which has the range of fp32 and 8 bits; sums and positions stay in fp32."""

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
    """Raise ``UsageError`` for a consumer that bf16 is no use to."""
    from penstock.quantization.half.convert import need_floats
    from penstock.quantization.half.types import BF16

    need_floats(BF16, settings)


def quantize(
    model: Path, batches: Iterable[Mapping[str, np.ndarray]], settings: QuantizeSettings, into: Path
) -> Mapping[str, Json]:
    """Convert ``model``; see :class:`penstock.quantizers.Quantizer`."""
    from penstock.quantization.half.convert import write
    from penstock.quantization.half.types import BF16

    return write(BF16, model, batches, settings, into)
