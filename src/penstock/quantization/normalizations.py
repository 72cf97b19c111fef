"""Normalizations: what a model's BatchNormalizations remember of the data that it was trained on.

Each holds the mean and the variance of every channel of what it reads, over all samples and places of the training
data. A BatchNormalization that was folded into the layer beside it leaves none of that behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock import graph
from penstock.errors import PenstockError
from penstock.quantization import prepare

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

    Array = np.ndarray[Any, np.dtype[Any]]

# passes that would fold one, or make one of constants that no data is behind
FOLDING = ("fold-affine", "fold-batchnorm", "fold-scale", "fuse-batch-normalization")
DEAD = 0.01  # of epsilon: a channel of less variance never changed
MOST = 16  # that are looked at, evenly spread over the model


@dataclass(frozen=True, slots=True)
class Remembered:
    """What one BatchNormalization remembers of the tensor that it reads, by channel: ``(C,)`` float64 each."""

    tensor: str
    mean: Array
    deviation: Array  # what it divides by, √(variance + epsilon)
    live: Array  # bool: channels that changed at all


@dataclass(frozen=True, slots=True)
class Normalizations:
    """A model whose BatchNormalizations are whole, what they remember, and why others can't be used."""

    model: ir.Model
    remembered: tuple[Remembered, ...]
    reasons: tuple[str, ...] = ()

    @property
    def absent(self) -> str:
        """Say why there are no statistics."""
        if self.reasons:
            return f"no BatchNormalization of the model has statistics that can be used: {self.reasons[0]}"
        return "the model has no BatchNormalization, or they were folded when it was exported"


def find(path: Path) -> Normalizations:
    """Find the statistics in a model file. Raises ``InputError`` for one that can't be read."""
    loaded = graph.load(path)
    if not any(node.op_type == "BatchNormalization" for node in graph.all_nodes(loaded)):
        return Normalizations(loaded, ())
    graph.inline(loaded)
    model = prepare.folded(loaded, FOLDING)  # an exporter may compute the statistics from constants
    prepare.named(model)
    found, reasons = [], []
    opset = model.opset_imports.get("") or 1
    for node in model.graph:
        if node.op_type != "BatchNormalization" or node.domain not in ("", "ai.onnx"):
            continue
        try:
            found.append(_remembered(node, opset))
        except ValueError as error:
            reasons.append(f"{node.name}: {error}")
    if not found and not reasons:
        reasons.append("they are in the bodies of If, Loop or Scan")
    chosen = sorted({round(i) for i in np.linspace(0, len(found) - 1, min(MOST, len(found)))})
    return Normalizations(model, tuple(found[i] for i in chosen), tuple(reasons))


def first(path: Path) -> tuple[ir.Model, Remembered] | None:
    """Return the first statistics in a model file that can be used, with the model as it is; ``None`` without any.

    Raises ``InputError`` for a file that can't be read.
    """
    model = graph.load(path)
    if not any(node.op_type == "BatchNormalization" for node in graph.all_nodes(model)):
        return None
    graph.inline(model)
    for node in model.graph:
        if node.op_type != "BatchNormalization" or node.domain not in ("", "ai.onnx"):
            continue
        try:
            return model, _remembered(node, model.opset_imports.get("") or 1)
        except ValueError:
            continue
    return None


def _remembered(node: ir.Node, opset: int) -> Remembered:
    """Return what a node remembers. Raises ``ValueError`` with why it can't be used."""
    training = node.attributes.get_int("training_mode", 0) or (opset < 7 and not node.attributes.get_int("is_test", 0))
    if training or any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        raise ValueError("it normalizes by the batch at hand")
    read, held = node.inputs[0], [value.const_value if value is not None else None for value in node.inputs[3:5]]
    if read is None or not read.name or None in held:
        raise ValueError("its mean and variance are no constants")
    mean, variance = (one.numpy().astype(np.float64) for one in held if one is not None)
    if mean.ndim != 1 or mean.shape != variance.shape or not mean.size:
        raise ValueError("its mean and variance aren't one number for each channel")
    if not (np.isfinite(mean).all() and np.isfinite(variance).all()):
        raise ValueError("its mean or variance is NaN or infinite")
    if (variance < 0).any():
        raise ValueError("its variance is negative")
    epsilon = max(node.attributes.get_float("epsilon", 1e-5), 0.0)
    live = variance > DEAD * epsilon
    if not live.any():
        raise ValueError("its variance is 0")
    if (mean == 0).all() and (variance == 1).all():
        raise ValueError("its mean is 0 and its variance 1 everywhere, as before any training")
    return Remembered(str(read.name), mean, np.sqrt(variance + epsilon), live)


def found_or_why(path: Path) -> Normalizations | str:
    """Return the statistics of a model, or why there are none to be had."""
    try:
        found = find(path)
    except PenstockError as error:
        return error.what
    return found if found.remembered else found.absent
