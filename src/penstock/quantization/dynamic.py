"""Dynamic int8: weights are integers in the file, activations become integers at run time, by each tensor's own range.

1. A MatMul or Gemm with a constant matrix on the right becomes DynamicQuantizeLinear, MatMulInteger, Cast and Mul, in
   the order that ONNX Runtime fuses. A tensor is quantized once for all who read it.
2. An LSTM with constant weights becomes com.microsoft's DynamicQuantizeLSTM, an Attention of com.microsoft its
   QAttention; only ONNX Runtime has these.
3. Convolutions stay in float: ONNX Runtime's ConvInteger is slower than its float Conv. So do products that are too
   small to win back what quantizing their input costs. ``convolutions`` and ``small`` convert them.
4. Products of two activations, GRUs, standard Attentions and tables of embeddings stay in float.
5. Bodies of If, Loop and Scan are looked into; a tensor from outside is quantized where it is made, if that is done
   there anyway.

Weights are signed and symmetric, with a scale for each column: x86 with VNNI and ONNX Runtime's fused kernels are
fastest with these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.quantization import dynamic_fit as fit
from penstock.quantization.dynamic_weights import of_columns
from penstock.quantization.grid import of_weights
from penstock.quantization.placement import Layer, constant
from penstock.quantization.writing import MICROSOFT, Writer, drop_unused, take_over
from penstock.rewriting.walk import graphs_of

if TYPE_CHECKING:
    import onnx_ir as ir

    Array = np.ndarray[Any, np.dtype[Any]]

FLOAT = 1  # the number of the element type, for Cast


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for."""

    exclude: frozenset[str] = frozenset()
    per_channel: bool = True
    small: bool = False  # convert layers too small to gain
    convolutions: bool = False  # convert them, though they get slower


def quantize(model: ir.Model, wanted: Wanted) -> tuple[Layer, ...]:
    """Rewrite a float model, in place; tell of every node that could hold integer weights what became of it."""
    return _Dynamic(model, wanted).run()


@dataclass(slots=True)
class _Dynamic:
    model: ir.Model
    wanted: Wanted
    writer: Writer = field(init=False)
    quantized: dict[tuple[ir.Value, object], tuple[ir.Value, ...]] = field(default_factory=dict)
    held: dict[tuple[ir.Value, str], tuple[ir.Value, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.writer = Writer(self.model)

    def run(self) -> tuple[Layer, ...]:
        layers = []
        made: dict[str, Callable[[ir.Node], None]] = {
            "MatMul": self._product, "Gemm": self._product, "LSTM": self._lstm, "Attention": self._attention,
            "Conv": self._conv,
        }  # fmt: skip
        for graph in graphs_of(self.model):
            for node in list(graph):
                reason = self._reason(node)
                if reason is None:
                    continue
                name = str(node.name or node.outputs[0].name)
                layers.append(Layer(name, node.op_type, "float" if reason else "integer", reason))
                if not reason:
                    made[node.op_type](node)
        drop_unused(self.model)
        return tuple(layers)

    def _reason(self, node: ir.Node) -> str | None:
        """Say why a node stays in float: ``""`` where it doesn't, ``None`` where that is no question."""
        found = fit.reason(node, small=self.wanted.small, convolutions=self.wanted.convolutions)
        return "it was excluded" if found is not None and node.name in self.wanted.exclude else found

    # -- what is made --------------------------------------------------------------------------------------------------

    def _product(self, node: ir.Node) -> None:
        data, weights, graph = fit.need(node.inputs[0]), fit.need(node.inputs[1]), fit.place_of(node)
        real = fit.matrix(node)
        whole, scale, zero = self._weights(weights, f"matrix {fit.turned(node)} {fit.alpha(node)}", real)
        integers, own_scale, own_zero = self._input(data, graph)
        before = self._before(node)
        name = str(node.outputs[0].name)
        shape = node.outputs[0].shape
        product = before("MatMulInteger", [integers, whole, own_zero, zero], f"{name}_integers", ["INT32"])
        result = self._scaled(product, before, own_scale, scale, name, shape)
        bias = fit.bias(node)
        if bias is not None:
            row = bias if not isinstance(bias, np.ndarray) else self.writer.hold(graph, f"{name}_bias", bias)
            result = before("Add", [result, row], f"{name}_biased", ["FLOAT"], shape=shape)[0]
        take_over(node.outputs[0], result)
        graph.remove([node], safe=True)
        self._bias_last(result)

    def _scaled(
        self, product: tuple[ir.Value, ...], before: Callable[..., tuple[ir.Value, ...]], own_scale: ir.Value,
        scale: ir.Value, name: str, shape: ir.Shape | None,
    ) -> ir.Value:  # fmt: skip
        """Bring the sums of integers back to real numbers."""
        cast = before("Cast", [product[0]], f"{name}_cast", ["FLOAT"], shape=shape, to=FLOAT)
        scales = before("Mul", [own_scale, scale], f"{name}_scales", ["FLOAT"], shape=scale.shape)
        return before("Mul", [cast[0], scales[0]], f"{name}_scaled", ["FLOAT"], shape=shape)[0]

    def _bias_last(self, value: ir.Value) -> None:
        """Let an Add behind a product hold the constant last: there alone ONNX Runtime looks for it."""
        uses = tuple(value.uses())
        if len(uses) == 1 and not value.is_graph_output():
            add = uses[0].node
            first = add.inputs[0]
            if add.op_type == "Add" and add.domain == "" and constant(first) and add.inputs[1] is value:
                add.replace_input_with(0, value)
                add.replace_input_with(1, first)

    def _lstm(self, node: ir.Node) -> None:
        graph = fit.place_of(node)
        parts: list[ir.Value] = []
        for index in (1, 2):
            weights = fit.need(node.inputs[index])
            real = fit.numbers(weights)  # (directions, 4·hidden, inputs)
            rows = real.reshape(-1, real.shape[2])
            if self.wanted.per_channel:
                grid = of_weights(rows, 0)
                whole, scales = grid.quantize(rows).reshape(real.shape), grid.scale.reshape(real.shape[:2])
            else:
                grids = [of_weights(one, None) for one in real]
                whole = np.stack([grid.quantize(one) for grid, one in zip(grids, real, strict=True)])
                scales = np.array([grid.scale for grid in grids])
            parts += self._hold(weights, "recurrent", whole.transpose(0, 2, 1), scales, np.zeros(scales.shape))
        inputs: list[ir.Value | None] = [*node.inputs, *[None] * (8 - len(node.inputs))]
        if inputs[3] is None:  # ONNX Runtime takes a slower way where there is no bias
            nothing = np.zeros((real.shape[0], 2 * real.shape[1]), np.float32)
            inputs[3] = self.writer.hold(graph, f"{node.name}_bias", nothing)
        inputs = [inputs[0], parts[0], parts[3], *inputs[3:], parts[1], parts[2], parts[4], parts[5]]
        attributes = {name: one.value for name, one in node.attributes.items() if name != "layout"}
        made = self.writer.node(
            "DynamicQuantizeLSTM", inputs, f"{node.name or node.outputs[0].name}_dynamic",
            ["FLOAT"] * len(node.outputs), domain=MICROSOFT, **attributes,
        )  # fmt: skip
        self._replace(graph, node, made)

    def _attention(self, node: ir.Node) -> None:
        graph = fit.place_of(node)
        data, weights, bias = (fit.need(value) for value in node.inputs[:3])
        whole, scale, zero = self._weights(weights, "matrix False 1.0", fit.numbers(weights))
        integers, own_scale, own_zero = self._input(data, graph)
        mask, past = ([*node.inputs, None, None][index] for index in (3, 4))
        made = self.writer.node(
            "QAttention", [integers, whole, bias, own_scale, scale, mask, own_zero, zero, past],
            f"{node.name or node.outputs[0].name}_dynamic", ["FLOAT"] * len(node.outputs), domain=MICROSOFT,
            **{name: one.value for name, one in node.attributes.items()},
        )  # fmt: skip
        self._replace(graph, node, made)

    def _conv(self, node: ir.Node) -> None:
        """Make a ConvInteger, with unsigned weights: ONNX Runtime has a slow loop alone for signed ones."""
        graph = fit.place_of(node)
        data, weights = fit.need(node.inputs[0]), fit.need(node.inputs[1])
        real = fit.numbers(weights)
        channels = (1, -1, *[1] * (real.ndim - 2))
        grid = of_weights(real, 0 if self.wanted.per_channel else None)
        whole = (grid.quantize(real).astype(np.int16) + 128).astype(np.uint8)
        name = str(node.outputs[0].name)
        held = self.writer.hold(graph, f"{weights.name}_quantized", whole)
        scale = self.writer.hold(graph, f"{weights.name}_scale", grid.scale.reshape(channels).astype(np.float32))
        zero = self.writer.hold(graph, f"{weights.name}_zero_point", np.array(128, np.uint8))
        integers, own_scale, own_zero = self._input(data, graph)
        before = self._before(node)
        attributes = {name: one.value for name, one in node.attributes.items()}
        shape = node.outputs[0].shape
        product = before("ConvInteger", [integers, held, own_zero, zero], f"{name}_integers", ["INT32"], **attributes)
        result = self._scaled(product, before, own_scale, scale, name, shape)
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None:
            row = self.writer.hold(graph, f"{name}_bias", fit.numbers(bias).reshape(channels))
            result = before("Add", [result, row], f"{name}_biased", ["FLOAT"], shape=shape)[0]
        take_over(node.outputs[0], result)
        graph.remove([node], safe=True)

    # -- parts ---------------------------------------------------------------------------------------------------------

    def _before(self, node: ir.Node) -> Callable[..., tuple[ir.Value, ...]]:
        """Return what makes a node and puts it before ``node``."""

        def make(*arguments: Any, **attributes: Any) -> tuple[ir.Value, ...]:
            made = self.writer.node(*arguments, **attributes)
            fit.place_of(node).insert_before(node, made)
            return tuple(made.outputs)

        return make

    def _replace(self, graph: ir.Graph, node: ir.Node, made: ir.Node) -> None:
        graph.insert_before(node, made)
        for old, new in zip(node.outputs, made.outputs, strict=True):
            if old.name:
                take_over(old, new)
            else:
                new.name = ""
        graph.remove([node], safe=True)

    def _input(self, data: ir.Value, graph: ir.Graph) -> tuple[ir.Value, ...]:
        """Return the integers, the scale and the zero point that a tensor has at run time."""
        for place in (graph, data.graph):
            if place is not None and (data, place) in self.quantized:
                return self.quantized[data, place]
        maker = data.producer()
        made = self.writer.node(
            "DynamicQuantizeLinear", [data], f"{data.name}_quantized", ["UINT8", "FLOAT", "UINT8"],
            shape=data.shape,
        )  # fmt: skip
        if maker is not None and maker.graph is graph:
            graph.insert_after(maker, made)
        elif len(graph):
            graph.insert_before(graph[0], made)
        self.quantized[data, graph] = tuple(made.outputs)
        return self.quantized[data, graph]

    def _weights(self, value: ir.Value, how: str, real: Array) -> tuple[ir.Value, ...]:
        """Return the integers, the scales and the zero points of weights; those that are used twice are held once."""
        if (value, how) not in self.held:
            grid = of_columns(real, per_column=self.wanted.per_channel)
            self._hold(value, how, grid.quantize(real), grid.scale, grid.zero)
        return self.held[value, how]

    def _hold(self, value: ir.Value, how: str, whole: Array, scales: Array, zeros: Array) -> tuple[ir.Value, ...]:
        if (value, how) not in self.held:
            graph = value.graph
            assert graph is not None
            self.held[value, how] = (
                self.writer.hold(graph, f"{value.name}_quantized", np.ascontiguousarray(whole, np.int8)),
                self.writer.hold(graph, f"{value.name}_scale", scales.astype(np.float32)),
                self.writer.hold(graph, f"{value.name}_zero_point", zeros.astype(np.int8)),
            )
        return self.held[value, how]
