"""How a library's pass runs here: in silence, counted, and without sight of what a caller may override."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from penstock.passes import Declined, PassResult

if TYPE_CHECKING:
    import onnx_ir as ir


def run_library_pass(model: ir.Model, rewrite: Callable[[ir.Model], object]) -> PassResult:
    """Run ``rewrite`` on ``model`` in place and describe the difference node by node.

    Its return value is ignored: libraries report "modified" for changes that leave no trace, and leave it out for some
    that do.
    """
    before = inventory(model)
    with quiet(), _overridable_hidden(model):
        rewrite(model)
    return PassResult(describe(before, inventory(model)))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep a library's prints, log lines and warnings (numpy's on folded infinities too) off the user's terminal."""
    import numpy as np

    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(), np.errstate(all="ignore"),
        ):  # fmt: skip
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@contextlib.contextmanager
def _overridable_hidden(model: ir.Model) -> Iterator[None]:
    # an input with a default is no constant, yet libraries read its default as one
    hidden = [(value, value.const_value) for value in model.graph.inputs if value.const_value is not None]
    for value, _ in hidden:
        value.const_value = None
    try:
        yield
    finally:
        for value, tensor in hidden:
            value.const_value = tensor


def inventory(model: ir.Model) -> dict[tuple[str, str], str]:
    """List what a model is made of, as (kind, name) → wiring: nodes, initializers, inputs, functions, opset imports."""
    found: dict[tuple[str, str], str] = {}
    count: dict[tuple[str, str], int] = {}
    for node in (*model.graph.all_nodes(), *(n for f in model.functions.values() for n in f.all_nodes())):
        inputs = ", ".join("" if value is None else str(value.name) for value in node.inputs)
        names = [value.name for value in node.outputs if value.name]
        label = names[0] if names else str(node.name)
        first = (node.op_type, label)
        if first in found:  # branches may use the same names
            count[first] = count.get(first, 0) + 1
            label += "'" if count[first] == 1 else f"'{count[first]}"
        found[node.op_type, label] = f"{inputs} ({', '.join(sorted(node.attributes))}; {', '.join(names)})"
    for graph in model.graphs():
        found |= {("initializer", name): "" for name in graph.initializers}
        found |= {("input", str(value.name)): "" for value in graph.inputs}
    found |= {("function", "::".join(filter(None, key))): "" for key in model.functions}
    found |= {("opset import", domain): "" for domain in model.opset_imports}
    return found


def describe(before: dict[tuple[str, str], str], after: dict[tuple[str, str], str]) -> tuple[str, ...]:
    """Tell two inventories apart: what was removed, added, and, where neither, what is wired otherwise; sorted."""
    lines = [f"removed {kind} {name}" for kind, name in sorted(before.keys() - after.keys())]
    lines += [f"added {kind} {name}" for kind, name in sorted(after.keys() - before.keys())]
    if not lines:
        lines = [f"rewired {k} {n}" for k, n in sorted(before.keys() & after.keys()) if before[k, n] != after[k, n]]
    return tuple(lines)


def node_label(node: ir.Node) -> str:
    """Name a node for a reader: its own name, else its operator and first output."""
    return node.name or f"{node.op_type}({node.outputs[0].name if node.outputs else ''})"


def expanded_size(model: ir.Model, limit: int) -> int:
    """Count the nodes after inlining every function call, or return ``limit`` where they reach it.

    Every function is counted once, callees first, so that a 1 KB file of nested doublings costs nothing to refuse;
    functions that call each other in a circle reach the limit.
    """
    sizes: dict[object, int] = {}
    open_calls: set[object] = set()

    def size_of(nodes: Iterator[ir.Node]) -> int:
        total = 0
        for node in nodes:
            key = node.op_identifier()
            if key not in model.functions:
                total += 1
                continue
            if key not in sizes:
                if key in open_calls or len(open_calls) > 200:
                    return limit
                open_calls.add(key)
                sizes[key] = size_of(iter(model.functions[key].all_nodes()))
                open_calls.discard(key)
            total += sizes[key]
            if total >= limit:
                return limit
        return min(total, limit)

    return size_of(iter(model.graph.all_nodes()))


def declined_all(nodes: list[ir.Node], reason: str) -> tuple[Declined, ...]:
    """Give one reason for several nodes."""
    return tuple(Declined(node_label(node), reason) for node in nodes)
