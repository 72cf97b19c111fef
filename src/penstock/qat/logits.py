"""A classifier's output and the losses on it. Imports torch: load it inside functions only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from penstock.errors import InputError


def logits_of(outputs: Any) -> Tensor:
    """Return the first output, ``(N, classes, …)`` floats. Raises ``InputError`` where it is something else."""
    logits: Tensor = outputs[0] if isinstance(outputs, tuple) else outputs
    if logits.ndim < 2 or not logits.is_floating_point() or logits.shape[1] < 2:
        kind = f"{_kind(logits)}{list(logits.shape)}"
        do = "train prepared.module in a loop of your own, with the loss that the module was trained by"
        raise InputError("no-classes", f"the model's first output is {kind}, no logits of classes", do=do)
    return logits


def distance(logits: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """Return the mean divergence of the classes by ``logits`` from those by ``wanted``, in nats."""
    ours, theirs = functional.log_softmax(logits / temperature, 1), functional.log_softmax(wanted / temperature, 1)
    return (theirs.exp() * (theirs - ours)).sum(1).mean()


def need_labels(labels: Tensor | None, logits: Tensor) -> Tensor:
    """Return the labels ``(N, …)`` int64. Raises ``InputError`` where there are none, or they don't fit the logits."""
    if labels is None:
        what = "the labels have a share of the loss, and the data has none"
        raise InputError("no-labels", what, do="give labelled data, or train with distill=1, which needs no labels")
    if labels.dtype != torch.int64 or labels.shape != (logits.shape[0], *logits.shape[2:]):
        what = f"the labels are {_kind(labels)}{list(labels.shape)}, for logits of {list(logits.shape)}"
        raise InputError("data-does-not-fit", what, do="give class numbers, int64, one for each sample")
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        what = f"the labels go from {int(labels.min())} to {int(labels.max())}, the model has {logits.shape[1]} classes"
        raise InputError("wrong-class-count", what, do="give the data that the model was trained for")
    return labels


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
