"""A small network with an early exit: easy images leave after the first stage, the graph decides at every run."""

import torch
from torch import nn


class EarlyExit(nn.Module):
    """``(N, 3, 32, 32)`` float32 in, ``(N, 10)`` logits out; all images of a batch take the same exit.

    The exit is taken where the mean confidence of the first classifier reaches ``threshold``.
    """

    def __init__(self, threshold: float = 0.35) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.threshold = threshold
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU())
        self.early = nn.Linear(32, 10)
        self.rest = nn.Sequential(nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(), nn.Conv2d(64, 64, 3, 1, 1), nn.ReLU())
        self.late = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.stem(x)
        logits = self.early(features.mean((2, 3))) * 8
        confidence = logits.softmax(1).max(1).values.mean()

        def leave(features: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
            return logits + 0

        def go_on(features: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
            return logits + self.late(self.rest(features).mean((2, 3)))

        return torch.cond(confidence > self.threshold, leave, go_on, (features, logits))


def example_inputs() -> tuple[torch.Tensor, ...]:
    """Return a batch that takes one of the exits."""
    return (torch.zeros(2, 3, 32, 32),)


def probe() -> list[torch.Tensor]:
    """Return inputs for both exits: bright ones are told early, dark ones late."""
    return [torch.full((2, 3, 32, 32), value) for value in (0.0, 20.0)]
