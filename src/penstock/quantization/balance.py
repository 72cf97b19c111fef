"""Balance: scale the channels of a tensor against each other, so that one grid fits them all, and back behind it.

With x the tensor before a weighted layer y = W·x, and s one factor for each channel, y = (W·s)·(x/s). Division by s
goes into what makes x: the rows of the layer before, where a Relu, a pooling or nothing lies between (cross-layer
equalization: Nagel et al., arXiv 1906.04721), or the scale and offset of a normalization (SmoothQuant: Xiao et al.,
arXiv 2211.10438). In float nothing changes but rounding.

The factors are s = a^α / w^(1-α), with a the largest magnitude of a channel of x and w that of its weights. Of several
α, and of leaving it, the one is taken with the least noise predicted behind the layer:

    Δx²/12 · Σ_i p_i·s_i²·|W_i|²  +  Σ_o Δw_o²/12 · Σ_i E[x_i²]/s_i²

where Δx is the step of the one grid for x/s, Δw_o that of the weights of output o, p_i the share of x_i that isn't 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.calibration import Batches
from penstock.quantization import probe
from penstock.quantization.placement import constant, weight_index

if TYPE_CHECKING:
    import onnx_ir as ir

    Array = np.ndarray[Any, np.dtype[Any]]

THROUGH = frozenset(
    {"Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Flatten", "Reshape", "Identity"}
)
NORMALIZATIONS = {"LayerNormalization": (1, 2), "RMSNormalization": (1,), "BatchNormalization": (1, 2)}
ALPHAS = (0.25, 0.5, 0.75, 1.0)
# of the predicted noise by which a scaling has to lower it: 6 dB. The prediction counts all outputs of a layer alike;
# where the gain is small, the few that matter may lose (5 dB at the output of a small net, for 2 dB predicted)
GAIN = 4.0


@dataclass(frozen=True, slots=True)
class Balanced:
    """One scaling that was made: between which nodes, with which α, and by how much the noise falls as predicted."""

    before: str
    after: tuple[str, ...]
    alpha: float
    gain_db: float
    spread: float  # largest factor by the smallest
    by: str = "equalize"  # or smooth: through a normalization


@dataclass(slots=True)
class _Site:
    """A tensor whose channels can be scaled: what makes it, what reads it, and where its channels lie."""

    tensor: ir.Value
    maker: ir.Node
    made: ir.Value  # what the maker makes; the tensor itself, or what it was before a Relu
    readers: tuple[ir.Node, ...]
    channels: int
    repeat: int  # of each channel along the readers' inputs, after a Flatten


def balance(model: ir.Model, batches: Batches, *, layers: bool, normalizations: bool) -> list[Balanced]:
    """Scale channels wherever it pays, in place; return what was done. The samples are gone through once."""
    sites = [
        site for site in _sites(model)
        if (normalizations if site.maker.op_type in NORMALIZATIONS else layers)
    ]  # fmt: skip
    if not sites:
        return []
    seen = {str(site.tensor.name): _Channels() for site in sites}
    axes = {str(site.tensor.name): _channel_axis(site) for site in sites}

    def visit(name: str, array: Array, first: int, count: int) -> None:
        seen[name].add(array, axes[name])

    probe.observe(model, list(seen), batches, visit)
    done = []
    for site in sites:
        if found := _scaled(model, site, seen[str(site.tensor.name)]):
            done.append(found)
    return done


class _Channels:
    """The largest magnitude and the mean square of each channel."""

    def __init__(self) -> None:
        self.largest: Array = np.zeros(0)
        self.square: Array = np.zeros(0)
        self.live: Array = np.zeros(0)  # how many aren't 0: those have no error of rounding
        self.count = 0

    def add(self, array: Array, axis: int) -> None:
        axis %= array.ndim
        rest = tuple(i for i in range(array.ndim) if i != axis)
        largest = np.maximum(array.max(axis=rest), -array.min(axis=rest)).astype(np.float64)
        square = np.square(array, dtype=np.float64).sum(axis=rest)
        live = np.count_nonzero(array, axis=rest)
        if not self.count:
            self.largest, self.square, self.live = largest, square, live
        else:
            self.largest = np.maximum(self.largest, largest)
            self.square, self.live = self.square + square, self.live + live
        self.count += array.size // max(len(largest), 1)


def _sites(model: ir.Model) -> Iterator[_Site]:
    ends = set(model.graph.outputs)
    for node in model.graph:
        if node.domain != "":
            continue
        channels = _rows(node)
        if not channels:
            continue
        made = node.outputs[0]
        if made in ends or (node.op_type in NORMALIZATIONS and any(value.uses() for value in node.outputs[1:])):
            continue
        if (found := _readers(made, ends)) is None:
            continue
        tensor, readers = found
        widths = {_columns(reader) for reader in readers}
        if len(widths) != 1 or (width := widths.pop()) % channels or width < channels:
            continue
        yield _Site(tensor, node, made, readers, channels, width // channels)


def _rows(node: ir.Node) -> int:
    """Return how many channels a node makes, where each can be scaled in its constants; 0 where not."""
    if node.op_type in NORMALIZATIONS:
        held = [node.inputs[i] for i in NORMALIZATIONS[node.op_type] if i < len(node.inputs)]
        if not held or not all(constant(value) for value in held if value is not None):
            return 0
        shape = _shape(held[0])
        return shape[0] if len(shape) == 1 else 0
    if node.op_type not in ("Conv", "Gemm", "MatMul") or weight_index(node) != 1:
        return 0
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and (not constant(bias) or len(bias.const_value.shape) != 1):  # type: ignore[union-attr]  # just seen
        return 0
    shape = _shape(node.inputs[1])
    if node.op_type == "Conv":
        return shape[0]
    if len(shape) != 2 or node.attributes.get_float("beta", 1.0) != 1:
        return 0
    return shape[0 if _turned(node) else 1]


def _readers(made: ir.Value, ends: set[ir.Value]) -> tuple[ir.Value, tuple[ir.Node, ...]] | None:
    """Follow a value through operators that keep its channels apart; return the last, and the weighted nodes behind."""
    value = made
    for _ in range(8):
        uses = list(value.uses())
        if not uses or value in ends:
            return None
        if all(use.idx == 0 and _columns(use.node) for use in uses):
            return value, tuple(use.node for use in uses)
        if len(uses) != 1 or uses[0].idx != 0 or uses[0].node.op_type not in THROUGH or uses[0].node.domain != "":
            return None
        node = uses[0].node
        if node.op_type in ("Flatten", "Reshape") and not _flattens(node):
            return None
        if len(node.outputs) > 1 and any(out.uses() for out in node.outputs[1:]):
            return None
        value = node.outputs[0]
    return None


def _flattens(node: ir.Node) -> bool:
    """Whether a Flatten or Reshape makes rows of (N, C, …), so that a channel's elements stay together."""
    before, after = node.inputs[0], node.outputs[0]
    if node.op_type == "Flatten":
        return node.attributes.get_int("axis", 1) == 1
    if before is None or before.shape is None or after.shape is None or len(after.shape) != 2:
        return False
    return len(before.shape) > 2 and before.shape[0] == after.shape[0]


def _columns(node: ir.Node) -> int:
    """Return how many channels a weighted node reads, where its weights can take their factors; 0 where not."""
    if node.domain != "" or node.op_type not in ("Conv", "Gemm", "MatMul") or weight_index(node) != 1:
        return 0
    shape = _shape(node.inputs[1])
    if node.op_type == "Conv":
        return shape[1] * _group(node)
    if len(shape) != 2 or bool(node.attributes.get_int("transA", 0)):
        return 0
    return shape[1 if _turned(node) else 0]


def _channel_axis(site: _Site) -> int:
    """Return the axis of the channels in what the readers read."""
    return -1 if site.readers[0].op_type == "MatMul" else 1


def _scaled(model: ir.Model, site: _Site, seen: _Channels) -> Balanced | None:
    """Scale a site where it pays."""
    if not seen.count or len(seen.largest) != site.channels * site.repeat:
        return None
    largest = seen.largest.reshape(site.channels, -1).max(axis=1)
    square = (seen.square / seen.count).reshape(site.channels, -1).sum(axis=1)
    live = (seen.live / seen.count).reshape(site.channels, -1).mean(axis=1)
    columns = [_by_column(node, _array(node.inputs[1]), site.channels, site.repeat) for node in site.readers]
    weights = np.max([np.abs(part).max(axis=(0, 2)) for part in columns], axis=0)
    alive = (largest > 0) & (weights > 0)
    if not alive.any():
        return None

    def places(part: Array) -> int:
        """Return how many weights read one channel: those of a kernel."""
        return int(part.shape[2]) // site.repeat

    def noise(factors: Array) -> float:
        step = (largest / factors).max() / 255
        total = 0.0
        for part in columns:
            scaled = part * factors[None, :, None]
            total += step**2 / 12 * float((np.square(scaled).sum(axis=(0, 2)) * live).sum())
            steps = np.abs(scaled).max(axis=(1, 2)) / 127
            total += float(np.square(steps).sum()) / 12 * float((square / factors**2).sum()) * places(part)
        return total

    plain = noise(np.ones(site.channels))
    best, alpha, factors = plain, 0.0, np.ones(site.channels)
    for tried in ALPHAS:
        made = np.ones(site.channels)
        made[alive] = largest[alive] ** tried / weights[alive] ** (1 - tried)
        made[alive] /= np.exp(np.log(made[alive]).mean())
        if (found := noise(made)) < best:
            best, alpha, factors = found, tried, made
    if plain < best * GAIN or not np.isfinite(factors).all():
        return None
    _divide(model, site.maker, factors)
    for node in site.readers:
        _multiply(model, node, factors, site.repeat)
    names = tuple(str(node.name) for node in site.readers)
    gain = 10 * float(np.log10(plain / best))
    by = "smooth" if site.maker.op_type in NORMALIZATIONS else "equalize"
    return Balanced(str(site.maker.name), names, alpha, gain, float(factors.max() / factors.min()), by)


def _turned(node: ir.Node) -> bool:
    return bool(node.attributes.get_int("transB", 0))


def _group(node: ir.Node) -> int:
    return int(node.attributes.get_int("group", 1))


def _shape(value: ir.Value | None) -> tuple[int, ...]:
    return () if value is None or value.const_value is None else tuple(value.const_value.shape.numpy())


def _array(value: ir.Value | None) -> Array:
    assert value is not None and value.const_value is not None
    found: Array = value.const_value.numpy().astype(np.float64)
    return found


def _by_column(node: ir.Node, weights: Array, channels: int, repeat: int) -> Array:
    """Return the weights as (outputs, channels, rest)."""
    if node.op_type == "Conv":
        group = _group(node)
        if group == 1:
            return weights.reshape(len(weights), channels, -1)
        each = weights.shape[1]
        spread = np.zeros((len(weights) // group, channels, int(np.prod(weights.shape[2:]))))
        for g in range(group):
            rows = weights[g * len(weights) // group : (g + 1) * len(weights) // group]
            spread[:, g * each : (g + 1) * each] = rows.reshape(len(rows), each, -1)
        return spread
    rows = weights if _turned(node) else weights.T
    return rows.reshape(len(rows), channels, repeat)


def _divide(model: ir.Model, node: ir.Node, factors: Array) -> None:
    """Let a node make its channels divided by the factors."""
    if node.op_type in NORMALIZATIONS:
        for index in NORMALIZATIONS[node.op_type]:
            if index < len(node.inputs) and node.inputs[index] is not None:
                _replace(model, node, index, _array(node.inputs[index]) / factors)
        return
    weights = _array(node.inputs[1])
    if node.op_type == "Conv" or _turned(node):
        weights = weights / factors.reshape([-1] + [1] * (weights.ndim - 1))
    else:
        weights = weights / factors
    _replace(model, node, 1, weights)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        _replace(model, node, 2, _array(node.inputs[2]) / factors)


def _multiply(model: ir.Model, node: ir.Node, factors: Array, repeat: int) -> None:
    """Let a node read its channels divided by the factors."""
    weights = _array(node.inputs[1])
    if node.op_type == "Conv":
        group, each = _group(node), weights.shape[1]
        held = factors.reshape(group, 1, each)
        rows = weights.reshape(group, len(weights) // group, each, -1) * held[..., None]
        weights = rows.reshape(weights.shape)
    else:
        wide = np.repeat(factors, repeat)
        weights = weights * (wide if _turned(node) else wide[:, None])
    _replace(model, node, 1, weights)


def _replace(model: ir.Model, node: ir.Node, index: int, array: Array) -> None:
    """Give a node a constant of its own in place of the one that it reads."""
    import onnx_ir as ir

    old = node.inputs[index]
    assert old is not None
    graph = model.graph
    tensor = ir.tensor(array.astype(np.float32), name=old.name)
    if len(old.uses()) == 1 and not old.is_graph_output():
        old.const_value = tensor
        return
    taken: Sequence[str] = [*graph.initializers]
    name = f"{old.name}_{node.name}_{index}"
    while name in taken:
        name += "_"
    tensor.name = name
    value = ir.Value(name=name, shape=old.shape, type=old.type, const_value=tensor)
    graph.register_initializer(value)
    node.replace_input_with(index, value)
