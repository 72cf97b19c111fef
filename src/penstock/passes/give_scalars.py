"""Give Range the scalars that its specification asks for, where it reads constants of one element with an axis.

Runtimes take such an input while its value isn't known, and refuse it as soon as it is a constant: what other passes
find out would make a model that can't be loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.rewriting import Rewrite
from penstock.rewriting.site import Site

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "lower"
AFTER: tuple[str, ...] = ()
OPERATORS: tuple[str, ...] = ("Range",)


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Take the axis off."""
    tensors = [site.tensor(value) for value in node.inputs]
    wrong = [tensor is not None and tensor.size == 1 and len(tensor.shape) > 0 for tensor in tensors]
    if not any(wrong):
        return None
    inputs = []
    for value, flat in zip(node.inputs, wrong, strict=True):
        array = site.array(value) if flat else None
        inputs.append(value if array is None else site.constant(array.reshape(())))
    return site.instead(node, site.copy(node, inputs), "its inputs are scalars")
