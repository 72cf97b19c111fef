"""A small network for images of 32x32 pixels: BatchNorm, a depthwise convolution, a residual and dropout."""

import torch
from torch import nn


class SmallNet(nn.Module):
    """Input ``(N, 3, 32, 32)`` float32, output ``(N, 10)`` logits."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 24, 5, stride=2, padding=2), nn.BatchNorm2d(24), nn.ReLU())
        self.depthwise = nn.Sequential(nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.BatchNorm2d(24), nn.ReLU6())
        self.point = nn.Conv2d(24, 24, 1)
        self.last = nn.Sequential(nn.Conv2d(24, 48, 3, stride=2, padding=1), nn.BatchNorm2d(48), nn.ReLU())
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(48 * 16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        x = self.first(x)
        x = torch.relu(x + self.point(self.depthwise(x)))
        x = nn.functional.max_pool2d(self.last(x), 2)
        logits: torch.Tensor = self.head(self.drop(torch.flatten(x, 1)))
        return logits


def example_inputs() -> torch.Tensor:
    """Return a batch to export with."""
    return torch.zeros(2, 3, 32, 32)
