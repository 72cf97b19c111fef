"""The given loop: some epochs of SGD, distilled from the float model, the best state chosen on held-out samples.

The distance to the float model is the divergence of Kullback and Leibler between the two softmaxes at a temperature T,
times T² (Hinton et al., arXiv 1503.02531): it needs no labels, and asks of the rounded network what the float one does,
rather than a second training. Everything is float32: in bfloat16 values fall off their grids. Imports torch.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from penstock.errors import InputError
from penstock.progress import SILENT, Progress
from penstock.qat import batches as user
from penstock.qat import checkpoints
from penstock.qat.logits import distance, logits_of, need_labels
from penstock.qat.preparation import Prepared, device_of
from penstock.qat.settings import Recipe


@runtime_checkable
class Epochs(Protocol):
    """Training data whose order and distortions follow from the number of the epoch, so that a run can be resumed."""

    def epoch(self, number: int) -> Iterable[Any]:
        """Return the batches of an epoch, counted from 0."""

    def __len__(self) -> int:
        """Return how many batches an epoch has."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """What an epoch gave. ``index`` 0 is the state before training; accuracy and agreement are shares of ``select``."""

    index: int
    loss: float  # mean over the steps; NaN for the state before training
    accuracy: float | None  # top-1 against the labels
    agreement: float | None  # top-1 against the float model
    distance: float | None  # mean divergence from the float model, in nats
    seconds: float


@dataclass(frozen=True, slots=True)
class Fitted:
    """The epochs, and which one's state the module was left in."""

    epochs: tuple[Epoch, ...]
    chosen: int


def fit(
    prepared: Prepared, data: Iterable[Any] | Epochs, recipe: Recipe | None = None, *,
    select: Iterable[Any] | None = None, seed: int = 0, checkpoint: str | Path | None = None,
    progress: Progress = SILENT,
) -> Fitted:  # fmt: skip
    """Train ``prepared.module`` on what ``data`` yields, gone through once an epoch, and leave it in its best state.

    ``data`` yields batches as a loader does, inputs first, then labels ``(N,)`` int64, which may be missing where the
    recipe's ``distill`` is 1. The first output is ``(N, classes)`` logits. ``select`` are samples that are not trained
    on: the state of most right answers on them is kept, or of most agreement with the float model where they have no
    labels; the state before training is one of those compared. Without ``select`` the last state is kept.

    With ``checkpoint`` every epoch is saved there, and a run that was stopped goes on after its last whole epoch.
    Raises ``InputError`` for data that doesn't fit, and where the training diverges.
    """
    recipe = recipe or Recipe()
    if isinstance(data, Iterator):
        data = list(data)
    held = list(select) if select is not None else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kept = checkpoints.of(checkpoint, prepared, recipe, seed, str(getattr(data, "key", "")))
        return _Fitting(prepared, data, recipe, held, progress).run(kept)


class _Fitting:
    def __init__(
        self, prepared: Prepared, data: Iterable[Any] | Epochs, recipe: Recipe, select: list[Any] | None,
        progress: Progress,
    ) -> None:  # fmt: skip
        self.module, self.data, self.recipe, self.select = prepared.module, data, recipe, select
        self.progress = progress
        self.device = device_of(self.module)
        self.reference = prepared.reference().to(self.device)
        self.images = any(len(one.shape or ()) == 4 for one in prepared.signature.inputs)
        if self.images:  # the faster order in memory for convolutions, here and on most accelerators
            _channels_last(self.module)
            _channels_last(self.reference)
        groups = _groups(self.module, recipe)
        self.optimizer = torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum)
        self.length = len(data) if isinstance(data, Sized) else 0

    def run(self, checkpoint: checkpoints.Checkpoint | None) -> Fitted:
        """Go through the epochs; keep the best state."""
        epochs, best, chosen = [], copy.deepcopy(self.module.state_dict()), 0
        if checkpoint is not None and (found := checkpoint.load()) is not None:
            self.module.load_state_dict(found["module"])
            self.optimizer.load_state_dict(found["optimizer"])
            epochs, best, chosen = [Epoch(**one) for one in found["epochs"]], found["best"], found["chosen"]
        else:
            epochs.append(self._epoch_of(0, math.nan, time.monotonic()))
        for index in range(len(epochs), self.recipe.epochs + 1):
            epochs.append(self._train(index))
            if self.select is None or _better(epochs[index], epochs[chosen]):
                best, chosen = copy.deepcopy(self.module.state_dict()), index
            if checkpoint is not None:
                checkpoint.save(self.module, self.optimizer, epochs, best, chosen)
        self.module.load_state_dict(best)
        self.module.eval()
        return Fitted(tuple(epochs), chosen)

    def _train(self, index: int) -> Epoch:
        began, total, steps = time.monotonic(), 0.0, 0
        named = f"epoch {index} of {self.recipe.epochs}"
        self.progress.begin("train", named)
        self.module.train()
        for batch in self.data.epoch(index - 1) if isinstance(self.data, Epochs) else self.data:
            inputs, labels = self._batch(batch)
            for group in self.optimizer.param_groups:
                group["lr"] = self._rate(index - 1, steps)
            loss = self._loss(self.module(*inputs), inputs, labels)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
            if self.recipe.clip:
                nn.utils.clip_grad_norm_(self.module.parameters(), self.recipe.clip)
            self.optimizer.step()
            value = float(loss.detach())
            if not math.isfinite(value):
                what = f"the loss became {value} in step {steps + 1} of epoch {index}"
                raise InputError("training-diverged", what, do="train at a lower --learning-rate")
            total, steps = total + value, steps + 1
            self.progress.step(steps, self.length, f"{named}, loss {total / steps:.4g}")
        if not steps:
            raise InputError("no-samples", "the training data yields no batch", do="give the data to train on")
        self.length = steps
        done = self._epoch_of(index, total / steps, began)
        right = "" if done.accuracy is None else f", {done.accuracy:.2%} of the select samples right"
        self.progress.end(f"{named}: loss {done.loss:.4g}{right}")
        return done

    def _rate(self, epoch: int, step: int) -> float:
        """Half a cosine over all epochs; within an epoch of unknown length it stays."""
        done = (epoch + (step / self.length if self.length else 0.0)) / max(self.recipe.epochs, 1)
        return self.recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    def _batch(self, batch: Any) -> tuple[list[Tensor], Tensor | None]:
        given, labels = user.parts(batch, self.module.inputs)
        inputs = [torch.as_tensor(given[name]).to(self.device) for name in self.module.inputs]
        if self.images:
            inputs = [x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for x in inputs]
        return inputs, None if labels is None else torch.as_tensor(labels).to(self.device)

    def _loss(self, outputs: Any, inputs: list[Tensor], labels: Tensor | None) -> Tensor:
        logits, recipe = logits_of(outputs), self.recipe
        loss = torch.zeros((), device=self.device)
        if recipe.distill > 0:
            with torch.no_grad():
                wanted = logits_of(self.reference(*inputs))
            loss = loss + recipe.distill * distance(logits, wanted, recipe.temperature) * recipe.temperature**2
        if recipe.distill < 1:
            right = need_labels(labels, logits)
            known = functional.cross_entropy(logits, right, label_smoothing=recipe.label_smoothing)
            loss = loss + (1 - recipe.distill) * known
        return loss

    @torch.no_grad()
    def _epoch_of(self, index: int, loss: float, began: float) -> Epoch:
        """Look at the held-out samples."""
        if self.select is None:
            return Epoch(index, loss, None, None, None, time.monotonic() - began)
        self.module.eval()
        seen = labelled = right = 0
        same = far = 0.0
        for batch in self.select:
            inputs, labels = self._batch(batch)
            logits, wanted = logits_of(self.module(*inputs)), logits_of(self.reference(*inputs))
            far += float(distance(logits, wanted, 1.0)) * len(logits)
            same += float((logits.argmax(1) == wanted.argmax(1)).float().mean()) * len(logits)
            seen += len(logits)
            if labels is not None:
                right += int((logits.argmax(1) == need_labels(labels, logits)).sum())
                labelled += labels.numel()
        if not seen:
            raise InputError("no-samples", "there are no samples to choose the best state on", do="leave select out")
        accuracy = right / labelled if labelled else None
        return Epoch(index, loss, accuracy, same / seen, far / seen, time.monotonic() - began)


def _better(one: Epoch, other: Epoch) -> bool:
    """Whether a state has more right answers; where they have the same, whether it is nearer to the float model."""
    if one.accuracy is not None and other.accuracy is not None and one.accuracy != other.accuracy:
        return one.accuracy > other.accuracy
    if one.accuracy is None and one.agreement != other.agreement:
        return (one.agreement or 0) > (other.agreement or 0)
    return (one.distance or 0) < (other.distance or 0)


def _groups(module: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Weights of two or more axes are decayed; biases and scales aren't."""
    chosen = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    decayed = [p for name, p in chosen if name.startswith("weights.") and p.ndim > 1]
    plain = [p for name, p in chosen if not (name.startswith("weights.") and p.ndim > 1)]
    return [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]


def _channels_last(module: nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
