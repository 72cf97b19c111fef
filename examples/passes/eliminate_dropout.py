"""Remove Dropout nodes that do nothing.

In inference a Dropout hands its input on unchanged. Models that were exported in training form still hold them.

1. Readers of the output read the input instead.
2. A Dropout stays where ``training_mode`` is true or not constant, or where its mask is used. One that hands out an
   output of its graph stays where the format wants a node there; the editor says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.rewriting import Refusal, Rewrite

if TYPE_CHECKING:
    import onnx_ir as ir

    from penstock.rewriting.site import Site

PHASE: Phase = "clean"
AFTER: tuple[str, ...] = ("lift-constants",)
OPERATORS: tuple[str, ...] = ("Dropout",)


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Let readers of one Dropout read its input."""
    source = node.inputs[0]
    if source is None:
        return None
    if site.opset < 7:
        raise Refusal(f"opset {site.opset}: its mode is an attribute of an older form")
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        raise Refusal("its mask is used")
    mode = node.inputs[2] if len(node.inputs) > 2 else None
    if mode is not None and site.tensor(mode) is None:
        raise Refusal("training_mode is not constant")
    if mode is not None and not site.filled_with(mode, 0):
        raise Refusal("training_mode is true")
    return site.instead(node, source, "a Dropout in inference")
