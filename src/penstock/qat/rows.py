"""Training samples of a data set, in an order and with distortions that follow from the seed and the epoch.

Imports torch: load it inside functions only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from penstock.data import Preprocessing, Split
from penstock.errors import InputError
from penstock.qat.settings import Recipe


@dataclass(frozen=True, slots=True)
class Rows:
    """Samples and how they become batches; ``names`` maps the data set's arrays to the model's inputs."""

    split: Split
    preprocessing: Preprocessing
    names: Mapping[str, str]
    recipe: Recipe
    seed: int
    key: str  # which data it is: its digest and the rows

    def __len__(self) -> int:
        """Return the batches of an epoch; a last one that would be smaller is left out, where there are others."""
        return max(len(self.split) // self.recipe.batch, 1)

    def epoch(self, number: int) -> Iterator[Mapping[str, Tensor]]:
        """Yield the batches of an epoch, counted from 0, as mappings with the labels among them."""
        rng = np.random.default_rng((self.seed, number))
        order = rng.permutation(len(self.split))
        for step in range(len(self)):
            index = order[step * self.recipe.batch : (step + 1) * self.recipe.batch]
            made = {}
            for name, array in self.split.arrays.items():
                raw = distorted(array[index], rng, self.recipe, channels_last=self.preprocessing.layout == "NCHW")
                made[self.names[name]] = torch.from_numpy(np.ascontiguousarray(self.preprocessing.apply(raw)))
            if self.split.labels is not None:
                made["labels"] = torch.from_numpy(self.split.labels[index].astype(np.int64))
            yield made


def need_images(split: Split, recipe: Recipe, *, channels_last: bool) -> None:
    """Raise ``InputError`` where distortions are asked for and the samples are no images that they fit."""
    if not (recipe.flip or recipe.crop):
        return
    flag = "--flip" if recipe.flip else "--crop"
    for array in split.arrays.values():
        if array.ndim != 4:
            what = f"{flag} moves the pixels of images, and the samples are {array.dtype}{list(array.shape[1:])}"
            raise InputError("data-wrong-shape", what, do=f"leave {flag} out")
        side = min(array.shape[1:3] if channels_last else array.shape[2:4])
        if recipe.crop >= side:
            what = f"--crop {recipe.crop} moves images of {side} pixels out of sight"
            raise InputError("data-wrong-shape", what, do=f"give --crop at most {side // 4}")


def distorted(raw: np.ndarray, rng: np.random.Generator, recipe: Recipe, *, channels_last: bool) -> np.ndarray:
    """Move each image by up to ``crop`` pixels on both axes, and mirror half of them if ``flip``.

    ``raw`` is ``(N, H, W, C)`` with ``channels_last``, else ``(N, C, H, W)``; other arrays stay as they are.
    """
    if raw.ndim != 4 or not (recipe.flip or recipe.crop):
        return raw
    images = raw if channels_last else np.moveaxis(raw, 1, -1)
    count, height, width, _ = images.shape
    pad = recipe.crop
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect") if pad else images
    rows = rng.integers(0, 2 * pad + 1, (count, 1)) + np.arange(height)
    columns = rng.integers(0, 2 * pad + 1, (count, 1)) + np.arange(width)
    if recipe.flip:
        mirrored = rng.random((count, 1)) < 0.5
        columns = np.where(mirrored, columns[:, ::-1], columns)
    made: np.ndarray = padded[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return made if channels_last else np.moveaxis(made, -1, 1)
