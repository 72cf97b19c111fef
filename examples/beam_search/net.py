"""A beam search as one graph: a loop that keeps the best beams and stops when all of them have ended.

The step is a tiny language model with random weights; what matters is the loop.
"""

import torch
from torch import nn
from torch._higher_order_ops.while_loop import while_loop

BEAMS, LENGTH, END = 3, 12, 0


class BeamSearch(nn.Module):
    """``(words,)`` scores of the first word in; ``(beams, length)`` int64 tokens and ``(beams,)`` scores out."""

    def __init__(self, words: int = 16, width: int = 24) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.embed = nn.Parameter(torch.randn(words, width))
        self.score = nn.Linear(width, words)
        self.score.bias.data[END] = 2.5  # most searches end before the longest text
        self.words = words

    def forward(self, first: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        begin = torch.topk(first.log_softmax(0), BEAMS)
        place = torch.arange(LENGTH)
        tokens = torch.where(place == 0, begin.indices.unsqueeze(1), torch.zeros(1, LENGTH, dtype=torch.int64))
        last = begin.indices + 0

        def running(at: torch.Tensor, tokens: torch.Tensor, last: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return torch.logical_and(at < LENGTH, (last != END).any())

        def step(
            at: torch.Tensor, tokens: torch.Tensor, last: torch.Tensor, scores: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
            following = self.score(torch.tanh(self.embed[last])).log_softmax(1)
            ended = torch.where(torch.arange(self.words) == END, 0.0, -1e9)  # a beam that has ended stays as it is
            following = torch.where((last == END).unsqueeze(1), ended, following)
            best = torch.topk((scores.unsqueeze(1) + following).flatten(), BEAMS)
            beam, word = best.indices // self.words, best.indices % self.words
            tokens = torch.where(torch.arange(LENGTH) == at, word.unsqueeze(1), tokens[beam])
            return at + 1, tokens, word, best.values

        state = (torch.tensor(1), tokens, last, begin.values + 0)
        _, tokens, _, scores = while_loop(running, step, state)
        return tokens, scores


def example_inputs() -> tuple[torch.Tensor, ...]:
    """Return scores of a first word."""
    return (torch.linspace(-1, 1, 16),)


def probe() -> list[torch.Tensor]:
    """Return starts after which the search takes few and many steps."""
    ends = torch.linspace(-31, -30, 16)
    ends[END] = 30.0
    return [ends, torch.linspace(1, -1, 16), torch.sin(torch.arange(16.0))]
