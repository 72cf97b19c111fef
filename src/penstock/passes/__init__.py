"""Graph rewrites: one file each, named ``verb_noun.py``, found by the registry; see :class:`Rule` and :class:`Pass`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, TypeGuard

if TYPE_CHECKING:
    import onnx_ir as ir

    from penstock.rewriting import Rewrite
    from penstock.rewriting.site import Site

Phase = Literal["clean", "fold", "fuse", "lower"]  # the order in which phases run


@dataclass(frozen=True, slots=True)
class Declined:
    """A place where the pass looked and did nothing, and why."""

    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class PassResult:
    """What a pass did: how many changes, each in a few words, and where it declined."""

    changes: tuple[str, ...] = ()
    declined: tuple[Declined, ...] = field(default=())

    @property
    def modified(self) -> bool:
        """Whether the model changed."""
        return bool(self.changes)


class Rule(Protocol):
    """A rewrite of one place: it is shown a node and answers with what to put in its place.

    A pass of either kind may have ``OPTIONAL = True``: then it runs only when it is named.
    """

    PHASE: Phase
    AFTER: tuple[str, ...]  # names of passes that run before this one in the same phase
    OPERATORS: tuple[str, ...]  # standard operators whose nodes it is shown

    def rewrite(self, node: ir.Node, site: Site) -> Rewrite | None:
        """Return the rewrite, or ``None`` where this is no place for the rule.

        Raises ``penstock.rewriting.Refusal`` with the reason where it almost is one. It only reads the graph.
        """


class Pass(Protocol):
    """A rewrite that needs the whole model. It keeps the model's inputs, outputs and meaning."""

    PHASE: Phase
    AFTER: tuple[str, ...]  # names of passes that run before this one in the same phase

    def run(self, model: ir.Model) -> PassResult:
        """Rewrite ``model`` in place and tell what changed and what didn't, with reasons."""


def is_rule(one: Pass | Rule) -> TypeGuard[Rule]:
    """Tell which of the two a pass is."""
    return hasattr(one, "rewrite")
