"""Placement: which nodes compute on integers for a consumer, which tensors are quantized for it, and why not others.

1. A *weighted* node (Conv, Gemm, MatMul) takes integers where its weights are constant and its type is float32.
2. An *arithmetic* node (Add, Concat, a pooling) takes integers where all that it reads is made by integer nodes, and an
   integer node reads what it makes. Else a pair of conversions would be paid for no gain, and accuracy with it.
3. A *moving* node (Reshape, MaxPool) takes integers on the same conditions; its result lies on the grid of its input.
4. A Relu or Clip before a quantized tensor is *absorbed*: the grid clips as it does.
5. The last weighted node before the model's outputs gives a float result. Where the consumer has no such kernel, it
   stays in float whole, and so does one before it that makes few channels of many: its result would be rounded and
   clipped for readers in float alone. Where outputs are asked for quantized, its result is (:func:`.ends.result`), and
   so is what nodes of 2 and 3 make of it up to the model's outputs.

The sets of 2 and 3 are the largest that fulfil the conditions: they begin with all candidates and are pruned. Which
tensors have 16 bits, and where the borders to those of 8 are, :mod:`.wide` decides.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from penstock.quantization import ends
from penstock.quantization.consumers import Consumer
from penstock.quantization.ends import CLIPS
from penstock.quantization.prepare import fitting
from penstock.rewriting.walk import refers

if TYPE_CHECKING:
    import onnx_ir as ir

State = Literal["integer", "moved", "absorbed", "float"]
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
NARROW = 8  # a layer that makes of so many channels one is cheap: it costs what it reads


@dataclass(frozen=True, slots=True)
class Layer:
    """What becomes of one node, and why."""

    node: str
    op: str
    state: State
    reason: str


@dataclass(frozen=True, slots=True)
class Placement:
    """Names of nodes and tensors; a tensor's grid is that of its ``source``, the one whose range is looked at."""

    consumer: Consumer
    layers: tuple[Layer, ...]
    sources: Mapping[str, tuple[str, ...]]  # quantized tensor → tensors whose ranges its grid holds
    grids: Mapping[str, str]  # quantized tensor → the first of those that share its grid
    whole: frozenset[str]  # tensors that all readers get quantized: integer nodes make them
    absorbed: Mapping[str, str]  # node that is left out → the tensor that it made, now quantized before it
    reads: Mapping[str, tuple[int, ...]]  # integer node → the inputs that it gets quantized
    weights: Mapping[str, int]  # weighted integer node → which input holds the weights
    int16: frozenset[str] = frozenset()  # integer nodes that were asked for with 16 bits
    wide: frozenset[str] = frozenset()  # tensors on grids of 16 bits
    borders: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # reader → tensor of 16 bits → its 8-bit key

    @property
    def integers(self) -> tuple[Layer, ...]:
        """The layers with weights that compute on integers."""
        return tuple(layer for layer in self.layers if layer.node in self.weights)

    def key(self, node: str, tensor: str) -> str:
        """Return under which key of the grids stands the one that a node reads a tensor on."""
        return self.borders.get(node, {}).get(tensor, tensor)

    def state(self, node: str) -> State:
        """Return what becomes of a node."""
        return next((layer.state for layer in self.layers if layer.node == node), "float")


def constant(value: ir.Value | None) -> bool:
    """Whether a value is an initializer that the caller can't replace."""
    return value is not None and value.const_value is not None and not value.is_graph_input()


def weight_index(node: ir.Node) -> int:
    """Return which input of a weighted node holds constant weights; -1 where none does."""
    if node.op_type == "MatMul" and not constant(node.inputs[1]) and constant(node.inputs[0]):
        return 0
    return 1 if len(node.inputs) > 1 and constant(node.inputs[1]) else -1


def place(
    model: ir.Model, consumer: Consumer, *, exclude: Collection[str] = (), only: Collection[str] | None = None,
    outputs: bool = False,
) -> Placement:  # fmt: skip
    """Decide for a model whose nodes have names and whose weights are initializers.

    ``exclude``, names or patterns of them, stay in float; with ``only``, of the weighted nodes all others do.
    ``outputs``: quantize the results of the last layers too.
    """
    left = fitting((str(node.name) for node in model.graph), exclude)
    return _Placing(model, consumer, left, None if only is None else frozenset(only), outputs).run()


class _Placing:
    def __init__(
        self, model: ir.Model, consumer: Consumer, exclude: frozenset[str], only: frozenset[str] | None, outputs: bool
    ) -> None:
        self.model, self.consumer, self.exclude, self.only = model, consumer, exclude, only
        self.outputs = outputs or consumer.everything
        self.nodes = list(model.graph)
        self.ends = set(model.graph.outputs)
        self.reasons: dict[ir.Node, str] = {}
        self.chosen: set[ir.Node] = set()
        self.absorbed: dict[ir.Node, ir.Value] = {}
        self.results: dict[ir.Value, ir.Node] = {}  # of weighted nodes that could give floats → the node: quantized too

    def run(self) -> Placement:
        candidates = [node for node in self.nodes if self._candidate(node)]
        self.chosen = set(candidates)
        self._drop_tail()
        while dropped := [node for node in self.chosen if (reason := self._misplaced(node)) and self._no(node, reason)]:
            self.chosen.difference_update(dropped)
        # where a Relu could be moved on integers, it costs half of a grid, and an operator
        self.chosen -= {node for node in self.chosen if node.op_type in CLIPS and self._clips_alone(node)}
        self._absorb()
        return self._result()

    def _no(self, node: ir.Node, reason: str) -> bool:
        self.reasons[node] = reason
        return True

    # -- which nodes ---------------------------------------------------------------------------------------------------

    def _candidate(self, node: ir.Node) -> bool:
        op, table = node.op_type, self.consumer
        if node.domain != "" or refers(node):
            return not self._no(node, "it is no operator of the standard")
        if node.name in self.exclude:
            return not self._no(node, "it was excluded")
        if op in table.weighted:
            reason = self._unfit(node)
        elif op in table.arithmetic or op in table.moving:
            reason = self._unmoved(node)
        elif op in WEIGHTED:
            reason = f"{table.name} computes no {op} on integers"
        else:
            lack = (
                f"{table.name} has no {op} on integers" if table.everything else f"{table.name} computes {op} in float"
            )
            reason = "" if op in CLIPS else lack
            return False if not reason else not self._no(node, reason)
        return not reason or not self._no(node, reason)

    def _unfit(self, node: ir.Node) -> str:
        """Say why a weighted node can't take integers."""
        import onnx_ir as ir

        index = weight_index(node)
        if index < 0:
            return "none of its factors is constant, and products of two activations lose most"
        weights = node.inputs[index]
        assert weights is not None and weights.const_value is not None
        if weights.const_value.dtype != ir.DataType.FLOAT:
            return f"its weights are {weights.const_value.dtype.name}, not FLOAT"
        if not weights.const_value.size:
            return "its weights have no elements"
        if self.only is not None and node.name not in self.only:
            return "it isn't among the layers that are quantized here"
        if node.op_type == "MatMul" and (len(weights.const_value.shape) != 2 or index == 0):
            return "its constant factor isn't a matrix on the right"
        if node.op_type == "Gemm":
            if node.attributes.get_float("alpha", 1.0) != 1 or node.attributes.get_float("beta", 1.0) != 1:
                return "its alpha or beta isn't 1"
            if node.attributes.get_int("transA", 0):
                return "its first factor is transposed"
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None and (not constant(bias) or len(bias.const_value.shape) != 1):  # type: ignore[union-attr]  # just seen
            return "its bias isn't a constant row"
        if node.inputs[0] is not None and constant(node.inputs[0]):
            return "all of its inputs are constant"
        return ""

    def _unmoved(self, node: ir.Node) -> str:
        op = node.op_type
        if op == "Resize" and node.attributes.get_string("mode", "nearest") not in ("nearest", "linear"):
            return "cubic interpolation overshoots the grid"
        if op == "Pad" and not _pads_zeros(node):
            return "what it pads with isn't known to be 0, which every grid has"
        if op == "MaxPool" and len(node.outputs) > 1:
            return "its indices are read"
        return ""

    def _drop_tail(self) -> None:
        """Leave the last weighted nodes before the outputs in float, where they can't give a float result otherwise.

        Where outputs are quantized, note the results of those that can.
        """
        if self.outputs:
            named = {node for node in self._weighted() if ends.result(node) in self.ends}
            able = [node for node in {*self._last(), *named} if node.op_type in self.consumer.float_outputs]
            self.results = {ends.result(node): node for node in able}
            return
        tail = {node for node in self._last() if node.op_type not in self.consumer.float_outputs}
        self.chosen -= tail
        for node in tail:
            self._no(node, "its result is the model's, which stays in float; --quantize-outputs quantizes it")
        for node in [node for node in self.nodes if node in self.chosen and self._narrow(node)]:
            if self._read_by_alone(node, tail):
                self.chosen.discard(node)
                self._no(node, "it makes few channels, and what reads them computes in float")

    def _narrow(self, node: ir.Node) -> bool:
        """Whether a layer that can't give a float result makes one channel of ``NARROW`` or more."""
        if node.op_type != "Conv" or node.op_type in self.consumer.float_outputs:
            return False
        made, read, *_ = node.inputs[1].const_value.shape.numpy()  # type: ignore[union-attr]  # constant, or not chosen
        return made * NARROW <= read * node.attributes.get_int("group", 1)

    def _read_by_alone(self, node: ir.Node, tail: set[ir.Node]) -> bool:
        """Whether last layers alone read a layer's result; what clips or moves it is looked through.

        Layers that were excluded don't count: a choice of one layer mustn't be one of its neighbours as well.
        """
        waiting, layers = [ends.result(node)], 0
        while waiting:
            value = waiting.pop()
            for use in value.uses():
                if use.node in tail:
                    layers += 1
                elif use.node.domain == "" and use.node.op_type in self.consumer.moving and use.idx == 0:
                    waiting += use.node.outputs
                else:
                    return False
        return layers > 0

    def _last(self) -> list[ir.Node]:
        leads = ends.leading(self.nodes, WEIGHTED)
        return [node for node in self._weighted() if node not in leads]

    def _weighted(self) -> set[ir.Node]:
        return {node for node in self.chosen if node.op_type in self.consumer.weighted}

    def _misplaced(self, node: ir.Node) -> str:
        """Say why an arithmetic or moving node has no integers to work on."""
        table = self.consumer
        if node.op_type in table.weighted:
            return ""
        moving = node.op_type in table.moving
        data = [value for value in self._data(node) if not constant(value)]
        if not data:
            # a table of embeddings is moved too, where nothing may stay in float
            chooses = table.everything and moving and not all(constant(value) for value in node.inputs if value)
            return "" if chooses and _is_float(node.inputs[0]) else "all of its inputs are constant"
        if not table.everything:
            for value in data:
                maker = self._maker(value)
                if maker not in self.chosen:
                    return "what it reads is in float"
                if maker.op_type in table.float_outputs and not moving and value not in self.results:
                    return "what it reads is in float"
        elif any(not _is_float(value) for value in data):
            return "it moves no floats"
        elif all(value.is_graph_input() and value in self.ends for value in data):
            return "it computes nothing"
        if table.everything:
            return ""
        if not any(self._asked(out) or any(self._reader(use.node) for use in out.uses()) for out in node.outputs):
            return "nothing that reads it computes on integers"
        return ""

    def _asked(self, value: ir.Value) -> bool:
        """Whether a value is one of the model's results, which are asked for quantized."""
        return self.outputs and value in self.ends

    def _data(self, node: ir.Node) -> list[ir.Value]:
        """Return the inputs of a node that hold data, not sizes or indices."""
        if node.op_type in self.consumer.moving or node.op_type in CLIPS or node.op_type == "ReduceMean":
            return [node.inputs[0]] if node.inputs[0] is not None else []
        return [value for value in node.inputs if value is not None]

    def _maker(self, value: ir.Value) -> ir.Node | None:
        """Return the node whose integers a value would be; a Relu or Clip that would be absorbed is looked through."""
        if value in self.results:
            return self.results[value]
        node = value.producer()
        if node is not None and self._absorbable(node):
            before = node.inputs[0]
            assert before is not None
            return before.producer()
        return node

    def _reader(self, node: ir.Node) -> bool:
        if node in self.chosen:
            return True
        out = node.outputs[0]
        return self._absorbable(node) and (self._asked(out) or any(use.node in self.chosen for use in out.uses()))

    def _absorbable(self, node: ir.Node) -> bool:
        """Whether a node clips the result of an integer node that nobody else reads, and isn't on integers itself."""
        return node.op_type in CLIPS and node not in self.chosen and self._clips_alone(node)

    def _clips_alone(self, node: ir.Node) -> bool:
        """Whether a Relu or Clip is all that reads the result of an integer node."""
        if node.domain != "" or not self.consumer.absorbs:
            return False
        before = node.inputs[0]
        if before is None or len(before.uses()) != 1 or before in self.ends:
            return False
        if any(not constant(value) for value in node.inputs[1:] if value is not None):
            return False
        maker = before.producer()
        return maker is not None and maker in self.chosen and maker.op_type not in self.consumer.moving

    # -- which tensors -------------------------------------------------------------------------------------------------

    def _reads(self, node: ir.Node) -> tuple[int, ...]:
        """Return the inputs of an integer node that are quantized, constants of arithmetic nodes among them."""
        if node.op_type in self.consumer.weighted:
            return tuple(i for i in (0, 1) if i != weight_index(node))
        wanted = {id(value) for value in self._data(node)}
        return tuple(i for i, value in enumerate(node.inputs) if value is not None and id(value) in wanted)

    def _absorb(self) -> None:
        """Take Relus and Clips in where all that read them read integers."""
        for node in self.nodes:
            if not self._absorbable(node):
                if node.op_type in CLIPS and node not in self.chosen:
                    self.reasons.setdefault(node, "it clips what is in float, or what others read unclipped")
                continue
            before = node.inputs[0]
            assert before is not None
            maker = before.producer()
            assert maker is not None
            out = node.outputs[0]
            free = maker.op_type in self.consumer.float_outputs and out not in self.results
            if free and (out in self.ends or not all(use.node in self.chosen for use in out.uses())):
                self._no(node, "what reads it is in float")
                continue
            self.absorbed[node] = out

    def _result(self) -> Placement:
        table, groups = self.consumer, _Groups()
        swallowed = {node.inputs[0]: out for node, out in self.absorbed.items()}
        whole: set[ir.Value] = set()
        quantized: dict[ir.Value, None] = {}
        reads: dict[str, tuple[int, ...]] = {}
        for node in self.nodes:
            if node not in self.chosen:
                continue
            found = reads[_name(node)] = self._reads(node)
            for index in found:
                value = node.inputs[index]
                assert value is not None
                quantized.setdefault(value)
            if node.op_type in table.float_outputs:
                out = swallowed.get(node.outputs[0])
                if (real := ends.result(node)) in self.results:
                    quantized.setdefault(real)
                    whole.add(real)
                elif out is not None or self._all_integer(node.outputs[0]):
                    whole.add(out if out is not None else node.outputs[0])
                continue
            for output in node.outputs:
                real = swallowed.get(output, output)
                if self.consumer.everything or real not in self.ends or not self._only_an_end(real):
                    quantized.setdefault(real)
                    whole.add(real)
        for node in self.nodes:
            if node in self.chosen and node.op_type in table.moving:
                for output in node.outputs:
                    groups.join(node.inputs[0], swallowed.get(output, output))
            if node in self.chosen and node.op_type == "Concat" and table.one_grid_concat:
                for value in node.inputs:
                    groups.join(swallowed.get(node.outputs[0], node.outputs[0]), value)
        sources, grids = self._sources(quantized, groups)
        layers = tuple(self._layer(node) for node in self.nodes)
        return Placement(
            table, layers, sources, grids, frozenset(_of(value) for value in whole if value in quantized),
            {_name(node): _of(out) for node, out in self.absorbed.items()}, reads,
            {_name(n): weight_index(n) for n in self.nodes if n in self.chosen and n.op_type in table.weighted},
        )  # fmt: skip

    def _only_an_end(self, value: ir.Value) -> bool:
        """Whether nobody but the caller reads a result; it is left in float unless outputs are quantized."""
        return not self.outputs and not value.uses()

    def _all_integer(self, value: ir.Value) -> bool:
        uses = value.uses()
        return bool(uses) and value not in self.ends and all(use.node in self.chosen for use in uses)

    def _sources(
        self, quantized: Mapping[ir.Value, None], groups: _Groups
    ) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
        """Find for each grid the tensors whose ranges it holds: those that no moving node made."""
        moved = {output for node in self.chosen if node.op_type in self.consumer.moving for output in node.outputs} | {
            out for node, out in self.absorbed.items() if _moves(node.inputs[0], self.consumer, self.chosen)
        }
        sources: dict[str, tuple[str, ...]] = {}
        grids: dict[str, str] = {}
        members: dict[ir.Value, list[ir.Value]] = {}
        for value in quantized:
            members.setdefault(groups.find(value), []).append(value)
        for group in members.values():
            names = tuple(_of(value) for value in group if value not in moved) or (_of(group[0]),)
            for value in group:
                sources[_of(value)], grids[_of(value)] = names, _of(group[0])
        return sources, grids

    def _layer(self, node: ir.Node) -> Layer:
        if node in self.absorbed:
            return Layer(_name(node), node.op_type, "absorbed", "the grid of what it makes clips as it does")
        if node in self.chosen:
            moving = node.op_type in self.consumer.moving
            return Layer(_name(node), node.op_type, "moved" if moving else "integer", "")
        return Layer(_name(node), node.op_type, "float", self.reasons.get(node, "it has no part in it"))


def _moves(value: ir.Value | None, consumer: Consumer, chosen: set[ir.Node]) -> bool:
    maker = value.producer() if value is not None else None
    return maker is not None and maker in chosen and maker.op_type in consumer.moving


def _pads_zeros(node: ir.Node) -> bool:
    """Whether a Pad adds zeros, or what is there already."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if node.attributes.get_string("mode", "constant") != "constant" or value is None:
        return True
    return constant(value) and value.const_value is not None and not value.const_value.numpy().any()


def _is_float(value: ir.Value | None) -> bool:
    import onnx_ir as ir

    return value is not None and value.dtype in (None, ir.DataType.FLOAT)


def _name(node: ir.Node) -> str:
    assert node.name
    return node.name


def _of(value: ir.Value) -> str:
    assert value.name
    return value.name


class _Groups:
    """Values that share a grid: a union-find over them."""

    def __init__(self) -> None:
        self._above: dict[ir.Value, ir.Value] = {}

    def find(self, value: ir.Value) -> ir.Value:
        while (above := self._above.get(value, value)) is not value:
            self._above[value] = self._above.get(above, above)
            value = above
        return value

    def join(self, one: ir.Value | None, other: ir.Value | None) -> None:
        if one is not None and other is not None and (a := self.find(one)) is not (b := self.find(other)):
            self._above[b] = a
