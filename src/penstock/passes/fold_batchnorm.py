"""Fold BatchNormalization into the linear operator before it.

In inference, per channel c::

    y = a·x + d,   a = scale / sqrt(var + epsilon),   d = bias − a·mean

and x = W∗u + b is linear in W and b, so y = (a·W)∗u + (a·b + d): the same operator with other numbers.

1. Conv: ``a`` scales axis 0 of W ``(M, C/group, k…)``.
2. ConvTranspose: W is ``(C, M/group, k…)``; output channel ``g·M/group + j`` is column ``j`` of group ``g``'s rows.
3. Gemm, Y = alpha·A·B + beta·C: ``a`` scales the output axis of B; C becomes ``a·beta·C + d`` and beta 1.
4. A missing bias counts as zero and becomes ``d``.
5. A weight that others read as well is left to them, and the folded one is a new initializer.

The numbers are computed in float64 and rounded once. Source: Ioffe and Szegedy, Batch Normalization (2015), 3.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import Declined, PassResult, Phase
from penstock.passes._fold_linear import Refusal, constant, fold_affine
from penstock.passes._library import node_label, quiet

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx_ir as ir

PHASE: Phase = "fold"
AFTER: tuple[str, ...] = ("fold-constants",)


def run(model: ir.Model) -> PassResult:
    """Fold every BatchNormalization that can be, in the main graph and its subgraphs."""
    version = model.opset_imports.get("", 1)
    changes, declined = [], []
    taken = _names(model)
    for node in list(model.graph.all_nodes()):
        if node.op_type != "BatchNormalization" or node.domain != "":
            continue
        try:
            with quiet():  # a weight that overflows float16 is found below, and told
                slope, offset = _affine(node, version)
                linear = _linear_before(node)
                fold_affine(linear, slope, offset, taken)
        except Refusal as refusal:
            declined.append(Declined(node_label(node), str(refusal)))
            continue
        _bypass(node, linear)
        changes.append(f"folded {node_label(node)} into {node_label(linear)}")
    return PassResult(tuple(changes), tuple(declined))


def _names(model: ir.Model) -> set[str]:
    taken = {name for graph in model.graphs() for name in graph.initializers}
    taken |= {str(value.name) for graph in model.graphs() for value in graph.inputs}
    return taken | {str(value.name) for node in model.graph.all_nodes() for value in node.outputs}


def _affine(node: ir.Node, version: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return a and d, ``(channels,)`` each. Raises ``Refusal`` where the node doesn't compute that."""
    import numpy as np

    def setting(name: str, default: float) -> float:
        attribute = node.attributes.get(name)
        return default if attribute is None else float(attribute.value)

    if version < 7 and not setting("is_test", 0):
        raise Refusal("is_test=0: it normalizes by the statistics of the batch")
    if setting("training_mode", 0):
        raise Refusal("training_mode=1: it normalizes by the statistics of the batch")
    if version < 9 and not setting("spatial", 1):
        raise Refusal("spatial=0: it has statistics for each position, not for each channel")
    if any(value.name for value in node.outputs[1:]):
        raise Refusal("it also returns statistics, so it is in training mode or others read them")
    found = []
    for name, value in zip(("scale", "bias", "mean", "variance"), node.inputs[1:5], strict=True):
        found.append(constant(value, name))
    scale, bias, mean, variance = found
    if not scale.ndim == 1 or not scale.shape == bias.shape == mean.shape == variance.shape:
        raise Refusal("its scale, bias, mean and variance are not of one length")
    slope = scale / np.sqrt(variance + setting("epsilon", 1e-5))
    if not np.isfinite(slope).all():
        raise Refusal("a variance is negative or no number")
    return slope, bias - slope * mean


def _linear_before(node: ir.Node) -> ir.Node:
    value = node.inputs[0]
    linear = None if value is None else value.producer()
    if value is None or linear is None:
        raise Refusal("its input is a graph input or a constant, not the result of a Conv, ConvTranspose or Gemm")
    if linear.domain != "" or linear.op_type not in ("Conv", "ConvTranspose", "Gemm"):
        raise Refusal(f"its input comes from {linear.op_type}, not from Conv, ConvTranspose or Gemm")
    if value.is_graph_output():
        raise Refusal(f"the output of {linear.op_type} is a graph output")
    if len(value.uses()) != 1:
        raise Refusal(f"its input has {len(value.uses())} consumers")
    if linear.graph is not node.graph:
        raise Refusal(f"{linear.op_type} is in another graph")
    return linear


def _bypass(node: ir.Node, linear: ir.Node) -> None:
    """Give the linear node's output the name and the readers of the BatchNormalization's, and remove the latter."""
    from onnx_ir import convenience

    old, new = node.outputs[0], linear.outputs[0]
    name = old.name
    new.type = old.type or new.type
    if (
        old.shape is not None or old.is_graph_output()
    ):  # an output keeps what the model declares of it, no more, no less
        new.shape = old.shape
    convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    assert node.graph is not None
    node.graph.remove(node, safe=True)
    new.name = name
