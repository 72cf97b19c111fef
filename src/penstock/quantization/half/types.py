"""The two 16-bit floats: what they hold (IEEE 754 binary16, and the upper half of binary32), and rounding to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    Array = np.ndarray[Any, np.dtype[Any]]

Name = Literal["fp16", "bf16"]


@dataclass(frozen=True, slots=True)
class Half:
    """A 16-bit float. Values above ``largest`` become infinite, those below half of ``least`` 0."""

    name: Name
    onnx: str  # as ONNX calls it
    largest: float
    normal: float  # below, bits are lost
    least: float  # above 0; it has one bit of precision
    exact: int  # whole numbers up to this one are exact, and adding 1 to it has no effect
    least_db: float  # of a result when what it is computed from is rounded; below, a node is too delicate
    opset: int  # the first in which common networks have operators that suit it

    @property
    def dtype(self) -> ir.DataType:
        """The type, as onnx-ir knows it."""
        import onnx_ir as ir

        return ir.DataType[self.onnx]

    def narrow(self, array: Array) -> Array:
        """Return float32 values in this type, rounded to nearest, ties to even."""
        import numpy as np

        with np.errstate(over="ignore", under="ignore"):
            narrowed: Array = np.asarray(array, np.float32).astype(self.dtype.numpy())
        return narrowed

    def rounded(self, array: Array) -> Array:
        """Return float32 values as float32, as they come out of this type."""
        import numpy as np

        back: Array = self.narrow(array).astype(np.float32)
        return back


FP16 = Half("fp16", "FLOAT16", 65504.0, 2.0**-14, 2.0**-24, 2048, 40.0, 14)
BF16 = Half("bf16", "BFLOAT16", float.fromhex("0x1.fep127"), 2.0**-126, 2.0**-133, 256, 22.0, 22)
HALVES: dict[str, Half] = {half.name: half for half in (FP16, BF16)}
