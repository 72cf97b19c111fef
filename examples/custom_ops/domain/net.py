"""A network that inverts a matrix, for which ONNX has no operator."""

import torch
from torch import nn


@torch.library.custom_op("acme::inverse", mutates_args=())
def inverse(x: torch.Tensor) -> torch.Tensor:
    """Return the inverse of a square matrix."""
    return torch.linalg.inv(x)


@inverse.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Net(nn.Module):
    """Whitens a batch by its own second moments, then classifies it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return four logits for each row."""
        moments = x.T @ x + torch.eye(8)
        logits: torch.Tensor = self.head(x @ torch.ops.acme.inverse(moments))
        return logits


def example_inputs() -> tuple[torch.Tensor, ...]:
    """Return one batch, so that no --input is needed."""
    return (torch.zeros(2, 8),)
