"""Static quantization: integers for activations and weights, on grids that are chosen from calibration samples.

x ≈ scale · (integer − zero point): activations on grids with a zero point, weights on symmetric ones with a scale for
each output channel, biases int32 (Jacob et al., arXiv 1712.05877). What is quantized goes by the consumer's table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from penstock import calibration, graph
from penstock.calibration import Batches
from penstock.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from penstock.jsonable import Json
    from penstock.stages.quantize import QuantizeSettings


def available() -> str:
    """Return "": it needs nothing but ONNX Runtime, which is always there."""
    return ""


def quantize(
    model: Path, batches: Iterable[Mapping[str, np.ndarray]], settings: QuantizeSettings, into: Path
) -> Mapping[str, Json]:
    """Quantize ``model``; see :class:`penstock.quantizers.Quantizer`."""
    from penstock.quantization import prepare
    from penstock.quantization.study import Choice, Study

    samples = batches if isinstance(batches, Batches) else calibration.of_list(batches)
    wide = settings.activations in ("int16", "uint16")
    loaded = prepare.prepared(model, opset=21 if wide else prepare.OPSET, exclude=settings.exclude)
    choice = Choice(
        settings.consumer, settings.activations, settings.ranges, settings.percentile, settings.per_channel,
        outputs=settings.quantize_outputs, exclude=settings.exclude,
    )  # fmt: skip
    study = Study(loaded, samples)
    if not study.placed(choice).weights:
        what = "there is nothing worth quantizing"
        raise InputError("nothing-to-quantize", what, where=str(model), do="build with --no-quantize")
    made = study.quantized(choice)
    graph.tidy(made)
    graph.save(made, into)
    return {"method": "static"}
