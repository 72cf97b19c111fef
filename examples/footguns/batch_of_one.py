"""A program exported by hand with a batch of one: torch fixes the axis without a word.

python batch_of_one.py before.pt2 after.pt2
"""

import sys

import torch
from torch import nn


class Net(nn.Module):
    """A classifier of rows of twelve."""

    def __init__(self) -> None:
        super().__init__()
        self.classify = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classify(x).softmax(1)


def save(before: str, after: str) -> None:
    """Save the program twice: with the batch fixed at one, and with a free one."""
    torch.manual_seed(0)
    module = Net().eval()
    torch.export.save(torch.export.export(module, (torch.randn(1, 12),)), before)
    batch = torch.export.Dim("batch")
    torch.export.save(torch.export.export(module, (torch.randn(2, 12),), dynamic_shapes=({0: batch},)), after)


if __name__ == "__main__":
    save(*sys.argv[1:])
