"""Leave out what an LSTM, GRU or RNN takes as given anyway.

1. An initial state of zeros is the default, so it is left out: a constant of zeros, and whatever only moves, repeats or
   casts zeros (Expand of zero, ConstantOfShape, and their Slices, Splits, Reshapes, Transposes, Gathers, Concats). So
   goes the ``Shape → Gather → Concat → ConstantOfShape → Slice`` that exporters build for it.
2. A bias of zeros and peepholes of zeros as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.rewriting import Rewrite
from penstock.rewriting.site import Site

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "fold"
AFTER: tuple[str, ...] = ("fold-constants",)
OPERATORS: tuple[str, ...] = ("LSTM", "GRU", "RNN")
_OPTIONAL = (3, 5, 6, 7)  # bias, initial hidden state, initial cell state, peepholes
_MOVING = (
    "Cast", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose",
    "Unsqueeze",
)  # fmt: skip
DEEPEST = 12


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Leave zeros out."""
    inputs = list(node.inputs)
    gone = [place for place in _OPTIONAL if place < len(inputs) and is_zero(inputs[place], site)]
    if not gone:
        return None
    for place in gone:
        inputs[place] = None
    made = site.copy(node, inputs)
    producer = made.producer()
    assert producer is not None
    return Rewrite(dict(zip(node.outputs, producer.outputs, strict=True)), "zeros are the default")


def is_zero(value: ir.Value | None, site: Site, depth: int = 0) -> bool:
    """Whether all elements of a value are known to be 0, whatever its shape."""
    if value is None or depth > DEEPEST:
        return False
    if site.tensor(value) is not None:
        return site.filled_with(value, 0.0)
    maker = site.maker(value, *_MOVING, "ConstantOfShape", "Concat")
    if maker is None:
        return False
    if maker.op_type == "ConstantOfShape":
        held = maker.attributes.get("value")
        return held is None or bool((held.as_tensor().numpy() == 0).all())
    if maker.op_type == "Concat":
        return all(is_zero(part, site, depth + 1) for part in maker.inputs)
    return is_zero(maker.inputs[0], site, depth + 1)
