"""A module of one's own, as `penstock build net.py:SmallNet` reads it.

Penstock builds the class without arguments, so every parameter of ``__init__`` has a default. Where a class needs
arguments, write a function without any that returns the module, and name that one after the colon.
"""

import torch
from torch import nn


class SmallNet(nn.Module):
    """Two convolutions and a classifier: ``(N, 3, 32, 32)`` float32 in, ``(N, 10)`` logits out."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        torch.manual_seed(0)  # without --weights, so that every build sees the same numbers
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(32)
        self.pool = nn.MaxPool2d(2)
        self.classify = nn.Linear(32 * 8 * 8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(torch.relu(self.norm1(self.conv1(x))))
        x = self.pool(torch.relu(self.norm2(self.conv2(x))))
        return self.classify(torch.flatten(x, 1))


def example_inputs() -> tuple[torch.Tensor, ...]:
    """Return one example for each input, in the order of ``forward``. ``--input`` goes before it."""
    return (torch.zeros(2, 3, 32, 32),)
