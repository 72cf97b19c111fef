"""A network of equal blocks, which the export can keep as one function."""

import torch
from torch import nn


class Block(nn.Module):
    """A residual block: what comes in plus what two layers make of it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first = nn.Linear(width, 2 * width)
        self.second = nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a tensor of the same shape."""
        inner: torch.Tensor = self.second(torch.relu(self.first(self.norm(x))))
        return x + inner


class Net(nn.Module):
    """Three blocks and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(32) for _ in range(3)])
        self.head = nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return four logits."""
        for block in self.blocks:
            x = block(x)
        logits: torch.Tensor = self.head(x)
        return logits


def example_inputs() -> tuple[torch.Tensor, ...]:
    """Return one batch, so that no --input is needed."""
    return (torch.zeros(2, 32),)
