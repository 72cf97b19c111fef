"""A loop whose number of steps depends on the input: a trace unrolls the example's steps."""

import torch
from torch import nn


@torch.jit.script
def halve_until_small(x: torch.Tensor) -> torch.Tensor:
    """Halve until the largest value is at most one; scripted, so that the loop reaches the graph."""
    while bool(x.abs().max() > 1.0):
        x = x * 0.5
    return x


class Before(nn.Module):
    """Python counts the steps, once."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(int(x.abs().max())):
            x = x * 0.5
        return x


class After(nn.Module):
    """The loop is in the graph."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return halve_until_small(x) + 0
