"""A comparison that leaves the graph without any warning of the tracer's.

Only inputs that take the other side show that the trace lost something: ``probe`` returns them.
"""

import torch
from torch import nn


class Before(nn.Module):
    """``torch.equal`` gives a Python bool: are these pixels from 0 to 255, or are they scaled already?"""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.equal(x, x.round()):
            return x / 255
        return x + 0


class After(nn.Module):
    """The same with both sides in the graph."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where((x == x.round()).all(), x / 255, x + 0)


def probe() -> torch.Tensor:
    """Return inputs that take the other side."""
    return torch.full((2, 4), 255.0)
