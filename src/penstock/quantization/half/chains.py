"""Chains: how far back fp32 has to reach for a delicate node to get numbers that it can bear.

The logarithm of a spectrum needs small numbers to be right, and so does the sum of squares before it, and the squares.
Each chain is computed once more on rounded numbers, as it would be in 16 bits: from where the nearest convolution or
matrix product ends to the delicate node, with the nodes near to it in fp32. While its result is still poor, one node
more is taken to fp32, on every path. In the end what remains to blame is the convolution itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from penstock.calibration import Batches
from penstock.quantization.half.binding import is_float32
from penstock.quantization.half.operators import COMPUTING
from penstock.quantization.half.reasons import Reasons
from penstock.quantization.half.rounding import Loss, Trial, measured
from penstock.quantization.half.seen import copied
from penstock.quantization.placement import constant

if TYPE_CHECKING:
    import onnx_ir as ir

MOST_STEPS = 16  # back from a delicate node
MOST_NODES = 80  # of one chain


def grown(model: ir.Model, found: Reasons, delicate: Collection[str], batches: Batches) -> dict[str, frozenset[str]]:
    """Return, by delicate node, the nodes that have to be in fp32 with it."""
    islands = {name: {name} if name in found.found else set() for name in delicate}
    cones = {name: _cone(found.nodes[name], found) for name in islands}
    open_ones = dict(islands)
    for _ in range(MOST_STEPS):
        if not open_ones:
            break
        losses = _losses(model, found, open_ones, cones, batches)
        for name in list(open_ones):
            loss = losses.get(name, Loss(float("inf"), 0.0))
            if not loss.excessive(found.nodes[name].op_type, found.half):
                del open_ones[name]
                continue
            more = _before(islands[name], cones[name], found) if islands[name] else {name}
            if not more:  # only what computes stands before them
                islands[name] |= _border(islands[name], found)
                del open_ones[name]
            islands[name] |= more
    return {name: frozenset(island) for name, island in islands.items() if island}


def _cone(node: ir.Node, found: Reasons) -> set[str]:
    """Return what a node is made of, back to convolutions, matrix products and the model's inputs."""
    cone, work = {str(node.name)}, [node]
    while work and len(cone) < MOST_NODES:
        for maker in _makers(work.pop(0), found):
            if maker.op_type not in COMPUTING and str(maker.name) not in cone:
                cone.add(str(maker.name))
                work.append(maker)
    return cone


def _makers(node: ir.Node, found: Reasons) -> list[ir.Node]:
    """Return the nodes of the main graph that make a node's floats, and could do so in 16 bits or do so in fp32."""
    makers = (value.producer() for value in node.inputs if value is not None and is_float32(value))
    return [
        maker for maker in makers
        if maker is not None and found.nodes.get(str(maker.name)) is maker and found.bindings[str(maker.name)].possible
    ]  # fmt: skip


def _before(island: set[str], cone: set[str], found: Reasons) -> set[str]:
    return {
        str(maker.name) for name in island | (found.found.keys() & cone) for maker in _makers(found.nodes[name], found)
        if str(maker.name) in cone and str(maker.name) not in island
    }  # fmt: skip


def _border(island: Collection[str], found: Reasons) -> set[str]:
    return {str(m.name) for name in island for m in _makers(found.nodes[name], found) if m.op_type in COMPUTING}


def _losses(
    model: ir.Model, found: Reasons, islands: Mapping[str, Collection[str]], cones: Mapping[str, Collection[str]],
    batches: Batches,
) -> dict[str, Loss]:  # fmt: skip
    copy = copied(model)
    trial = Trial(copy, found.half)
    for name, island in islands.items():
        twins: dict[ir.Value, ir.Value] = {}
        wide = island | found.found.keys()
        for node in [node for node in copy.graph if node.name in cones[name]]:
            inputs = [_input(node, index, trial, twins, wide, found) for index in range(len(node.inputs))]
            again = trial.again(node, inputs)
            twins |= dict(zip(node.outputs, again.outputs, strict=True))
            if node.name == name:
                trial.compare_all(name, node, again)
    return measured(trial, batches)


def _input(
    node: ir.Node, index: int, trial: Trial, twins: Mapping[ir.Value, ir.Value], wide: Collection[str], found: Reasons
) -> ir.Value | None:
    """Return what a twin reads: rounded where it would be made or read in 16 bits."""
    value = node.inputs[index]
    if value is None or not is_float32(value):
        return value
    binding = found.bindings[str(node.name)]
    narrow = str(node.name) not in wide and index in binding.inputs
    if (maker := value.producer()) is not None and found.bindings[str(maker.name)].possible and not constant(value):
        narrow = narrow or str(maker.name) not in wide
    chosen = twins.get(value, value)
    return trial.rounded(chosen) if narrow else chosen
