"""Rewriting a graph: what a rule sees, how its rewrite is carried out whole or not at all, and the log of all of them.

A *rule* (:class:`penstock.passes.Rule`) looks at one node and answers with a :class:`Rewrite`, a reason why not, or
nothing. It only reads the graph; the editor alone changes it. So a rule that raises leaves no trace.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir


class Refusal(Exception):  # noqa: N818 (it says no, with a reason)
    """Raised inside a rule: there is something to rewrite here, but it must not be; the text is the reason."""


class PassBroke(Exception):  # noqa: N818 (named for what happened)
    """A pass raised while the model was being changed, and may have left it half changed: begin anew without it."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Readers of each key read its value instead; what nobody reads any more goes. ``what``: a few words for the log.

    New nodes are put before the node that the rule was shown, or before ``before``: they have to come after all that
    they read, and before all readers of the keys. Where no one place is that, ``places`` says for first outputs of new
    nodes before which node of the same graph they go.
    """

    values: dict[ir.Value, ir.Value]
    what: str
    before: ir.Node | None = None
    places: Mapping[ir.Value, ir.Node] = field(default_factory=dict)
