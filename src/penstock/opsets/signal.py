"""DFT: the axis that became an input (20)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.opsets import down, up
from penstock.rewriting import Rewrite

if TYPE_CHECKING:
    import onnx_ir as ir

    from penstock.opsets.place import Place


@up(20, "DFT")
def axis_as_input(node: ir.Node, place: Place) -> Rewrite:
    """The axis became an input, and is written out: the default changed."""
    import numpy as np

    axis = place.constant(np.array(place.attribute(node, "axis", 1), np.int64))
    return place.renew(node, "axis became an input", [node.inputs[0], place.input(node, 1), axis], axis=None)


@down(20, "DFT")
def axis_as_attribute(node: ir.Node, place: Place) -> Rewrite:
    """A constant axis becomes an attribute."""
    given = place.input(node, 2)
    axis = -2 if given is None else place.need_ints(given, "axis")[0]
    if axis < 0:
        axis %= place.need_rank(node.inputs[0])
    return place.renew(node, "axis became an attribute", [node.inputs[0], place.input(node, 1)], axis=axis)
