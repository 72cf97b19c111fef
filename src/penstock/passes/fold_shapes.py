"""Compute shapes that are known before a run: the Shape → Gather → Concat → Reshape chains of exporters.

1. A small integer tensor whose elements are all known numbers becomes a constant.
2. The shape that a Reshape is given becomes a constant where it has, in all, at most one unknown size (−1), and others
   that are those of its input at the same place (0).
3. The shape that an Expand is given becomes a constant where each unknown size is that of its input anyway (1).
4. ``Size`` and ``Shape`` of what is static are covered by 1.

Sizes are followed as numbers and as products of named dimensions (:mod:`penstock.rewriting.sizes`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.rewriting import Refusal, Rewrite
from penstock.rewriting.element_rules import RULES
from penstock.rewriting.site import Site, attribute
from penstock.rewriting.sizes import Size, equal

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "fold"
AFTER: tuple[str, ...] = ()
OPERATORS: tuple[str, ...] = (*RULES, "Reshape")[: len(RULES) + ("Reshape" not in RULES)]


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Put constants in the place of what is known."""
    sizes = site.known.elements.get(node.outputs[0])
    if sizes is not None and all(isinstance(size, int) for size in sizes):
        return _constant(node, site, [size for size in sizes if isinstance(size, int)])
    if node.op_type == "Reshape":
        return _of_reshape(node, site)
    if node.op_type == "Expand":
        return _of_expand(node, site)
    return None


def _constant(node: ir.Node, site: Site, numbers: list[int]) -> Rewrite | None:
    import numpy as np

    value = node.outputs[0]
    shape = site.static(value)
    if value.dtype is None or shape is None or len(node.outputs) > 1:
        return None
    array = np.array(numbers, dtype=value.dtype.numpy()).reshape(shape)
    return site.instead(node, site.constant(array), "the sizes are known")


def _of_reshape(node: ir.Node, site: Site) -> Rewrite | None:
    data, wanted = node.inputs
    if data is None or wanted is None or site.tensor(wanted) is not None:
        return None
    sizes = site.sizes(wanted)
    if sizes is None:
        shape = site.known.shapes.get(node.outputs[0])
        sizes = shape if shape is not None and all(size is not None for size in shape) else None
    if sizes is None:
        return None
    if attribute(node, "allowzero", 0) and 0 in sizes:
        return None
    target = as_numbers(sizes, site.shape(data))
    return site.instead(node, site.make("Reshape", [data, site.int64s(target)]), "its shape is known")


def as_numbers(sizes: tuple[Size, ...], before: tuple[Size, ...] | None) -> list[int]:
    """Return the shape for a Reshape: numbers, 0 for what stays in its place, −1 for one size that isn't known.

    Raises ``Refusal`` where more than one is left.
    """
    target: list[int] = []
    for place, size in enumerate(sizes):
        if isinstance(size, int):
            target.append(size)
        elif before is not None and place < len(before) and equal(size, before[place]):
            target.append(0)
        else:
            target.append(-1)
    if target.count(-1) > 1:
        raise Refusal(f"{target.count(-1)} of the sizes aren't known before a run")
    if -1 in target and -1 not in sizes and any(not size for size in target):
        raise Refusal("a size that stays in its place may be 0, and then none may be left to be worked out")
    return target


def _of_expand(node: ir.Node, site: Site) -> Rewrite | None:
    data, wanted = node.inputs
    if data is None or site.tensor(wanted) is not None:
        return None
    sizes, before = site.sizes(wanted), site.shape(data)
    if sizes is None or before is None or len(sizes) < len(before):
        return None
    padded = (*[1] * (len(sizes) - len(before)), *before)
    target = [1 if equal(size, own) else size for size, own in zip(sizes, padded, strict=True)]
    numbers = [size for size in target if isinstance(size, int)]
    if len(numbers) != len(target):
        return None
    return site.instead(node, site.copy(node, [data, site.int64s(numbers)]), "its shape is known")
