"""Graph rewrites: one file each, named ``verb_noun.py``, found by the registry; see :class:`Pass`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import onnx_ir as ir

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


class Pass(Protocol):
    """One rewrite. It keeps the model's inputs, outputs and meaning."""

    PHASE: Phase
    AFTER: tuple[str, ...]  # names of passes that run before this one in the same phase

    def run(self, model: ir.Model) -> PassResult:
        """Rewrite ``model`` in place and tell what changed and what didn't, with reasons."""
