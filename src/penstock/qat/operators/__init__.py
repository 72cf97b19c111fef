"""Operators of ONNX on torch tensors, differentiable, for the graph of a float model. A file is a kind of operator.

Each file has a table ``BINDERS``: name → a function that reads a node's attributes once and returns what runs the node
on its inputs. A binder raises ``Untrainable`` for an attribute that it doesn't do, so that a model is refused before
anything is trained. What is meant is opset 13 or later. Imports torch: load it inside functions only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from penstock.qat.operators._node import Node, Run, Untrainable

if TYPE_CHECKING:
    import onnx_ir as ir

Binder = Callable[[Node], Run]


def table() -> Mapping[str, Binder]:
    """Return the binder of every operator that is known, by its name in the standard domain."""
    from penstock.qat.operators import arithmetic, normalizing, resizing, shaping, windows

    found: dict[str, Binder] = {}
    for part in (arithmetic, normalizing, resizing, shaping, windows):
        found.update(part.BINDERS)
    return found


def bind(node: ir.Node, opset: int, known: Mapping[str, Binder]) -> Run:
    """Return what runs a node. Raises :class:`Untrainable` with the reason why nothing does."""
    if node.domain != "":
        raise Untrainable(f"{node.op_type} is of the domain {node.domain!r}, not of the standard")
    if node.op_type not in known:
        raise Untrainable(f"{node.op_type} isn't among the operators that it knows")
    read = Node(node.op_type, opset, len(node.inputs), len(node.outputs), node.attributes)
    run = known[node.op_type](read)
    if len(node.outputs) > 1 and node.op_type != "Split" and any(out.uses() for out in node.outputs[1:]):
        raise Untrainable(f"{node.op_type} gives more than one result here")
    return run
