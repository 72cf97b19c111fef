"""A size taken out of the shape as a Python number: the model holds for the example's batch alone."""

import torch
from torch import nn


class Before(nn.Module):
    """``int()`` makes a constant of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.classify = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = int(x.shape[0])
        return self.classify(x.reshape(rows, 12))


class After(Before):
    """The size stays a size of the graph."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classify(x.reshape(x.shape[0], 12))
