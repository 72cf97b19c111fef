"""Keep one of several nodes that compute the same: same operator, attributes and inputs, in one graph.

1. Nodes with bodies stay, and so do those that draw random numbers: two draws are not one draw.
2. Operators of other domains stay: nothing says that they compute the same twice.
3. The first of them takes all others along in one change. Those that come to read the same later are met one by one.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.rewriting import Refusal, Rewrite
from penstock.rewriting.site import Site

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "clean"
AFTER: tuple[str, ...] = ("eliminate-noops", "deduplicate-initializers")
OPERATORS: tuple[str, ...] = ("*",)
_RANDOM = frozenset(
    "RandomNormal RandomUniform RandomNormalLike RandomUniformLike Multinomial Bernoulli Constant".split()  # noqa: SIM905
)


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Let readers of the later nodes read the first, met before or now in the same sweep."""
    together = _readers(node, site) if site.sweeping and node.domain == "" else None
    key = _key(node) if together else None
    if together is None or key is None:
        return None
    memo: dict[Hashable, ir.Node] = site.memo.setdefault(__name__, {})
    first = memo.setdefault(key, node)
    if first is node:
        same = _after(node, key, together.get(key, []), site)
        if not same:
            return None
    else:
        if first.graph is None or _key(first) != key:
            memo[key] = node
            return None
        if _hands_out(node):
            raise Refusal("it is an output of its graph")
        same = [node]
    values = {old: new for one in same for old, new in zip(one.outputs, first.outputs, strict=True)}
    name = f"{first.outputs[0].name}"
    return Rewrite(values, f"the same as {name}" if len(same) == 1 else f"{len(same)} nodes are the same as {name}")


def _readers(node: ir.Node, site: Site) -> dict[Hashable, list[ir.Node]] | None:
    """Return the readers of what the node reads first, by their keys; nothing where it is alone."""
    read = next((value for value in node.inputs if value is not None), None)
    if read is None:
        return None
    readers: dict[ir.Value, dict[Hashable, list[ir.Node]] | None] = site.memo.setdefault(f"{__name__}.readers", {})
    if read not in readers:
        users = dict.fromkeys([use.node for use in read.uses()])
        groups: dict[Hashable, list[ir.Node]] = {}
        for user in users if len(users) > 1 else ():
            if (key := _key(user)) is not None:
                groups.setdefault(key, []).append(user)
        readers[read] = groups or None
    return readers[read]


def _after(node: ir.Node, key: Hashable, group: list[ir.Node], site: Site) -> list[ir.Node]:
    """Return those of a group that come after the node; none where one comes before it."""
    if len(group) < 2:
        return []
    same = [one for one in group if one is not node and one.graph is node.graph and not _hands_out(one)]
    same = [one for one in same if _key(one) == key]  # it may have changed since
    if not same or site.first_of([node, *same]) is not node:
        return []  # each has its turn
    return same


def _hands_out(node: ir.Node) -> bool:
    return any(value.is_graph_output() for value in node.outputs)


def _key(node: ir.Node) -> Hashable | None:
    """Return what nodes that compute the same have in common; ``None`` for one that nothing may take the place of."""
    if node.domain != "" or node.op_type in _RANDOM or not node.inputs:
        return None
    if node.op_type == "Dropout" and len(node.inputs) > 2:
        return None
    attributes = []
    for name in sorted(node.attributes.data):
        attribute = node.attributes[name]
        value = attribute.value
        if attribute.is_ref() or attribute.type.name in ("GRAPH", "GRAPHS", "TENSORS", "SPARSE_TENSOR", "TYPE_PROTO"):
            return None
        if attribute.type.name == "TENSOR":
            if value.nbytes > 1024 or value.dtype.is_string():
                return None
            value = (value.dtype, tuple(value.shape.numpy()), value.tobytes())
        items = value if isinstance(value, (list, tuple)) else [value]
        attributes.append(
            (name, *(repr(item) if isinstance(item, float) else item for item in items))
        )  # 0.0 is not -0.0
    inputs = tuple([0 if value is None else id(value) for value in node.inputs])
    named = [bool(value.name) for value in node.outputs]  # an output without a name isn't made
    return id(node.graph), node.op_type, inputs, tuple(attributes), tuple(named)
