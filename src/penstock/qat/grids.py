"""Grids that are learned: the scale and the zero point of a quantized tensor, the scales of a layer's weights.

What a grid is at any moment is a :class:`penstock.quantization.grid.Grid`: the same object serves the file that is
written. Imports torch: load it inside functions only.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from penstock.qat.fake import rounded, rounded_by_channel
from penstock.quantization.grid import SMALLEST, Grid

INT32_ROOM = float(2**30)  # a bias on the grid of products stays below half of int32, as the static quantizer's does


class Activations(nn.Module):
    """The grid of one or more tensors.

    Where its range begins or ends at 0, or 0 lies in its middle, the zero point stays. Else it moves with ``shift``,
    by all steps of the grid where ``shift`` is as large as the scale was: so both move the range's ends at one pace.
    """

    def __init__(self, grid: Grid, *, learned: bool) -> None:
        super().__init__()
        self.kind, self.low, self.high = grid.dtype, grid.low, grid.high
        first, zero = float(grid.scale), int(grid.zero)
        self.scale = nn.Parameter(torch.tensor(first), requires_grad=learned)
        self.register_buffer("first_zero", torch.tensor(float(zero)))
        unit = (grid.high - grid.low) / first if first > SMALLEST else 0.0
        self.register_buffer("unit", torch.tensor(unit))  # steps for each unit of shift
        self.ends_at_zero = zero == grid.low
        fixed = zero in (grid.low, grid.high) or 2 * zero == grid.low + grid.high or not unit
        self.shift = nn.Parameter(torch.zeros(()), requires_grad=learned and not fixed)

    def effective(self) -> tuple[Tensor, Tensor]:
        """Return the scale and the zero point before it is rounded, both of shape ``()``."""
        zero = (cast(Tensor, self.first_zero) + self.shift * cast(Tensor, self.unit)).clamp(self.low, self.high)
        return self.scale.abs().clamp_min(SMALLEST), zero

    def forward(self, x: Tensor) -> Tensor:
        """Round a tensor."""
        scale, zero = self.effective()
        return rounded(x, scale, zero, self.low, self.high, samples=x.shape[0] if x.ndim else 1)

    @torch.no_grad()
    def grid(self) -> Grid:
        """Return the grid as it is now."""
        scale, zero = self.effective()
        whole = np.array(round(zero.item()))
        return Grid(self.kind, scale.cpu().numpy().astype(np.float32).reshape(()), whole, None, self.low, self.high)


class Weights(nn.Module):
    """The symmetric grid of a layer's weights, with a scale for each channel, or one; and that of its bias."""

    def __init__(self, grid: Grid, *, learned: bool, whole_bias: bool) -> None:
        super().__init__()
        self.kind, self.axis, self.low, self.high = grid.dtype, grid.axis, grid.low, grid.high
        self.whole_bias = whole_bias
        self.scale = nn.Parameter(torch.from_numpy(grid.scale.astype(np.float32)), requires_grad=learned)

    def effective(self, bias: Tensor | None, data: Tensor) -> Tensor:
        """Return the scales ``(n,)`` or ``()``; large enough for the bias to be int32 on the grid of products.

        ``data`` is the scale of what the layer reads.
        """
        scale = self.scale.abs().clamp_min(SMALLEST)
        if bias is None or not self.whole_bias:
            return scale
        least = bias.detach().double().abs() / (data.detach().double() * INT32_ROOM)
        if scale.ndim == 0:
            least = least.max()
        elif len(least) != len(scale):
            even = len(least) % len(scale) == 0
            least = least.reshape(-1, len(scale)).amax(0) if even else least.max().expand(len(scale))
        return torch.maximum(scale, least.to(scale.dtype))

    def forward(self, weight: Tensor, bias: Tensor | None, data: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return weights and bias on their grids."""
        scale = self.effective(bias, data)
        shaped = scale
        if self.axis is not None:
            shape = [1] * weight.ndim
            shape[self.axis] = -1
            shaped = scale.reshape(shape)
        made = rounded_by_channel(weight, shaped, self.low, self.high)
        if bias is None or not self.whole_bias:
            return made, bias
        products = (data * scale).detach()
        if products.ndim:
            products = products.repeat(len(bias) // len(products))
        # int32 spares the float 1 in 2³⁰ at most, so that nothing is learned of it
        near = ((bias / products).round() * products).detach()
        return made, near + (bias - bias.detach())

    @torch.no_grad()
    def grid(self, bias: Tensor | None, data: Tensor) -> Grid:
        """Return the grid of the weights as it is now."""
        scale = self.effective(bias, data).cpu().numpy().astype(np.float32)
        return Grid(self.kind, scale, np.zeros(scale.shape, np.int64), self.axis, self.low, self.high)
