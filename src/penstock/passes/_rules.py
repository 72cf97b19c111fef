"""Third-party rewrite rules, tried only where they can match: what a rule looks at grows with the graph otherwise.

1. A rule is tried on nodes of the operator that its pattern ends in, not on every node.
2. A pattern that ends in two nodes which read the same value looks for the second among that value's readers. The
   library tries all pairs of the graph, which takes minutes for a few thousand nodes and hours for a hostile file.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_ir as ir

MAX_READERS = 64  # of one value: above, pairs of them are not tried


def indexed(rules: Iterable[Any]) -> list[Any]:
    """Wrap rules, so that each is tried where it can match. The rules themselves stay as they are."""
    return [_Indexed(rule) for rule in rules]


class _Indexed:
    """A rule as the library's rule set sees it."""

    def __init__(self, rule: Any) -> None:
        ends = rule._target_pattern.output_nodes
        self._ends = ends[0].op_identifier()
        self._rule = rule
        if len(ends) > 1:
            self._rule = copy.copy(rule)
            self._rule._matcher = _among_readers(rule._target_pattern)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rule, name)

    def try_rewrite(self, model: ir.Model, scope: Any, node: ir.Node, **options: Any) -> Any:
        """Try the rule on a node; ``None`` where it doesn't match."""
        if self._ends is not None and self._ends != node.op_identifier():
            return None
        return self._rule.try_rewrite(model, scope, node, **options)


def _among_readers(pattern: Any) -> Any:
    """Build the library's matcher with other candidates for the second and later ends of a pattern."""
    import onnx_ir as ir
    from onnxscript.rewriter import _basics, _matcher

    first, *others = pattern.output_nodes

    class AmongReaders(_matcher.SimplePatternMatcher):
        def match(
            self, model: ir.Model, graph_or_function: Any, node: ir.Node, *, verbose: int = 0,
            remove_nodes: bool = True, tracer: Any = None,
        ) -> Any:  # fmt: skip
            self._tracer = tracer
            self._graph = graph_or_function if isinstance(graph_or_function, ir.Graph) else graph_or_function.graph
            candidates = [[node], *(list(_readers(first, other, node)) for other in others)]
            if all(candidates):
                for combination in itertools.product(*candidates):
                    self._init_match(verbose)
                    if match := self._multi_match(combination, check_removable=remove_nodes):
                        return match
            return _basics.MatchResult().fail("No match found.")

    return AmongReaders(pattern)


def _readers(first: Any, other: Any, node: ir.Node) -> Iterator[ir.Node]:
    """Yield the nodes of the same graph that read what ``node`` reads where both patterns read the same."""
    shared = next(
        ((i, j) for i, a in enumerate(first.inputs) for j, b in enumerate(other.inputs) if a is b and a is not None),
        None,
    )
    if shared is None or shared[0] >= len(node.inputs) or (value := node.inputs[shared[0]]) is None:
        return
    uses = value.uses()
    if len(uses) > MAX_READERS:
        return
    for use in uses:
        if use.idx == shared[1] and use.node.graph is node.graph and use.node.op_identifier() == other.op_identifier():
            yield use.node
