"""Agreement: the written model in a runtime, held against the module that was trained. Imports torch.

Both compute the same sums of whole numbers; they may round a sum differently where it lies halfway between two steps of
a grid: the runtime multiplies whole sums by one float32, the module adds float32 products. In float64 the module's sums
are exact, which tells how many of the differences are a matter of the last bits of float32.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penstock import graph
from penstock.backends import Loadable, Session
from penstock.backends import onnxruntime as backend
from penstock.deployment import Deployment
from penstock.errors import InputError
from penstock.qat import batches as user
from penstock.qat.logits import logits_of
from penstock.qat.preparation import Prepared, device_of


@dataclass(frozen=True, slots=True)
class Agreement:
    """How a model agrees with the module on samples, by the first output's ``(N, classes)``. Shares are in [0, 1]."""

    samples: int
    top1: float  # samples whose largest logit is the same
    equal: float  # values that differ by less than 1e-5 of the largest
    largest: float  # largest difference of a value
    step: float  # mean difference of values that differ, in units of the logits
    differing: tuple[int, ...]  # numbers of the samples whose largest logit differs
    margins: tuple[float, ...]  # of those, the module's distance between its two largest logits
    exact_top1: float  # samples whose largest logit is the same in the module and in the module in float64
    right: int | None  # right answers of the model, where there are labels
    right_module: int | None  # of the module
    right_float: int | None  # of the float network before training


def agreement(prepared: Prepared, model: str | Path, samples: Iterable[Any], *, threads: int = 0) -> Agreement:
    """Run ``model`` in ONNX Runtime and the module on the same samples, inputs first, then labels if there are any.

    ``threads`` 0: as many as there are cores. Raises ``InputError`` for samples that don't fit or have no logits.
    """
    path = Path(model)
    kind = graph.precision(graph.load(path))
    deployment = Deployment("agreement", "agreement", "", kind, "onnxruntime", threads=threads)
    session = backend.load(Loadable(path), deployment)
    module, was = prepared.module, prepared.module.training
    try:
        found = [_batch(prepared, session, module.eval(), batch) for batch in _copies(prepared, samples)]
    finally:
        session.close()
        module.train(was)
    if not found:
        raise InputError("no-samples", "there are no samples to compare on", do="give some")
    model_, module_, exact, floats = (np.concatenate([one[i] for one in found]) for i in range(4))
    labelled = all(one[4] is not None for one in found)
    labels = np.concatenate([one[4] for one in found]) if labelled else None
    tops = [_top(one) for one in (model_, module_, exact, floats)]
    flat = module_.reshape(len(module_), module_.shape[1], -1)
    margin = np.diff(np.sort(flat, axis=1)[:, -2:], axis=1).min(axis=(1, 2))
    same, difference = _rows(tops[0] == tops[1]), np.abs(model_ - module_)
    near = difference < 1e-5 * max(float(np.abs(module_).max()), 1e-30)
    differing = np.flatnonzero(~same)
    right = [int((top == labels).sum()) for top in (tops[0], tops[1], tops[3])] if labelled else [None] * 3
    return Agreement(
        len(model_), float(same.mean()), float(near.mean()), float(difference.max()),
        float(difference[~near].mean()) if (~near).any() else 0.0, tuple(int(i) for i in differing),
        tuple(float(margin[i]) for i in differing), float(_rows(tops[2] == tops[1]).mean()), *right,
    )  # fmt: skip


def _copies(prepared: Prepared, samples: Iterable[Any]) -> Iterable[tuple[Any, torch.nn.Module, torch.nn.Module]]:
    """Yield each batch with the module in float64 and the float network, which are built once."""
    device = device_of(prepared.module)
    exact = copy.deepcopy(prepared.module).double().eval()
    reference = prepared.reference().to(device)
    return ((batch, exact, reference) for batch in samples)


@torch.no_grad()
def _batch(prepared: Prepared, session: Session, module: torch.nn.Module, given: Any) -> tuple[Any, ...]:
    """Return the logits of the model, of the module, of it in float64, of the float network, and the labels."""
    batch, exact, reference = given
    values, labels = user.parts(batch, prepared.module.inputs)
    feeds = user.arrays(values, prepared.signature)
    device = device_of(module)
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)).to(device) for name, array in feeds.items()}
    doubled = {name: one.double() if one.is_floating_point() else one for name, one in tensors.items()}
    ours = [logits_of(one).cpu().numpy() for one in (module(**tensors), exact(**doubled), reference(**tensors))]
    return session.run(feeds)[0], *ours, None if labels is None else np.asarray(labels)


def _top(logits: np.ndarray) -> np.ndarray:
    found: np.ndarray = logits.argmax(1)
    return found


def _rows(same: np.ndarray) -> np.ndarray:
    """Whether all of a sample is the same, which may hold more than one place with classes."""
    found: np.ndarray = np.all(same.reshape(len(same), -1), axis=1)
    return found
