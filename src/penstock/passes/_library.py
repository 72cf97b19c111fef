"""What passes share: a library's work in silence, names of nodes, the size of a model with its functions inlined."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from penstock.passes import Declined

if TYPE_CHECKING:
    import onnx_ir as ir


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


def node_label(node: ir.Node) -> str:
    """Name a node for a reader: its own name, else its operator and first output."""
    return node.name or f"{node.op_type}({node.outputs[0].name if node.outputs else ''})"


def expanded_size(model: ir.Model, limit: int) -> int:
    """Count the nodes after inlining every function call, or return ``limit`` where they reach it.

    Every function is counted once, callees first, so that a 1 KB file of nested doublings costs nothing to refuse;
    functions that call each other in a circle reach the limit.
    """
    sizes: dict[object, int] = {}
    # each call that is open: the function, its nodes that are left, and what has been counted of it; None is the graph
    calls: list[tuple[object, Iterator[ir.Node], int]] = [(None, iter(list(model.graph.all_nodes())), 0)]
    active: set[object] = set()
    while True:
        function, nodes, total = calls.pop()
        for node in nodes:
            key = node.op_identifier()
            if key in model.functions and key not in sizes:
                if key in active:
                    return limit
                active.add(key)
                # a call is counted when its function is: the node is looked at again
                calls += [
                    (function, itertools.chain((node,), nodes), total),
                    (key, iter(list(model.functions[key].all_nodes())), 0),
                ]
                break
            total = min(total + sizes.get(key, 1), limit)
        else:
            if function is None:
                return total
            active.discard(function)
            sizes[function] = total


def trains(node: ir.Node, opset: int) -> bool:
    """Whether a node is a BatchNormalization in training mode, or may be one: its mode is given by a function's call.

    Before opset 14 its second output says so.
    """
    if node.op_type != "BatchNormalization" or node.domain != "":
        return False
    mode = node.attributes.get("training_mode")
    if opset < 14:
        return len(node.outputs) > 1
    return mode is not None and (mode.is_ref() or bool(mode.as_int()))


def remove_unused_functions(model: ir.Model) -> tuple[str, ...]:
    """Remove functions that nobody calls; return what to tell of each."""
    if not model.functions:
        return ()
    called: set[object] = set()
    stack = [*model.graph.all_nodes()]
    while stack:
        key = stack.pop().op_identifier()
        if key in model.functions and key not in called:
            called.add(key)
            stack.extend(model.functions[key].all_nodes())
    unused = [key for key in model.functions if key not in called]
    for key in unused:
        del model.functions[key]
    return tuple(f"removed the function {domain}::{name}" for domain, name, _ in unused)


def declined_all(nodes: list[ir.Node], reason: str) -> tuple[Declined, ...]:
    """Give one reason for several nodes."""
    return tuple(Declined(node_label(node), reason) for node in nodes)
