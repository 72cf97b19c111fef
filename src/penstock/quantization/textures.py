"""Textures: made-up inputs that vary as pictures and signals do, with a few parameters to fit.

For a picture, disks and bars of one colour each lie on each other, the small ones more often (dead leaves, Lee, Mumford
and Huang, 2001; Baradad et al., arXiv 2106.05963): they have the falling spectrum and the edges of photographs, which
noise hasn't. A signal is a sum of steps. Other inputs are noise. With t what all channels share, o a channel's own
part, w white noise, each of mean 0 and variance 1, channel c of a sample is::

    gain_c · ((t + own · o + white · w) / √(1 + own² + white²) + offset_c)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    Array = np.ndarray[Any, np.dtype[Any]]

SHAPES = 60  # that lie on each other in a picture; steps in a signal
MOST_CHANNELS = 8  # that get a gain and an offset each; more share one
OWN, WHITE = np.log(0.4), np.log(0.15)  # where the fit begins
LAST = (1, 3, 4)  # channels that a picture's last axis may be


@dataclass(frozen=True, slots=True)
class Texture:
    """The three parts of ``(N, …)`` samples, with the axis of channels; float32."""

    shared: Array
    own: Array
    white: Array
    axis: int
    channels: int  # that have parameters of their own

    @property
    def parameters(self) -> int:
        """How many numbers :meth:`made` takes: log gains, offsets, log own, log white."""
        return 2 * self.channels + 2

    def made(self, parameters: Array) -> Array:
        """Return the samples, float32."""
        count = self.channels
        gain, offset = np.exp(np.clip(parameters[:count], -14, 14)), parameters[count : 2 * count]
        own, white = (np.float32(one) for one in np.exp(np.clip(parameters[2 * count :], -6, 3)))
        shape = [1] * self.white.ndim
        shape[self.axis] = count
        spread = np.float32(1 / np.sqrt(1 + own**2 + white**2))
        mixed = (self.shared + own * self.own + white * self.white) * spread
        found: Array = gain.reshape(shape).astype(np.float32) * (mixed + offset.reshape(shape).astype(np.float32))
        return found

    def start(self, gain: float, offset: float) -> Array:
        """Return the parameters of a mean and a deviation that all channels share."""
        gains, offsets = np.full(self.channels, np.log(gain)), np.full(self.channels, offset / gain)
        return np.concatenate([gains, offsets, np.array([OWN, WHITE])])


def drawn(count: int, shape: tuple[int, ...], seed: int) -> Texture:
    """Draw ``count`` samples of a shape (without the axis of samples) from a seed."""
    random = np.random.RandomState(seed)
    axis = channel_axis(shape)
    channels = shape[axis - 1] if shape[axis - 1] <= MOST_CHANNELS else 1
    white = random.standard_normal((count, *shape)).astype(np.float32)
    if len(shape) not in (2, 3):
        shared = random.standard_normal((count, *(1 for _ in shape))).astype(np.float32)
        own = random.standard_normal((count, *shape)).astype(np.float32)
        return Texture(shared, own, white, axis, channels)
    places = tuple(size for place, size in enumerate(shape, 1) if place != axis)
    height, width = places if len(places) == 2 else (1, places[0])
    parts = np.stack([_leaves(random, shape[axis - 1] + 1, height, width) for _ in range(count)])
    parts = parts.reshape(count, -1, *places)
    moved = np.moveaxis(parts, 1, axis)
    shared, own = np.split(moved, [1], axis)
    return Texture(np.ascontiguousarray(shared), np.ascontiguousarray(own), white, axis, channels)


def channel_axis(shape: tuple[int, ...]) -> int:
    """Return the axis of channels of a sample, counted with the axis of samples."""
    return 3 if len(shape) == 3 and shape[2] in LAST and shape[0] not in LAST else 1


def _leaves(random: np.random.RandomState, channels: int, height: int, width: int) -> Array:
    """Return a picture of shapes on each other, ``(channels, H, W)``, of mean 0 and variance 1 over many of them."""
    made = np.empty((channels, height, width), np.float32)
    made[:] = random.uniform(-1, 1, (channels, 1, 1))
    reach = max(height, width) / 2
    for _ in range(SHAPES):
        radius, y, x = reach * random.uniform(0.1, 1) ** 2, random.uniform(0, height), random.uniform(0, width)
        turn, flat, colour = random.uniform(0, np.pi), random.uniform(0.3, 1), random.uniform(-1, 1, (channels, 1))
        top, left = max(int(y - 1.5 * radius), 0), max(int(x - 1.5 * radius), 0)
        part = made[:, top : int(y + 1.5 * radius) + 1, left : int(x + 1.5 * radius) + 1]
        rows, columns = np.ogrid[top : top + part.shape[1], left : left + part.shape[2]]
        if random.uniform() < 0.5:
            inside = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
        else:
            along, across = np.cos(turn), np.sin(turn)
            inside = np.abs((rows - y) * along + (columns - x) * across) < radius
            inside = inside & (np.abs((columns - x) * along - (rows - y) * across) < radius * flat)
        part[:, inside] = colour
    return made * np.float32(np.sqrt(3))
