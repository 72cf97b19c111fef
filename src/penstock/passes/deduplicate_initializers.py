"""Keep one of several initializers that hold the same bytes in the same type and shape.

Within each graph, compared by SHA-512 and then byte for byte; names of graph inputs and outputs are left alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import PassResult, Phase
from penstock.passes._library import run_library_pass

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "clean"
AFTER: tuple[str, ...] = ("lift-constants",)


def run(model: ir.Model) -> PassResult:
    """Deduplicate them."""
    from onnx_ir.passes.common import DeduplicateHashedInitializersPass

    return run_library_pass(model, DeduplicateHashedInitializersPass())
