"""``squeeze()`` without an axis drops every axis of size one, so a batch of one loses its own."""

import torch
from torch import nn


class Before(nn.Module):
    """Right for two images, another shape for one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        score = x.mean(1, keepdim=True).squeeze()
        return score if x.shape[0] > 1 else score.unsqueeze(0)


class After(nn.Module):
    """The axis is named."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(1, keepdim=True).squeeze(1)
