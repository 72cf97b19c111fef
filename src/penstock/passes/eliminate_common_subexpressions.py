"""Keep one of several nodes that compute the same: same operator, attributes and inputs, in one graph.

1. Nodes with bodies stay, and so do those that draw random numbers: two draws are not one draw.
2. Operators of other domains stay: nothing says that they compute the same twice.
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
    """Let readers of the later node read the earlier one, met before in the same sweep."""
    if not site.sweeping or node.domain != "" or node.op_type in _RANDOM or not node.inputs:
        return None
    if node.op_type == "Dropout" and len(node.inputs) > 2:
        return None
    key = _key(node)
    if key is None:
        return None
    memo: dict[Hashable, ir.Node] = site.memo.setdefault(__name__, {})
    first = memo.setdefault(key, node)
    if first is node:
        return None
    if first.graph is None or _key(first) != key:
        memo[key] = node
        return None
    if any(old.is_graph_output() for old in node.outputs):
        raise Refusal("it is an output of its graph")
    values = dict(zip(node.outputs, first.outputs, strict=True))
    return Rewrite(values, f"the same as {first.outputs[0].name}")


def _key(node: ir.Node) -> Hashable | None:
    attributes = []
    for name in sorted(node.attributes):
        attribute = node.attributes[name]
        value = attribute.value
        if attribute.is_ref() or attribute.type.name in ("GRAPH", "GRAPHS", "TENSORS", "SPARSE_TENSOR", "TYPE_PROTO"):
            return None
        if attribute.type.name == "TENSOR":
            if value.nbytes > 1024 or value.dtype.is_string():
                return None
            value = (value.dtype, tuple(value.shape.numpy()), value.tobytes())
        attributes.append((name, tuple(value) if isinstance(value, list) else value))
    inputs = tuple(0 if value is None else id(value) for value in node.inputs)
    named = tuple(bool(value.name) for value in node.outputs)  # an output without a name isn't made
    return id(node.graph), node.op_type, inputs, tuple(attributes), named
