"""Take initializers off the list of inputs.

1. Before IR version 4 the format forced every initializer onto that list, and no runtime lets a caller override it: it
   is taken off, and the IR version becomes 4, which permits that. The opset stays.
2. From IR version 4 on the listing means "an input with a default". Exporters that meant no such thing did it for
   years, and it keeps every runtime from folding. A signature here is the inputs without a default, so it is taken off
   as well. Skip this pass to keep the defaults open to callers: the other passes then take them for no constants.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import PassResult, Phase

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "clean"
AFTER: tuple[str, ...] = ()
FIRST_IR_VERSION = 4  # the first that permits an initializer that is no input


def run(model: ir.Model) -> PassResult:
    """Unlist them in the main graph."""
    listed = [value for value in model.graph.inputs if value.is_initializer()]
    if not listed:
        return PassResult()
    kept = [value for value in model.graph.inputs if not value.is_initializer()]
    model.graph.inputs.clear()
    model.graph.inputs.extend(kept)
    model.ir_version = max(model.ir_version or 0, FIRST_IR_VERSION)
    return PassResult(tuple(f"took {value.name} off the inputs" for value in listed))
