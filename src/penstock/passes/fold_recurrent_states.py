"""Leave out what an LSTM, GRU or RNN takes as given anyway.

1. An initial state of zeros is the default: a constant of zeros, and a ConstantOfShape or Expand of zero whatever its
   shape, is left out. So goes the ``Shape → Gather → Concat → ConstantOfShape`` that exporters build for it.
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


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Leave zeros out."""
    inputs = list(node.inputs)
    gone = [
        place for place in _OPTIONAL if place < len(inputs) and inputs[place] is not None and _zero(inputs[place], site)
    ]
    if not gone:
        return None
    for place in gone:
        inputs[place] = None
    made = site.copy(node, inputs)
    producer = made.producer()
    assert producer is not None
    return Rewrite(dict(zip(node.outputs, producer.outputs, strict=True)), "zeros are the default")


def _zero(value: ir.Value | None, site: Site) -> bool:
    if value is None:
        return False
    if site.tensor(value) is not None:
        return site.filled_with(value, 0.0)
    maker = site.maker(value, "ConstantOfShape", "Expand", "Tile")
    if maker is None:
        return False
    if maker.op_type != "ConstantOfShape":
        return _zero(maker.inputs[0], site)
    held = maker.attributes.get("value")
    return held is None or bool((held.as_tensor().numpy() == 0).all())
