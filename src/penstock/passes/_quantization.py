"""How a QuantizeLinear or DequantizeLinear quantizes, and when quantizing undoes dequantizing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from penstock.rewriting import Refusal
from penstock.rewriting.site import Site, attribute

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

SPANS = {"INT8": 255, "UINT8": 255, "INT4": 15, "UINT4": 15, "INT2": 3, "UINT2": 3, "INT16": 65535, "UINT16": 65535}


@dataclass(frozen=True, slots=True)
class Quantization:
    """``real = (integer - zero) * scale``: by one scale, or by one for each index of ``axis``, or of blocks of it."""

    dtype: ir.DataType
    scale: Array
    zero: Array
    axis: int
    block: int
    real: ir.DataType

    @property
    def per_tensor(self) -> bool:
        """Whether one scale holds for all elements."""
        return self.scale.size == 1

    def difference(self, other: Quantization) -> str:
        """Say in what they differ, in nothing: ''."""
        if self.dtype != other.dtype:
            return f"the types differ: {self.dtype.name} and {other.dtype.name}"
        if self.real != other.real:
            return f"the scales are {self.real.name} and {other.real.name}"
        if self.scale.shape != other.scale.shape or (self.scale != other.scale).any():
            return "the scales differ"
        if (self.zero != other.zero).any():
            return "the zero points differ"
        if not self.per_tensor and (self.axis, self.block) != (other.axis, other.block):
            return "the axes differ"
        return ""

    def inexact(self) -> str:
        """Say why quantizing wouldn't give back every integer that was dequantized; where it does: ''.

        With ``u`` the rounding unit of the scale's type (2⁻²⁴, 2⁻¹¹), k·s and the division by s are off by at most one
        ``u`` each, so that ``|k|·2u < 1/2`` keeps the nearest integer, as long as no product overflows or is subnormal.
        """
        import numpy as np

        span = SPANS.get(self.dtype.name)
        if span is None or self.real.name not in ("FLOAT", "FLOAT16"):
            return f"{self.dtype.name} scaled by {self.real.name} doesn't come back as it was"
        info = np.finfo(self.real.numpy())
        if span * float(info.eps) >= 0.5:
            return f"{self.dtype.name} scaled by {self.real.name} doesn't come back as it was"
        size = np.abs(self.scale.astype(np.float64))
        if not ((size >= float(info.tiny)) & (size * span <= float(info.max))).all():
            return "a scale is 0, not a number, or too small or large for its type"
        return ""


def quantization(node: ir.Node, site: Site) -> Quantization:
    """Read how a node quantizes. Raises ``Refusal`` where that isn't constant."""
    import numpy as np

    if attribute(node, "precision", 0) or attribute(node, "output_dtype", 0):
        raise Refusal("it computes in a type of its own")
    integers = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
    scale, tensor = site.array(node.inputs[1]), site.tensor(node.inputs[1])
    point = node.inputs[2] if len(node.inputs) > 2 else None
    zero = site.array(point)
    if scale is None or tensor is None or (point is not None and zero is None):
        raise Refusal("its scale or zero point isn't constant")
    rank = site.rank(node.inputs[0])
    if integers is None or integers.dtype is None or rank is None:
        raise Refusal("the type or the rank of what it reads isn't known")
    if zero is not None and zero.size != scale.size:
        raise Refusal(f"it has {zero.size} zero points for {scale.size} scales")
    if scale.size == 1:
        scale = scale.reshape(())
    axis = int(attribute(node, "axis", 1))
    numbers = np.zeros(scale.shape) if zero is None else zero.astype(np.float64).reshape(scale.shape)
    block = int(attribute(node, "block_size", 0))
    return Quantization(integers.dtype, scale, numbers, axis % rank if rank else 0, block, tensor.dtype)
