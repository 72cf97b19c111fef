"""Study: one float model, what was seen of its tensors, and any number of quantized models made of the two.

What is seen is seen once: every choice of ranges, layers and repair after it costs no run over the samples.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.calibration import Batches
from penstock.quantization import probe, ranges, wide
from penstock.quantization.consumers import CONSUMERS, Consumer
from penstock.quantization.emit import Weights, bounds, emit
from penstock.quantization.ends import bias_home
from penstock.quantization.grid import SPANS, Grid, of_range, of_weights
from penstock.quantization.placement import Placement, place
from penstock.quantization.repair import corrected
from penstock.quantization.shelf import Shelf
from penstock.quantization.statistics import Statistics

if TYPE_CHECKING:
    import onnx_ir as ir

    from penstock.quantization.moments import Moments

    Array = np.ndarray[Any, np.dtype[Any]]


SOME = 128  # samples whose mean a bias is corrected by
BOUNDED = {"Sigmoid": (0.0, 1.0), "HardSigmoid": (0.0, 1.0), "Softmax": (0.0, 1.0), "Tanh": (-1.0, 1.0)}


@dataclass(frozen=True, slots=True)
class Choice:
    """How to quantize: what a search chooses between."""

    consumer: str = "ort-cpu"
    activations: str = ""  # empty: the consumer's own
    ranges: str = "mse"
    percentile: float = 99.99
    per_channel: bool = True
    weight_bits: int = 8
    outputs: bool = False
    equalize: bool = False
    smooth: bool = False
    correct_bias: str = "none"  # none, analytic or empirical
    rounding: str = "nearest"  # or adaptive, or auto, which :mod:`.automatic` decides
    exclude: tuple[str, ...] = ()
    int16_layers: tuple[str, ...] = ()  # names, or patterns of them: their activations have 16 bits
    only: tuple[str, ...] | None = None

    @property
    def table(self) -> Consumer:
        """The consumer's entry."""
        return CONSUMERS[self.consumer]

    @property
    def dtype(self) -> str:
        """The type of activations."""
        return self.activations or self.table.activations[0]

    @property
    def wide_dtype(self) -> str:
        """The type of activations of the layers that have 16 bits."""
        return wide.TYPES.get(self.dtype, self.dtype)


@dataclass(frozen=True, slots=True)
class Quantized:
    """A quantized model, and all that it was made with."""

    model: ir.Model
    placement: Placement
    grids: Mapping[str, Grid]
    weights: Mapping[str, Weights]


@dataclass(slots=True)
class Study:
    """A prepared model and its calibration samples; statistics are collected when they are first wanted."""

    model: ir.Model
    batches: Batches
    statistics: dict[str, Statistics] = field(default_factory=dict)
    cleaned: Batches | None = None  # without samples that stand out, where that isn't all of them
    notes: list[str] = field(default_factory=list)
    means: dict[str, Moments] = field(default_factory=dict)  # of what layers read in the float model
    shelf: Shelf | None = None  # where statistics are kept from one time to the next
    headroom: float = 1.0  # by which ranges are widened, where samples don't reach as far as real ones
    runs: int = 0
    progress: Callable[[int, int], None] | None = None

    def placed(self, choice: Choice) -> Placement:
        """Decide which nodes compute on integers."""
        found = place(self.model, choice.table, exclude=choice.exclude, only=choice.only, outputs=choice.outputs)
        return wide.widened(self.model, found, choice.int16_layers) if choice.int16_layers else found

    def look(self, tensors: Collection[str], *, histogram: bool) -> None:
        """Collect the statistics of those tensors that haven't been looked at yet, or not so closely."""
        missing = [
            name for name in tensors
            if name not in self.statistics or (histogram and not self.statistics[name].wants_histogram)
        ]  # fmt: skip
        if not missing:
            return
        if self.shelf is None:
            self.statistics.update(self._seen(missing, histogram=histogram))
        else:
            self.statistics.update(
                self.shelf.statistics(missing, histogram, lambda: self._seen(missing, histogram=histogram))
            )

    def _seen(self, tensors: Collection[str], *, histogram: bool) -> dict[str, Statistics]:
        numbers, count, known = self.batches.numbers, self.batches.count, probe.values(self.model)
        found = {
            # of what can't be negative, 0 is the end that every grid has
            name: Statistics(name, histogram=histogram, numbers=numbers, count=count,
                             floor=_floor(known[name].producer()))
            for name in tensors
        }  # fmt: skip

        def visit(name: str, array: Array, first: int, count: int) -> None:
            found[name].add(array, first, count)

        self.runs += probe.observe(self.model, [*tensors], self.batches, visit, done=self.progress)
        return found

    def grids(self, placement: Placement, choice: Choice) -> dict[str, Grid]:
        """Choose a grid for every quantized tensor; those that share one get the same object."""
        wanted = sorted({source for sources in placement.sources.values() for source in sources})
        inner = [name for name in wanted if name not in self.model.graph.initializers]
        self.look(inner, histogram=choice.ranges in ranges.WITH_HISTOGRAM)
        fixed = self._fixed(placement)
        made: dict[str, Grid] = {}
        for tensor, sources in placement.sources.items():
            first = placement.grids[tensor]
            if first not in made:
                dtype = choice.wide_dtype if first in placement.wide else choice.dtype
                low, high = SPANS[dtype]
                aim = ranges.Wanted(high - low, choice.table.symmetric, choice.percentile)
                found = [fixed.get(name) or self._range(name, choice.ranges, aim) for name in sources]
                made[first] = of_range(
                    min(one[0] for one in found), max(one[1] for one in found), dtype, symmetric=choice.table.symmetric,
                )  # fmt: skip
        return {tensor: made[placement.grids[tensor]] for tensor in placement.sources}

    def _range(self, name: str, method: str, aim: ranges.Wanted) -> tuple[float, float]:
        if (value := self.model.graph.initializers.get(name)) is not None and value.const_value is not None:
            array = value.const_value.numpy()
            return float(array.min(initial=0)), float(array.max(initial=0))
        seen = self.statistics[name]
        if not np.isfinite(seen.low):
            return 0.0, 0.0
        low, high = ranges.of(method, seen, aim)
        if self.headroom == 1.0:
            return low, high
        least, most = self._bounds(name)
        return max(low * self.headroom, min(low, least)), min(high * self.headroom, max(high, most))

    def _bounds(self, name: str) -> tuple[float, float]:
        """Return the interval that a tensor can't leave, whatever the sample."""
        node = probe.values(self.model)[name].producer()
        if node is None:
            return -float("inf"), float("inf")
        return bounds(node) if node.op_type in ("Relu", "Clip") else BOUNDED.get(node.op_type, (-np.inf, np.inf))

    def _fixed(self, placement: Placement) -> Mapping[str, tuple[float, float]]:
        """Return the ranges that the consumer prescribes, by tensor."""
        table = placement.consumer.fixed
        return {
            str(out.name): table[node.op_type]
            for node in self.model.graph
            if node.op_type in table
            for out in node.outputs
        }

    def weights(self, placement: Placement, grids: Mapping[str, Grid], choice: Choice) -> dict[str, Weights]:
        """Round the weights of every integer layer to its grid."""
        found = {}
        for node in self.model.graph:
            if (index := placement.weights.get(str(node.name))) is None:
                continue
            real, bias = parameters(node, index)
            data = node.inputs[1 - index]
            assert data is not None
            axis = channel_axis(node) if choice.per_channel else None
            # where the consumer leaves biases in float, ONNX Runtime rounds them to the grid of products all the same
            read = grids[placement.key(str(node.name), str(data.name))]
            least = _least(read, bias, real, axis) if node.op_type != "MatMul" else None
            grid = of_weights(real, axis, bits=choice.weight_bits, least=least)
            found[str(node.name)] = Weights(grid.quantize(real), grid, bias)
        return found

    def quantized(self, choice: Choice) -> Quantized:
        """Make the quantized model of a choice."""
        placement = self.placed(choice)
        grids = self.grids(placement, choice)
        weights = self.weights(placement, grids, choice)
        made = emit(self.model, placement, grids, weights)
        adaptive = choice.rounding == "adaptive"
        if adaptive or choice.correct_bias != "none":
            plain = choice.correct_bias == "analytic" and not adaptive
            seen, known = (self.model, self.means) if plain else (made, None)
            cleaned = self.cleaned or self.batches
            samples = cleaned if adaptive else cleaned.some(SOME)
            weights = corrected(self.model, placement, weights, samples, seen=seen, adaptive=adaptive, known=known)
            made = emit(self.model, placement, grids, weights)
        return Quantized(made, placement, grids, weights)


def _floor(node: ir.Node | None) -> float | None:
    """Return 0 for what a Relu makes, or a Clip at 0, which is 0 somewhere on nearly any sample."""
    return 0.0 if node is not None and node.op_type in ("Relu", "Clip") and bounds(node)[0] == 0.0 else None


def parameters(node: ir.Node, index: int) -> tuple[Array, Array | None]:
    """Return the weights and the bias of a weighted node, float32."""
    held = node.inputs[index]
    assert held is not None and held.const_value is not None
    home = bias_home(node)
    bias = home[0].inputs[home[1]] if home is not None and len(home[0].inputs) > home[1] else None
    weights = held.const_value.numpy().astype(np.float32)
    if bias is None or bias.const_value is None:
        return weights, None
    row = bias.const_value.numpy().astype(np.float32)
    if node.op_type == "Gemm" and row.size == 1:  # it is broadcast, which integer operators don't do
        row = np.repeat(row.reshape(-1), weights.shape[channel_axis(node)])
    return weights, row


def channel_axis(node: ir.Node) -> int:
    """Return the axis of a weighted node's weights that its result's channels go by."""
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": 1}[node.op_type]


def _least(data: Grid, bias: Array | None, weights: Array, axis: int | None) -> Array | None:
    """Return the scales below which a bias on the grid of products would leave int32."""
    if bias is None:
        return None
    least: Array = np.abs(bias.astype(np.float64)) / (float(data.scale.flat[0]) * 2**30)
    if axis is None:
        return np.array(least.max(initial=0.0))
    channels = weights.shape[axis]
    if len(least) == channels:
        return least
    return least.reshape(-1, channels).max(axis=0) if len(least) % channels == 0 else np.full(channels, least.max())
