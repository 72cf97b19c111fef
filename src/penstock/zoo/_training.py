"""The training loop of the zoo's networks: seeded, resumable, on the CPU. Imports torch: load it inside functions only.

One cycle of SGD with Nesterov momentum, random crops and flips per sample, cutout, label smoothing, and an
exponential moving average of the weights. Every epoch seeds its own generators from ``(seed, epoch)``, so a resumed
run sees the same crops as an undisturbed one.
"""

from __future__ import annotations

import copy
import io
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from penstock import store
from penstock.zoo.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one epoch gave: losses are cross-entropies, accuracies fractions in [0, 1]."""

    index: int
    of: int
    train_loss: float
    held_out_accuracy: float
    averaged_accuracy: float
    seconds: float


def augment(
    padded: torch.Tensor, index: torch.Tensor, recipe: Recipe, generator: torch.Generator, *, cutout: bool
) -> torch.Tensor:
    """Crop, flip and cut out a batch.

    ``padded`` is ``(N, H+2p, W+2p, 3)`` uint8, ``index`` the batch's rows in it.
    Returns ``(B, 3, H, W)`` float32 in channels-last memory, preprocessed as the recipe says.
    """
    size, batch = recipe.image_size, len(index)
    reach = padded.shape[1] - size + 1
    steps = torch.arange(size)
    rows = torch.randint(0, reach, (batch, 1), generator=generator) + steps
    flip = torch.rand((batch, 1), generator=generator) < recipe.flip_probability
    columns = torch.randint(0, reach, (batch, 1), generator=generator) + torch.where(flip, size - 1 - steps, steps)
    images = padded[index[:, None, None], rows[:, :, None], columns[:, None, :]]
    pixels = normalise(images, recipe)
    if cutout and recipe.cutout:
        corner = torch.randint(1 - recipe.cutout, size, (2, batch, 1), generator=generator)
        inside = (steps >= corner) & (steps < corner + recipe.cutout)
        hole = inside[0][:, :, None] & inside[1][:, None, :]
        pixels.masked_fill_(hole[..., None], 0.0)
    return pixels.permute(0, 3, 1, 2)


def normalise(images: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """Bring uint8 pixels ``(..., 3)`` to the network's float32 input: ``(x / 255 - mean) / std`` per channel."""
    mean, std = torch.tensor(recipe.mean), torch.tensor(recipe.std)
    return (images.float() * (1.0 / 255.0) - mean) / std


@torch.no_grad()
def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, recipe: Recipe) -> float:
    """Measure top-1 in [0, 1] of ``images`` ``(N, H, W, 3)`` uint8, in float32."""
    model.eval()
    right = 0
    for start in range(0, len(images), 500):
        batch = normalise(images[start : start + 500], recipe).permute(0, 3, 1, 2)
        right += int((model(batch).argmax(1) == labels[start : start + 500]).sum())
    return right / len(images)


def learning_rate(progress: float, recipe: Recipe) -> float:
    """One cycle: a linear rise to the peak, then half a cosine down to zero. ``progress`` in [0, 1]."""
    if progress < recipe.warm_up:
        return recipe.peak_learning_rate * (0.05 + 0.95 * progress / recipe.warm_up)
    falling = (progress - recipe.warm_up) / (1.0 - recipe.warm_up)
    return recipe.peak_learning_rate * 0.5 * (1.0 + float(np.cos(np.pi * falling)))


def train(
    model: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    held_out: np.ndarray,
    recipe: Recipe,
    checkpoint: Path,
    report: Callable[[Epoch], None],
) -> dict[str, torch.Tensor]:
    """Train ``model`` and return the state with the better held-out accuracy: the last one or the averaged one.

    ``images`` is ``(N, H, W, 3)`` uint8, ``labels`` ``(N,)`` int64, ``held_out`` the rows never trained on.
    An unfinished run at ``checkpoint`` with the same recipe goes on from its last whole epoch.
    """
    torch.manual_seed(recipe.seed)
    model.apply(_reinitialise)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks this keyword form
    averaged = copy.deepcopy(model).requires_grad_(False)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=0.0,
        momentum=recipe.momentum,
        nesterov=True,
    )
    pad = recipe.padding
    keep = np.setdiff1d(np.arange(len(images)), held_out)
    padded = torch.from_numpy(np.pad(images[keep], ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect"))
    targets = torch.from_numpy(labels[keep].astype(np.int64))
    test_images = torch.from_numpy(images[held_out])
    test_labels = torch.from_numpy(labels[held_out].astype(np.int64))
    first = _resume(checkpoint, recipe, model, averaged, optimizer)
    per_epoch = len(padded) // recipe.batch
    total = recipe.epochs * per_epoch
    for epoch in range(first, recipe.epochs):
        began = time.monotonic()
        torch.manual_seed(recipe.seed * 100_003 + epoch)
        generator = torch.Generator().manual_seed(recipe.seed * 100_003 + epoch)
        order = torch.randperm(len(padded), generator=generator)
        cutout = epoch < recipe.epochs * (1.0 - recipe.plain_tail)
        loss_sum = torch.zeros(())
        model.train()
        for step in range(per_epoch):
            index = order[step * recipe.batch : (step + 1) * recipe.batch]
            batch = augment(padded, index, recipe, generator, cutout=cutout)
            now = epoch * per_epoch + step
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(now / total, recipe)
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
                loss = functional.cross_entropy(model(batch), targets[index], label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
            optimizer.step()
            _average(averaged, model, min(recipe.averaging, (now + 1) / (now + 10)))
            loss_sum += loss.detach().float()
        done = Epoch(
            epoch + 1,
            recipe.epochs,
            float(loss_sum) / per_epoch,
            accuracy(model, test_images, test_labels, recipe),
            accuracy(averaged, test_images, test_labels, recipe),
            time.monotonic() - began,
        )
        _save(checkpoint, recipe, epoch + 1, model, averaged, optimizer)
        report(done)
    last = accuracy(model, test_images, test_labels, recipe)
    best = averaged if accuracy(averaged, test_images, test_labels, recipe) >= last else model
    return {name: tensor.detach().clone().contiguous() for name, tensor in best.state_dict().items()}


def _reinitialise(module: nn.Module) -> None:
    """Draw the weights anew under the recipe's seed, whatever was drawn when the module was built."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@torch.no_grad()
def _average(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    ours = dict(model.state_dict())
    for name, tensor in averaged.state_dict().items():
        if tensor.dtype.is_floating_point:
            tensor.lerp_(ours[name], 1.0 - decay)
        else:
            tensor.copy_(ours[name])


def _save(
    path: Path, recipe: Recipe, epoch: int, model: nn.Module, averaged: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    buffer = io.BytesIO()
    state = {
        "recipe": asdict(recipe),
        "epoch": epoch,
        "model": model.state_dict(),
        "averaged": averaged.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(state, buffer)
    store.write_bytes(path, buffer.getvalue())


def _resume(path: Path, recipe: Recipe, model: nn.Module, averaged: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load the checkpoint of the same recipe, if there is one; return the epoch to start at."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    if state["recipe"] != asdict(recipe):
        return 0
    model.load_state_dict(state["model"])
    averaged.load_state_dict(state["averaged"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["epoch"])
