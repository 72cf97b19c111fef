"""A network with an operator of its own, which no exporter knows."""

import torch
from torch import nn


@torch.library.custom_op("acme::squash", mutates_args=())
def squash(x: torch.Tensor, limit: float) -> torch.Tensor:
    """Return x inside (-limit, limit): nearly x near zero, nearly the limit far away."""
    return x / (1 + (x / limit).abs())


@squash.register_fake
def _(x: torch.Tensor, limit: float) -> torch.Tensor:
    return torch.empty_like(x)  # dynamo asks for the shape, not for the values


class Net(nn.Module):
    """Two layers with the operator between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 32)
        self.last = nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return four logits."""
        logits: torch.Tensor = self.last(torch.ops.acme.squash(self.first(x), 2.0))
        return logits


def example_inputs() -> tuple[torch.Tensor, ...]:
    """Return one batch, so that no --input is needed."""
    return (torch.zeros(2, 16),)
