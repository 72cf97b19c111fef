"""Opsets: what changed in an operator from one to the next, and how a node of one is said in another.

A model is taken from opset to opset, one at a time, up or down. Where an operator changed, an *adapter* says what
becomes of a node: a function of this package's files, registered for a direction, the operators and the opset in which
they changed. It answers with a :class:`penstock.rewriting.Rewrite`, ``None`` where the node stays (attributes that say
their default are dropped, types are checked), or raises ``Refusal`` with the reason. Where there is none and the forms
differ, an operator is replaced by its function body in the standard, or refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import onnx_ir as ir

    from penstock.opsets.place import Place
    from penstock.rewriting import Rewrite

Direction = Literal["up", "down"]
Adapter = Callable[["ir.Node", "Place"], "Rewrite | None"]
_ADAPTERS: dict[tuple[Direction, int, str], Adapter] = {}
FILES = ("legacy", "axes", "softmax", "elementwise", "indexing", "pooling", "resizing", "normalizing", "quantizing",
         "recurrent", "scanning", "constants", "signal")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one node at one opset."""

    node: str
    op: str
    opset: int  # the one whose change it is: the higher of the two
    what: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A node whose meaning can't be kept, and why; ``function`` names the local function that it lies in."""

    node: str
    op: str
    opset: int
    reason: str
    function: str = ""


def up(opset: int, *ops: str) -> Callable[[Adapter], Adapter]:
    """Register an adapter that takes nodes from ``opset`` - 1 to ``opset``."""
    return _registering("up", opset, ops)


def down(opset: int, *ops: str) -> Callable[[Adapter], Adapter]:
    """Register an adapter that takes nodes from ``opset`` to ``opset`` - 1."""
    return _registering("down", opset, ops)


def _registering(direction: Direction, opset: int, ops: tuple[str, ...]) -> Callable[[Adapter], Adapter]:
    def register(adapter: Adapter) -> Adapter:
        for op in ops:
            assert (direction, opset, op) not in _ADAPTERS, (direction, opset, op)
            _ADAPTERS[direction, opset, op] = adapter
        return adapter

    return register


def adapter(direction: Direction, opset: int, op: str) -> Adapter | None:
    """Return the adapter for an operator's change, if there is one."""
    return adapters().get((direction, opset, op))


@cache
def adapters() -> dict[tuple[Direction, int, str], Adapter]:
    """Return all adapters; the first call imports them."""
    import importlib

    for name in FILES:
        importlib.import_module(f"penstock.opsets.{name}")
    return _ADAPTERS
