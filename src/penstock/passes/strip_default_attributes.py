"""Take attributes off nodes that only say what is the default anyway. Runs when it is asked for, with ``--also``.

1. Exporters write ``storage_order=0``, ``auto_pad=NOTSET``, ``allowzero=1`` and the like out, which simple consumers of
   ONNX refuse. An attribute goes where the operator's schema, at the model's opset, has the same value as its default.
2. Nothing is computed otherwise, and no node goes: this is for readers other than runtimes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import PassResult, Phase
from penstock.passes._library import node_label

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "lower"
AFTER: tuple[str, ...] = ()
OPTIONAL = True


def run(model: ir.Model) -> PassResult:
    """Strip the nodes of the graph and of its bodies; a function's own opset isn't looked up."""
    import onnx
    import onnx_ir as ir

    changes = []
    opset = model.opset_imports.get("", 1)
    for node in model.graph.all_nodes():
        if node.domain != "" or not node.attributes:
            continue
        try:
            known = onnx.defs.get_schema(node.op_type, opset, "").attributes
        except onnx.defs.SchemaError:
            continue
        for name in list(node.attributes):
            default = known[name].default_value if name in known else None
            if default is None or not default.name or node.attributes[name].is_ref():
                continue
            if ir.serde.deserialize_attribute(default).value == node.attributes[name].value:
                del node.attributes[name]
                changes.append(f"{name} of {node_label(node)}")
    return PassResult(tuple(changes))
