"""A branch on the values of the input: a trace keeps the side that the example took."""

import torch
from torch import nn


class Before(nn.Module):
    """Python decides, once, while the trace is taken."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x * 2
        return x - 1


class After(nn.Module):
    """The graph decides, at every run."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x.sum() > 0, x * 2, x - 1)
