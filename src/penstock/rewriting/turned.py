"""How an operator is written when the axes of its tensors are in another order, one function for operators alike.

Given the order (:mod:`penstock.rewriting.orders`) of one value of a node, a rule tells the orders of the others, such
that the node can be written for the other values: ``Concat(axis=a)`` of ``v`` is ``Concat(axis=p[a])`` of ``v'``. Where
there is a choice (an Unsqueeze may put its axis anywhere) axes of size 1 stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock.rewriting import Refusal
from penstock.rewriting.orders import Order
from penstock.rewriting.site import Site

if TYPE_CHECKING:
    import onnx_ir as ir

Build = Callable[[Site, "list[ir.Value | None]"], "ir.Value"]


@dataclass(frozen=True, slots=True)
class Turned:
    """A node in another order of axes: the order of each input (``None``: as it is) and output, and how it is made."""

    inputs: tuple[Order | None, ...]
    outputs: tuple[Order, ...]
    build: Build


Rule = Callable[["ir.Node", Site, Order, bool], Turned | None]
RULES: dict[str, Rule] = {}


def turned(node: ir.Node, site: Site, order: Order, *, of_output: bool) -> Turned | None:
    """Return the node with its first data input, or its output, in another order; ``None`` where it can't be."""
    from penstock.rewriting import turning_rules  # noqa: F401  # rules register

    rule = RULES.get(node.op_type) if node.domain == "" else None
    if rule is None:
        return None
    try:
        return rule(node, site, order, of_output)
    except (Refusal, IndexError, ValueError):  # sizes that aren't known; an axis that isn't there
        return None


def turning_rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of operators."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register
