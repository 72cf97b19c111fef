"""A branch on a size: dynamo takes the side of two or more, without a word, and a batch of one comes out wrong."""

import torch
from torch import nn


class Before(nn.Module):
    """Scores less their mean over the batch; a single one is left as it is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        score = x.mean(1)
        if x.shape[0] == 1:
            return score
        return score - score.mean()


class After(nn.Module):
    """The size in the graph: a sum of ones over the batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        score = x.mean(1)
        several = torch.ones_like(score).sum() > 1
        return torch.where(several, score - score.mean(), score)
