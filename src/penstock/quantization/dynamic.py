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

Weights are signed, with a scale for each column: ONNX Runtime's fused kernels are fastest with these on x86 with VNNI.
How they are rounded stands in :mod:`penstock.quantization.dynamic_weights`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.quantization import dynamic_fit as fit
from penstock.quantization import dynamic_weights as weights
from penstock.quantization.dynamic_weights import Rounded
from penstock.quantization.placement import Layer, constant
from penstock.quantization.writing import MICROSOFT, Writer, drop_unused, take_over
from penstock.rewriting.walk import graphs_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from penstock.jsonable import Json

    Array = np.ndarray[Any, np.dtype[Any]]

FLOAT = 1  # the number of the element type, for Cast


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for."""

    exclude: frozenset[str] = frozenset()
    per_channel: bool = True
    small: bool = False  # convert layers too small to gain
    convolutions: bool = False  # convert them, though they get slower
    bits: int = 8  # of signed weights; with 7 no sum of two products leaves 16 bits, which some CPUs add them in


Told = dict[Layer, dict[str, "Json"]]  # of layers on integers: what rounding did to their weights


def quantize(model: ir.Model, wanted: Wanted) -> tuple[tuple[Layer, ...], Told]:
    """Rewrite a float model, in place; tell of every node that could hold integer weights what became of it."""
    return _Dynamic(model, wanted).run()


@dataclass(slots=True)
class _Dynamic:
    model: ir.Model
    wanted: Wanted
    writer: Writer = field(init=False)
    quantized: dict[tuple[ir.Value, object], tuple[ir.Value, ...]] = field(default_factory=dict)
    held: dict[tuple[ir.Value, str], tuple[Rounded, tuple[ir.Value, ...]]] = field(default_factory=dict)
    rounded: list[Rounded] = field(default_factory=list)  # the weights of the layer in hand

    def __post_init__(self) -> None:
        self.writer = Writer(self.model)

    def run(self) -> tuple[tuple[Layer, ...], Told]:
        layers: list[Layer] = []
        told: Told = {}
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
                    self.rounded = []
                    made[node.op_type](node)
                    told[layers[-1]] = {"weights": self._account()}
        drop_unused(self.model)
        return tuple(layers), told

    def _account(self) -> Json:
        """Tell what rounding did to the weights of the layer that was made last."""
        noisy = [one.sqnr_db for one in self.rounded if one.sqnr_db is not None]
        scales = sum(int(one.scale.size) for one in self.rounded)
        return {"dtype": str(self.rounded[0].whole.dtype), "scales": scales, "sqnr_db": min(noisy, default=None)}

    def _reason(self, node: ir.Node) -> str | None:
        """Say why a node stays in float: ``""`` where it doesn't, ``None`` where that is no question."""
        found = fit.reason(node, small=self.wanted.small, convolutions=self.wanted.convolutions)
        return "it was excluded" if found is not None and node.name in self.wanted.exclude else found

    # -- what is made --------------------------------------------------------------------------------------------------

    def _product(self, node: ir.Node) -> None:
        data, matrix, graph = fit.need(node.inputs[0]), fit.need(node.inputs[1]), fit.place_of(node)
        even = fit.positive(data)
        how = f"matrix {fit.turned(node)} {fit.alpha(node)} {even}"
        whole, scale, zero = self._weights(matrix, how, partial(weights.matrix, even=even), fit.matrix(node))
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
        self._leave(node, product[0])
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
            parts += self._weights(fit.need(node.inputs[index]), "recurrent", weights.recurrent)
        inputs: list[ir.Value | None] = [*node.inputs, *[None] * (8 - len(node.inputs))]
        if inputs[3] is None:  # ONNX Runtime takes a slower way where there is no bias
            directions, rows = fit.shape(fit.need(node.inputs[1]))[:2]
            nothing = np.zeros((directions, 2 * rows), np.float32)
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
        data, matrix, bias = (fit.need(value) for value in node.inputs[:3])
        whole, scale, zero = self._weights(matrix, "matrix False 1.0 False", weights.matrix)
        integers, own_scale, own_zero = self._input(data, graph)
        mask, past = ([*node.inputs, None, None][index] for index in (3, 4))
        made = self.writer.node(
            "QAttention", [integers, whole, bias, own_scale, scale, mask, own_zero, zero, past],
            f"{node.name or node.outputs[0].name}_dynamic", ["FLOAT"] * len(node.outputs), domain=MICROSOFT,
            **{name: one.value for name, one in node.attributes.items()},
        )  # fmt: skip
        self._replace(graph, node, made)

    def _conv(self, node: ir.Node) -> None:
        graph, name = fit.place_of(node), str(node.outputs[0].name)
        data, kernel = fit.need(node.inputs[0]), fit.need(node.inputs[1])
        held, scale, zero = self._weights(kernel, "kernel", weights.kernel)
        integers, own_scale, own_zero = self._input(data, graph)
        before = self._before(node)
        attributes = {key: one.value for key, one in node.attributes.items()}
        shape = node.outputs[0].shape
        product = before("ConvInteger", [integers, held, own_zero, zero], f"{name}_integers", ["INT32"], **attributes)
        result = self._scaled(product, before, own_scale, scale, name, shape)
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None:
            row = self.writer.hold(
                graph, f"{name}_bias", fit.numbers(bias).reshape(1, -1, *[1] * (len(fit.shape(kernel)) - 2))
            )
            result = before("Add", [result, row], f"{name}_biased", ["FLOAT"], shape=shape)[0]
        take_over(node.outputs[0], result)
        self._leave(node, product[0])

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
        self._leave(node, made.outputs[0])

    def _leave(self, node: ir.Node, result: ir.Value) -> None:
        """Take a node out; the one that computes in its place gets its name."""
        made = result.producer()
        assert made is not None
        fit.place_of(node).remove([node], safe=True)
        made.name, node.name = node.name or made.name, None
        made.metadata_props.update(node.metadata_props)

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

    def _weights(
        self, value: ir.Value, how: str, rounded: Callable[..., Rounded], real: Array | None = None
    ) -> tuple[ir.Value, ...]:
        """Return the integers, the scales and the zero points of weights; those that are used twice are held once."""
        if (value, how) not in self.held:
            graph = value.graph
            assert graph is not None
            numbers = fit.numbers(value) if real is None else real
            made = rounded(numbers, per_column=self.wanted.per_channel, bits=self.wanted.bits)
            names = ("quantized", "scale", "zero_point")
            arrays = (made.whole, made.scale.astype(np.float32), made.zero)
            held = [self.writer.hold(graph, f"{value.name}_{n}", a) for n, a in zip(names, arrays, strict=True)]
            self.held[value, how] = made, tuple(held)
        self.rounded.append(self.held[value, how][0])
        return self.held[value, how][1]
