"""RNN, GRU and LSTM: the layout with the batch first (14)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.opsets import down
from penstock.rewriting import Rewrite

if TYPE_CHECKING:
    import onnx_ir as ir

    from penstock.opsets.place import Place

STATES = (5, 6)  # the inputs initial_h and initial_c


@down(14, "RNN", "GRU", "LSTM")
def sequence_first(node: ir.Node, place: Place) -> Rewrite | None:
    """``layout=1`` is the layout 0 between Transposes."""
    if not place.attribute(node, "layout", 0):
        return place.renew(node, "layout=0 is dropped", layout=None) if "layout" in node.attributes else None
    inputs = list(node.inputs)
    for index in (0, *STATES):
        if (value := place.input(node, index)) is not None:
            inputs[index] = place.make("Transpose", [value], perm=[1, 0, 2])
            if value.dtype is not None:
                place.known.put(inputs[index], None, value.dtype)  # type: ignore[arg-type]  # it was just made
    made = place.anew(node, inputs, layout=None)
    values = {}
    for index, (old, new) in enumerate(zip(node.outputs, made, strict=True)):
        if old.name:
            # (seq, directions, batch, hidden) → (batch, seq, directions, hidden); states (directions, batch, hidden)
            values[old] = place.make("Transpose", [new], perm=[2, 0, 1, 3] if index == 0 else [1, 0, 2])
    return Rewrite(values, "layout=1 became Transposes")
