"""What the ONNX graph's values are in the net, and the words that all rules share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from penstock.tflite.flatfile import Array, Tensor

LAST, BACK = (0, 2, 3, 1), (0, 3, 1, 2)  # the order of axes that brings channels last, and back
WHOLE = "it computes on whole numbers themselves, not on what they stand for"
ACTIVATIONS = {"": 0, "relu": 1, "relu6": 3}  # as the schema numbers them


class RefusedError(Exception):
    """A node can't be said in TFLite's operators; the text says why."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a value of the ONNX graph is in the net.

    ``last``: the tensor has the value's axes in the order of :data:`LAST`. ``flat``: it is a value (N, C·H·W) whose
    columns go by H, W and C; those are the sizes (C, H, W).
    """

    tensor: Tensor
    last: bool = False
    flat: tuple[int, int, int] | None = None


@dataclass(frozen=True, slots=True)
class Integers:
    """A constant on a grid, as it stands before a DequantizeLinear: int8 or int32 whole numbers."""

    whole: Array
    scale: Array
    zero_point: Array
    axis: int

    @property
    def real(self) -> Array:
        """The numbers that they stand for, float32."""
        shape = [1] * self.whole.ndim
        if self.scale.size > 1:
            shape[self.axis] = -1
        scale, zero = self.scale.reshape(shape or [1]), self.zero_point.reshape(shape or [1])
        found: Array = ((self.whole.astype(np.float32) - zero.astype(np.float32)) * scale).astype(np.float32)
        return found.reshape(self.whole.shape)
