"""Quantization methods: one file each, found by the registry; each offers what :class:`Quantizer` asks for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from penstock.jsonable import Json

if TYPE_CHECKING:
    import numpy as np

    from penstock.stages.quantize import QuantizeSettings


FLOAT = "use the float model as it is"  # the cure where a method finds nothing; a build goes on by itself


class Quantizer(Protocol):
    """One way to make a quantized model.

    A method that looks at no samples has ``NEEDS_SAMPLES = False``: then there may be none, and they aren't checked.
    ``READS`` are the names of the settings that it reads, beside ``exclude``: others that are asked for with it are an
    error; without ``READS`` none is. ``need(settings)``, if there is one, raises ``UsageError`` for what isn't served.
    """

    def available(self) -> str:
        """Return "" when the method can run here, else why not and what to install."""

    def quantize(
        self, model: Path, batches: Iterable[Mapping[str, np.ndarray]], settings: QuantizeSettings, into: Path
    ) -> Mapping[str, Json]:
        """Write the quantized model to the file ``into``; return facts for the record.

        ``batches`` are calibration feeds of equal size in the model's form.
        Raises ``InputError`` for a model that can't be quantized, with the reason.
        """
