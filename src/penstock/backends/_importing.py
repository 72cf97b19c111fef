"""What is done to a model before a compiler's importer reads it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from penstock import graph
from penstock.errors import InputError

if TYPE_CHECKING:
    import onnx_ir as ir

OPSET = 18  # older forms of some operators are refused by importers, the pools among them


def standard(path: Path, runtime: str) -> ir.Model:
    """Return a model of the standard's operators alone, its functions inlined, in opset 18 or newer where that can be.

    Importers drop the domains of operators: one of another domain would become the standard's of that name. Raises
    ``InputError`` where the model has such.
    """
    from penstock.opsets.whole import converted

    model = graph.load(path)
    graph.inline(model)
    foreign = sorted({f"{node.domain}:{node.op_type}" for node in graph.all_nodes(model) if node.domain})
    if foreign:
        what = f"{runtime} knows no operators but the standard's, and the model has {', '.join(foreign[:5])}"
        raise InputError("runtime-refuses", what, where=str(path), do="run this model on another backend")
    if model.opset_imports.get("", OPSET) < OPSET:
        newer, done, _ = converted(model, OPSET)
        if not done.refused:
            return newer
    return model
