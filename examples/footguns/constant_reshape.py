"""A reshape to the sizes that the example happened to have."""

import torch
from torch import nn


class Before(nn.Module):
    """The 2 is the example's batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pairs = x.transpose(1, 2).reshape(2, 12)
        return pairs.relu()


class After(nn.Module):
    """The axis that moves is left to the reshape."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pairs = x.transpose(1, 2).reshape(-1, 12)
        return pairs.relu()
