"""Wide: single layers whose activations lie on grids of 16 bits, among layers of 8.

1. What a named layer reads and what it makes lies on a grid of 16 bits. So does all that shares a grid with these: the
   result of a MaxPool or Reshape, which lies on the grid of its input. What makes such a tensor makes 16 bits: rounded
   to 8 first, nothing would be gained.
2. Another layer that reads such a tensor reads it in 8 bits. Where a pair stands behind the tensor for all readers, the
   border is a second pair behind the first; where a reader has a pair of its own, that one is of 8 bits.
3. Weights keep to 8 bits, biases to the grid of products.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from penstock import graph, store
from penstock.errors import UsageError
from penstock.quantization.placement import Placement
from penstock.quantization.prepare import fitting

if TYPE_CHECKING:
    import onnx_ir as ir

TYPES = {"uint8": "uint16", "int8": "int16"}  # of activations → those of the layers that get 16 bits
FLAG = "--int16-layers"
MOST_NAMES = 40  # of layers that a message lists
ON_INTEGERS = ("QLinear", "QGemm", "MatMulInteger", "ConvInteger")  # how ONNX Runtime's operators on integers begin
MOST_TOLD = 8  # of layers that a note lists


@dataclass(frozen=True, slots=True)
class Computed:
    """What ONNX Runtime makes of a layer that has to do with 16 bits: it computes it in float, or on integers."""

    node: str
    op: str
    named: bool  # asked for; else it makes what a named layer reads, or reads what one makes
    in_float: bool


def widened(model: ir.Model, placement: Placement, patterns: Collection[str]) -> Placement:
    """Give the named layers 16 bits, and those beside them borders."""
    fit = fitting(placement.reads, patterns)
    named = [node for node in placement.reads if node in fit]
    if not named:
        return placement
    nodes = {str(node.name): node for node in model.graph}
    touched = {tensor for name in named for tensor in (*_read(nodes[name], placement), *_made(nodes, name, placement))}
    groups = {placement.grids[tensor] for tensor in touched if tensor in placement.grids}
    wide = frozenset(tensor for tensor, first in placement.grids.items() if first in groups)
    taken = {str(value.name) for node in model.graph for value in (*node.inputs, *node.outputs) if value is not None}
    sources, grids = dict(placement.sources), dict(placement.grids)
    keys: dict[str, str] = {}
    borders: dict[str, dict[str, str]] = {}
    for name in placement.reads:
        if name in named or _carries(nodes[name], placement):
            continue
        for tensor in _read(nodes[name], placement):
            if tensor not in wide:
                continue
            if tensor not in keys:
                key = keys[tensor] = _free(f"{tensor}_in_8_bits", taken)
                sources[key] = placement.sources[tensor]
                grids[key] = next((k for t, k in keys.items() if placement.grids[t] == placement.grids[tensor]), key)
            borders.setdefault(name, {})[tensor] = keys[tensor]
    return replace(placement, sources=sources, grids=grids, int16=frozenset(named), wide=wide, borders=borders)


def _read(node: ir.Node, placement: Placement) -> list[str]:
    held = [node.inputs[index] for index in placement.reads[str(node.name)]]
    return [str(value.name) for value in held if value is not None]


def _made(nodes: dict[str, ir.Node], name: str, placement: Placement) -> list[str]:
    """Return the quantized tensors that a node makes; of a Relu that is left out behind it, the Relu's."""
    behind = {nodes[clip].inputs[0]: tensor for clip, tensor in placement.absorbed.items()}
    return [behind.get(value, str(value.name)) for value in nodes[name].outputs]


def _carries(node: ir.Node, placement: Placement) -> bool:
    """Whether what a node makes lies on the grid of what it reads."""
    table = placement.consumer
    return node.op_type in table.moving or (node.op_type == "Concat" and table.one_grid_concat)


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


# -- what is asked for -------------------------------------------------------------------------------------------------


def check(placement: Placement, patterns: Sequence[str]) -> None:
    """Raise ``UsageError`` for a name that no layer has which computes on integers: a slip would change nothing."""
    known = {layer.node: layer for layer in placement.layers}
    able = [name for name in known if name in placement.weights]
    able += [name for name in known if name in placement.reads and name not in placement.weights]
    for pattern in patterns:
        fit = fitting(known, (pattern,))
        found = [name for name in known if name in fit]
        if any(name in placement.reads for name in found):
            continue
        near = difflib.get_close_matches(pattern, able, 1)
        do = f"did you mean {near[0]!r}? " if near else ""
        listed = ", ".join(able[:MOST_NAMES]) + (f" and {len(able) - MOST_NAMES} more" if able[MOST_NAMES:] else "")
        do += f"layers that compute on integers: {listed}" if able else "no layer computes on integers"
        what = f"there is no layer named {pattern!r} to give 16 bits"
        if found:
            first = known[found[0]]
            what = f"{first.op} {first.node!r} can't have 16 bits, as it computes on no integers: {first.reason}"
            raise UsageError("bad-setting", what, where=FLAG, do=do)
        raise UsageError("unknown-node", what, where=FLAG, do=do)


# -- what becomes of it ------------------------------------------------------------------------------------------------


def computed(path: Path, model: ir.Model, placement: Placement) -> list[Computed]:
    """Ask ONNX Runtime in what it computes the layers that read or make 16 bits; ``path`` holds the quantized model.

    ``model`` is the float one. Where no layers were named, all have 16 bits. A layer computes on integers where the
    runtime's own optimizer makes an operator of integers of it, and in float else. Raises ``InputError``.
    """
    from penstock.backends import onnxruntime as backend

    nodes = {str(node.name): node for node in model.graph}
    with store.scratch() as work:
        backend.fuse_offline(path, work / "fused.onnx")
        made = {str(node.name): node.op_type for node in graph.load(work / "fused.onnx").graph}
    found = []
    for name in placement.reads:
        node = nodes[name]
        tensors = {*_read(node, placement), *_made(nodes, name, placement)}
        if _carries(node, placement) or (placement.wide and placement.wide.isdisjoint(tensors)):
            continue
        named = name in placement.int16 or not placement.wide
        found.append(Computed(name, node.op_type, named, not made.get(name, "").startswith(ON_INTEGERS)))
    return found


def reasons(found: Sequence[Computed], dtype: str) -> dict[str, str]:
    """Say of each layer what it has to do with 16 bits, and that ONNX Runtime computes it in float where it does."""
    told = {}
    for one in found:
        where = "; ONNX Runtime computes it in float" if one.in_float else ""
        if one.named or one.in_float:
            told[one.node] = (f"its activations are {dtype}" if one.named else f"it makes or reads {dtype}") + where
    return told


def note(found: Sequence[Computed], dtype: str) -> str:
    """Say what ONNX Runtime does with layers of 16 bits, and with those beside them; "" for nothing to say."""
    named = [one.node for one in found if one.named and one.in_float]
    beside = [one.node for one in found if not one.named and one.in_float]
    if not named and not beside:
        return ""
    more = f" and, beside, {_listed(beside)}" if named and beside else ""
    return f"{dtype} activations: ONNX Runtime computes {_listed(named or beside)}{more} in float; weights stay int8"


def uneven(placement: Placement, model: ir.Model) -> list[str]:
    """Return the layers that read 8 bits and make 16: a runtime without float arithmetic has to take them."""
    nodes = {str(node.name): node for node in model.graph}
    return [
        name for name in placement.reads
        if name not in placement.int16 and not _carries(nodes[name], placement)
        and not placement.wide.isdisjoint(_made(nodes, name, placement))
    ]  # fmt: skip


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MOST_TOLD
    return ", ".join(names[:MOST_TOLD]) + (f" and {more} more" if more > 0 else "")
