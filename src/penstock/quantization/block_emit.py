"""Write weights in blocks into a graph: as DequantizeLinear of the standard, or as MatMulNBits for ONNX Runtime.

Standard (opset 21): integers (K, N) of INT4, UINT4, INT8 or UINT8 and scales (ceil(K / size), N), before the MatMul or
Gemm that was there; without blocks, where a column has one scale, scales (N,). A Gemm's transposed weights are turned,
since ONNX Runtime takes blocks down the columns alone.

MatMulNBits (com.microsoft): integers (N, ceil(K / size), size · bits / 8) uint8, scales (N, ceil(K / size)), zero
points (N, ceil(ceil(K / size) · bits / 8)) uint8, or float like the scales.

A table of embeddings (V, D) becomes one of INT8 with a scale (V, 1) for each row, in any opset: Gather rows of both,
Cast, Mul.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock import graph
from penstock.quantization import blocks
from penstock.quantization.block_layers import Matrix
from penstock.quantization.blocks import Blocked

if TYPE_CHECKING:
    import onnx_ir as ir

    Array = np.ndarray[Any, np.dtype[Any]]

DOMAIN = "com.microsoft"


class Writer:
    """Puts one matrix after the other into a model; the float weights go as soon as nothing reads them."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        nodes = graph.all_nodes(model)
        self._taken = {value.name for node in nodes for value in (*node.inputs, *node.outputs) if value is not None}
        for scope in model.graphs():
            self._taken |= {*scope.initializers, *(value.name for value in scope.inputs)}
        self._names = {node.name for node in nodes}

    def standard(self, matrix: Matrix, held: Blocked) -> None:
        """Put a DequantizeLinear before the nodes that read a matrix; one for all of them."""
        import onnx_ir as ir

        form, home, stem = held.form, _scope(matrix), matrix.weights.name
        signed = form.zero == "none"
        kind = ir.DataType[f"{'INT' if signed else 'UINT'}{form.bits}"]
        lower = form.middle if signed else 0
        whole = self._integers(home, f"{stem}_quantized", held.whole.astype(np.int16) - lower, kind)
        columns = form.size >= len(held.whole)
        inputs = [whole, self._initializer(home, f"{stem}_scale", held.scale[0] if columns else held.scale)]
        if not signed:
            zero = held.zero[0] if columns else held.zero
            inputs.append(self._integers(home, f"{stem}_zero_point", zero, kind))
        rule = {"axis": 1} if columns else {"axis": 0, "block_size": form.size}
        back = self._node("DequantizeLinear", inputs, f"{stem}_dequantized", rule)
        out = back.outputs[0]
        out.type, out.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(matrix.shape)
        readers = {node for node in matrix.nodes if node.graph is home}
        home.insert_before(next(node for node in home if node in readers or not readers), back)
        for node in matrix.nodes:
            node.replace_input_with(1, out)
            if matrix.layout == "rows":
                node.attributes["transB"] = ir.AttrInt64("transB", 0)
        self._drop(matrix.weights)

    def nbits(self, matrix: Matrix, held: Blocked, accuracy_level: int) -> None:
        """Let a MatMulNBits stand for each node that reads a matrix."""
        form, home, stem = held.form, _owner(matrix.weights), matrix.weights.name
        whole, scale, zero = nbits_arrays(held)
        inputs = [
            self._initializer(home, f"{stem}_quantized", whole),
            self._initializer(home, f"{stem}_scale", scale),
        ]
        if zero is not None:
            inputs.append(self._initializer(home, f"{stem}_zero_point", zero))
        inner, outer = matrix.shape
        rule = {"K": inner, "N": outer, "bits": form.bits, "block_size": form.size, "accuracy_level": accuracy_level}
        for node in matrix.nodes:
            self._replace(node, inputs, rule, outer)
        self.model.opset_imports.setdefault(DOMAIN, 1)
        self._drop(matrix.weights)

    def table(self, matrix: Matrix, held: Blocked) -> None:
        """Let the nodes that read rows of a table read integers and their scales."""
        import onnx_ir as ir

        home, stem = _owner(matrix.weights), matrix.weights.name
        whole = self._initializer(
            home, f"{stem}_quantized", (held.whole.T.astype(np.int16) - held.form.middle).astype(np.int8)
        )
        scale = self._initializer(home, f"{stem}_scale", held.scale.T)
        for node in matrix.nodes:
            old, scope = node.outputs[0], node.graph
            assert scope is not None
            scales = self._node("Gather", [scale, node.inputs[1]], f"{old.name}_scale", {"axis": 0})
            real = self._node("Cast", [None], f"{old.name}_real", {"to": ir.DataType.FLOAT.value})
            last = self._node("Mul", [real.outputs[0], scales.outputs[0]], f"{old.name}_scaled", {})
            node.replace_input_with(0, whole)
            self._instead(old, last.outputs[0])
            real.replace_input_with(0, old)
            old.name, old.type = self._free(f"{last.outputs[0].name}_quantized"), ir.TensorType(ir.DataType.INT8)
            scope.insert_after(node, [scales, real, last])
        self._drop(matrix.weights)

    def unclip(self, product: ir.Node) -> str:
        """Say a Relu or Clip behind a product as Max and Min; return its name, empty where there is none.

        ONNX Runtime (1.31) takes a product and a Relu for a group that has to end in QuantizeLinear, finds none, and
        leaves the weights to be dequantized at every call. It makes a Gemm of a product and an Add before it looks.
        """
        behind = _only_reader(product)
        if behind is not None and behind.op_type == "Add" and product.op_type == "MatMul":
            behind = _only_reader(behind)
        if behind is None or behind.op_type not in ("Relu", "Clip") or behind.domain != "" or behind.graph is None:
            return ""
        old, value = behind.outputs[0], behind.inputs[0]
        bounds: list[tuple[str, ir.Value]] = []
        if behind.op_type == "Relu":
            bounds.append(("Max", self._initializer(behind.graph, f"{old.name}_zero", np.zeros((), np.float32))))
        else:
            bounds += [
                (op, bound) for op, bound in zip(("Max", "Min"), behind.inputs[1:], strict=False) if bound is not None
            ]
        made: list[ir.Node] = []
        for op, bound in bounds:
            made.append(self._node(op, [value, bound], f"{old.name}_{op.lower()}", {}))
            value = made[-1].outputs[0]
        if not made or value is None:
            return ""
        behind.graph.insert_before(behind, made)
        self._instead(old, value)
        behind.graph.remove([behind], safe=True)
        return str(behind.name or value.name)

    def _instead(self, old: ir.Value, new: ir.Value) -> None:
        """Let a value stand for another everywhere, by its name."""
        import onnx_ir as ir

        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        new.type, new.shape = old.type, old.shape
        name, old.name = old.name, None
        new.name = name

    def _replace(self, node: ir.Node, inputs: Sequence[ir.Value], rule: dict[str, int], columns: int) -> None:
        scope = node.graph
        assert scope is not None
        given: list[ir.Value | None] = [node.inputs[0], *inputs]
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        row = None if bias is None or bias.is_graph_input() else _row(bias, columns)
        if bias is not None and row is not None:
            given += [None] * (5 - len(given))
            given.append(self._initializer(_owner(bias), f"{bias.name}_row", row))
        made = self._node("MatMulNBits", given, f"{node.outputs[0].name}_product", rule, domain=DOMAIN, name=node.name)
        made.metadata_props.update(node.metadata_props)
        old, last = node.outputs[0], made
        new = [made]
        if bias is not None and row is None:
            last = self._node("Add", [made.outputs[0], bias], f"{old.name}_sum", {})
            new.append(last)
        scope.insert_before(node, new)
        self._instead(old, last.outputs[0])
        scope.remove([node], safe=True)
        if bias is not None and row is not None:
            self._drop(bias)

    # -- making --------------------------------------------------------------------------------------------------------

    def _drop(self, value: ir.Value) -> None:
        if value.uses() or value.is_graph_output():
            return
        if (maker := value.producer()) is not None:
            if maker.graph is not None:
                maker.graph.remove(maker, safe=True)
        elif value.is_initializer():
            del _owner(value).initializers[str(value.name)]

    def _integers(self, home: ir.Graph, name: str, whole: Array, kind: ir.DataType) -> ir.Value:
        import onnx_ir as ir

        if kind.bitwidth == 8:
            return self._initializer(home, name, whole.astype(kind.numpy()))
        flat = blocks.packed(whole.astype(np.int8).reshape(-1))
        return self._register(home, name, ir.PackedTensor(flat, kind, shape=whole.shape))

    def _initializer(self, home: ir.Graph, name: str, array: Array) -> ir.Value:
        import onnx_ir as ir

        return self._register(home, name, ir.Tensor(np.ascontiguousarray(array)))

    def _register(self, home: ir.Graph, name: str, tensor: ir.Tensor[Array] | ir.PackedTensor[Array]) -> ir.Value:
        import onnx_ir as ir

        tensor.name = self._free(name)
        value = ir.Value(
            name=tensor.name, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        home.register_initializer(value)
        return value

    def _node(
        self, op: str, inputs: Sequence[ir.Value | None], made: str, attributes: dict[str, int], *, domain: str = "",
        name: str | None = None,
    ) -> ir.Node:  # fmt: skip
        import onnx_ir as ir

        node = ir.node(op, inputs, attributes, domain=domain, name=name or self._free_node(made))
        node.outputs[0].name = self._free(made)
        return node

    def _free(self, name: str) -> str:
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name

    def _free_node(self, name: str) -> str:
        while name in self._names:
            name += "_"
        self._names.add(name)
        return name


def _only_reader(node: ir.Node) -> ir.Node | None:
    """Return the one node that reads a result, ``None`` where others, a body or the caller read it too."""
    out = node.outputs[0]
    readers = [use.node for use in out.uses()]
    alone = len(readers) == 1 and not out.is_graph_output() and readers[0].graph is node.graph
    return readers[0] if alone else None


def nbits_arrays(held: Blocked) -> tuple[Array, Array, Array | None]:
    """Return integers, scales and zero points as MatMulNBits has them; ``None`` where zero is the middle."""
    form = held.form
    columns = held.whole.shape[1]
    count = len(held.scale)
    filled = np.full((count * form.size, columns), form.middle, np.uint8)
    filled[: len(held.whole)] = held.whole
    whole = np.ascontiguousarray(filled.T).reshape(columns, count, form.size)
    zero = np.ascontiguousarray(held.zero.T)
    if form.bits == 4:
        whole = blocks.packed(whole)
        zero = blocks.packed(zero) if form.zero == "integer" else zero
    return whole, np.ascontiguousarray(held.scale.T), None if form.zero == "none" else zero


def _scope(matrix: Matrix) -> ir.Graph:
    """Return where a DequantizeLinear and what it reads go: the graph of its readers, where they share one.

    ONNX Runtime loads no body whose DequantizeLinear reads weights from outside, when it makes MatMulNBits of it.
    """
    scopes = {id(node.graph): node.graph for node in matrix.nodes}
    only = next(iter(scopes.values())) if len(scopes) == 1 else None
    return only or _owner(matrix.weights)


def _owner(value: ir.Value) -> ir.Graph:
    found = value.graph
    assert found is not None
    return found


def _row(bias: ir.Value, columns: int) -> Array | None:
    """Return a Gemm's constant bias as a row, ``None`` where it isn't one."""
    import onnx_ir as ir

    tensor = ir.convenience.get_const_tensor(bias)
    if tensor is None or len(tensor.shape) > 2 or (len(tensor.shape) == 2 and tensor.shape[0] != 1):
        return None
    found: Array = np.broadcast_to(tensor.numpy().reshape(-1), (columns,)).astype(np.float32)
    return found
