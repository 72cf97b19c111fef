"""QOperator: a model of Q/DQ pairs becomes one of operators that compute on integers, for ONNX Runtime on a CPU.

1. A node that reads dequantized tensors alone, and whose result is quantized again by all who read it, becomes the
   operator of :mod:`penstock.quantization.qoperators` for it. The grids, the integers and the rounding stay.
2. A Gemm or MatMul whose result is float becomes QGemm or MatMulIntegerToFloat.
3. What moves elements works on the integers: ``Q(op(DQ(x)))`` is ``op(x)`` where both grids are one.
4. A Relu or Clip between such a node and its quantization clips the integers instead.
5. What has no operator on integers keeps its pairs and computes in float.

ONNX Runtime makes the same operators of the pairs when its optimizer is on; here they stand in the file, so that what
comes out doesn't hang on the session's level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from penstock.quantization import qoperators
from penstock.quantization.ends import CLIPS
from penstock.quantization.placement import constant
from penstock.quantization.qoperators import Form, Integers
from penstock.quantization.writing import Writer, drop_unused, take_over
from penstock.rewriting.walk import refers

if TYPE_CHECKING:
    import onnx_ir as ir

    from penstock.jsonable import Json

WIDE = ("INT16", "UINT16")


def convert(model: ir.Model) -> dict[str, str]:
    """Rewrite a model of Q/DQ pairs in place; return why nodes that read integers stay in float, by name."""
    return _Converting(model, Writer(model)).run()


def told(layers: Sequence[Json], kept: Mapping[str, str]) -> list[Json]:
    """Return the account of the layers with those that have no operator on integers in float."""
    out: list[Json] = []
    for layer in layers:
        assert isinstance(layer, dict)
        reason = kept.get(str(layer["node"])) if layer["state"] in ("integer", "moved") else None
        out.append(layer if reason is None else {**layer, "state": "float", "reason": reason})
    return out


@dataclass(slots=True)
class _Converting:
    model: ir.Model
    writer: Writer

    def run(self) -> dict[str, str]:
        kept = {}
        for node in list(self.model.graph):
            if node.op_type in ("QuantizeLinear", "DequantizeLinear") or node.domain != "" or refers(node):
                continue
            if node.graph is None or not any(integers(value) for value in node.inputs if not constant(value)):
                continue
            if reason := self._node(node):
                kept[str(node.name)] = reason
        self._clean()
        return kept

    def _node(self, node: ir.Node) -> str:
        """Convert a node; say why not."""
        form = qoperators.FORMS.get(node.op_type)
        if form is None:
            return f"there is no {node.op_type} on integers in ONNX Runtime"
        read = [integers(value) for value in node.inputs]
        if wide := next((one for one in read if one is not None and one.kind in WIDE), None):
            return f"ONNX Runtime's operators take 8 bits, not {wide.kind}"
        if isinstance(form, str):
            return self._moved(node, read[0])
        ends = [quantized(value) for value in node.outputs]
        clip = _clip_behind(node.outputs[0])
        if ends[0] is None and clip is not None:
            ends = [quantized(clip.outputs[0])]
        end = ends[0]
        if reason := form.reason(node, read, None if end is None else _grid(end)):
            return reason
        if end is None:
            return self._float(node, form, read)
        self._integer(node, form, read, end, clip)
        return ""

    # -- integers out --------------------------------------------------------------------------------------------------

    def _integer(
        self, node: ir.Node, form: Form, read: list[Integers | None], end: ir.Node, clip: ir.Node | None
    ) -> None:
        grid, result = _grid(end), end.outputs[0]
        made = self.writer.node(
            form.op, form.inputs(node, read, grid), str(result.name), [grid.kind], domain=form.domain,
            shape=result.shape or node.outputs[0].shape, **form.attributes(node),
        )  # fmt: skip
        last, graph = made, self.model.graph
        nodes = [made]
        if clip is not None and quantized(node.outputs[0]) is None:
            last = self._clipped(clip, made.outputs[0], grid)
            nodes.append(last)
        graph.insert_before(node, nodes)
        self._named(made, node)
        take_over(result, last.outputs[0])
        gone = [end, *([clip] if len(nodes) > 1 and clip is not None else []), node]
        graph.remove(gone, safe=True)

    def _clipped(self, clip: ir.Node, value: ir.Value, grid: Integers) -> ir.Node:
        """Clip integers as a Relu or Clip does: rounding rises, so that the bounds are rounded instead."""
        from penstock.quantization.emit import bounds

        low, high = (grid.rounded(np.float32(one)) for one in bounds(clip))
        held = [
            self.writer.hold(self.model.graph, f"{clip.name}_low", low),
            self.writer.hold(self.model.graph, f"{clip.name}_high", high),
        ]
        name = f"{clip.outputs[0].name}_clipped"
        made = self.writer.node("Clip", [value, *held], name, [grid.kind], shape=value.shape)
        self._named(made, clip)
        return made

    def _moved(self, node: ir.Node, read: Integers | None) -> str:
        """Let a node move integers."""
        ends = [quantized(value) for value in node.outputs if value.name]
        if read is None:
            return "what it moves is in float"
        if any(end is None or not _grid(end).same(read) for end in ends):
            return "what it moves is read in float, or on another grid"
        if node.op_type == "Resize" and node.attributes.get_string("mode", "nearest") != "nearest":
            return "ONNX Runtime cuts interpolated integers off instead of rounding them"
        node.replace_input_with(0, read.whole)
        for value, end in zip([value for value in node.outputs if value.name], ends, strict=True):
            assert end is not None
            result = end.outputs[0]
            name, shape = result.name, result.shape
            result.replace_all_uses_with(value, replace_graph_outputs=True)
            self.model.graph.remove([end], safe=True)
            value.name, value.type, value.shape = name, result.type, shape or value.shape
        return ""

    # -- float out -----------------------------------------------------------------------------------------------------

    def _float(self, node: ir.Node, form: Form, read: list[Integers | None]) -> str:
        if not form.float_op:
            return "its result is read in float, which no operator on integers gives"
        old, bias = node.outputs[0], None
        add = _row_behind(node) if form.takes_row else None
        if add is not None:
            old, bias = add.outputs[0], next(value for value in add.inputs if value is not node.outputs[0])
        made = self.writer.node(
            form.float_op, form.float_inputs(node, read, bias), f"{old.name}_integers", ["FLOAT"],
            domain=form.float_domain, shape=old.shape, **form.attributes(node),
        )  # fmt: skip
        graph = self.model.graph
        graph.insert_before(add or node, made)
        self._named(made, node)
        take_over(old, made.outputs[0])
        graph.remove([*([add] if add is not None else []), node], safe=True)
        return ""

    # -- order ---------------------------------------------------------------------------------------------------------

    def _named(self, made: ir.Node, node: ir.Node) -> None:
        """Let the node that takes another's place have its name."""
        made.name, node.name = node.name, None
        for key, value in node.metadata_props.items():
            made.metadata_props[key] = value

    def _clean(self) -> None:
        """Take out conversions that nobody reads any more."""
        for node in reversed(list(self.model.graph)):
            if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.domain == "":
                out = node.outputs[0]
                if not out.uses() and not out.is_graph_output():
                    self.model.graph.remove([node], safe=True)
        drop_unused(self.model)


def integers(value: ir.Value | None) -> Integers | None:
    """Return the integers that a value is made of by one scale or one for each channel."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear" or node.domain != "":
        return None
    return _grid(node)


def quantized(value: ir.Value) -> ir.Node | None:
    """Return the QuantizeLinear that alone reads a value."""
    uses = tuple(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].node.op_type != "QuantizeLinear" or uses[0].idx:
        return None
    return uses[0].node if uses[0].node.domain == "" else None


def _grid(node: ir.Node) -> Integers:
    """Read a QuantizeLinear's or DequantizeLinear's grid."""
    whole = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
    assert whole is not None and whole.dtype is not None and node.inputs[1] is not None
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    return Integers(whole, node.inputs[1], zero, whole.dtype.name)


def _clip_behind(value: ir.Value) -> ir.Node | None:
    """Return the Relu or Clip with constant bounds that alone reads a value."""
    uses = tuple(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    node = uses[0].node
    if node.op_type not in CLIPS or node.domain != "" or uses[0].idx:
        return None
    return node if all(constant(one) for one in node.inputs[1:] if one is not None) else None


def _row_behind(node: ir.Node) -> ir.Node | None:
    """Return the Add of a constant row that alone reads a node's result."""
    uses = tuple(node.outputs[0].uses())
    if len(uses) != 1 or node.outputs[0].is_graph_output() or uses[0].node.op_identifier() != ("", "Add", ""):
        return None
    other = uses[0].node.inputs[1 - uses[0].idx]
    columns = qoperators.columns(node)
    if other is None or not constant(other) or other.const_value is None or other.const_value.size != columns:
        return None
    return uses[0].node if tuple(other.const_value.shape) == (columns,) else None
