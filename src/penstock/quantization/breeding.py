"""Breeding: samples that reach further into the model, made of each other.

Samples that are alike in every normalization's means still are no photographs: deep in the model, where layers answer
to things, textures leave them quiet, and ranges come out too narrow. In each generation every sample gets a piece of
another one, and keeps it where its outputs stand out more for it. What the last normalizations remember tells when
the samples spread as far as real ones did.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    Array = np.ndarray[Any, np.dtype[Any]]

LAID = 0.6  # of the pieces are laid over what was there; of the others the contrast is added
CONTRAST = 0.7
LEAST, MOST = 8, 2  # a piece is from an eighth to a half of the sample in each of its axes


def children(samples: Array, axis: int, random: np.random.RandomState) -> Array:
    """Return each of ``(N, …)`` samples with a piece of another; ``axis`` is that of channels, which stay together."""
    made = samples.copy()
    others = random.permutation(len(samples))
    places = [place for place in range(1, samples.ndim) if place != axis] or [axis]
    ends = tuple(place for place in range(samples.ndim) if place != axis)
    low, high = samples.min(axis=ends, keepdims=True), samples.max(axis=ends, keepdims=True)
    for i, other in enumerate(others):
        here, there = [slice(None)] * (samples.ndim - 1), [slice(None)] * (samples.ndim - 1)
        for place in places:
            size = samples.shape[place]
            length = random.randint(max(size // LEAST, 1), max(size // MOST, 1) + 1)
            for piece in (here, there):
                start = random.randint(0, size - length + 1)
                piece[place - 1] = slice(start, start + length)
        piece_of = samples[other][tuple(there)]
        if random.uniform() < LAID:
            made[i][tuple(here)] = piece_of
        else:
            across = tuple(place - 1 for place in places)
            made[i][tuple(here)] += np.float32(CONTRAST) * (piece_of - piece_of.mean(axis=across, keepdims=True))
    found: Array = np.clip(made, low, high)
    return found
