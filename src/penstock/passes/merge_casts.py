"""Join Casts that follow each other.

1. Where the first Cast loses nothing (int32 to int64, float16 to float32, bool to any number), the second one reads the
   first's input.
2. A Cast to a type and back goes, where the way there loses nothing.
3. Where the first may lose something, both stay: float → int → float rounds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.rewriting import Refusal, Rewrite
from penstock.rewriting.site import Site, attribute

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "fuse"
AFTER: tuple[str, ...] = ()
OPERATORS: tuple[str, ...] = ("Cast",)
# type → the types that hold all its values
WIDER: dict[str, frozenset[str]] = {
    "BOOL": frozenset(
        [
            "UINT8",
            "INT8",
            "UINT16",
            "INT16",
            "UINT32",
            "INT32",
            "UINT64",
            "INT64",
            "FLOAT16",
            "BFLOAT16",
            "FLOAT",
            "DOUBLE",
        ]
    ),
    "UINT8": frozenset(
        ["UINT16", "INT16", "UINT32", "INT32", "UINT64", "INT64", "FLOAT16", "BFLOAT16", "FLOAT", "DOUBLE"]
    ),
    "INT8": frozenset(["INT16", "INT32", "INT64", "FLOAT16", "BFLOAT16", "FLOAT", "DOUBLE"]),
    "UINT16": frozenset(["UINT32", "INT32", "UINT64", "INT64", "FLOAT", "DOUBLE"]),
    "INT16": frozenset(["INT32", "INT64", "FLOAT", "DOUBLE"]),
    "UINT32": frozenset(["UINT64", "INT64", "DOUBLE"]),
    "INT32": frozenset(["INT64", "DOUBLE"]),
    "FLOAT16": frozenset(["FLOAT", "DOUBLE"]),
    "BFLOAT16": frozenset(["FLOAT", "DOUBLE"]),
    "FLOAT": frozenset(["DOUBLE"]),
}


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Join a Cast with the one before it."""
    middle = node.inputs[0]
    before = site.maker(middle, "Cast")
    if before is None or middle is None or before.inputs[0] is None:
        return None
    start = before.inputs[0]
    if start.dtype is None or middle.dtype is None:
        return None
    if middle.dtype.name not in WIDER.get(start.dtype.name, ()):
        raise Refusal(f"the Cast before it, from {start.dtype.name} to {middle.dtype.name}, may lose something")
    if attribute(node, "to") == start.dtype:
        return site.instead(node, start, "a Cast there and back")
    return site.instead(node, site.copy(node, [start]), "two Casts join")
