"""Which matrices of weights are stored in blocks, and why the others stay in float.

1. A MatMul or a Gemm is taken whose second factor is a constant float32 matrix, in bodies of If, Loop and Scan too.
2. A Gather is taken, where that is asked for, that reads rows of such a matrix: a table of embeddings.
3. A matrix that several nodes read is stored once. Where one of its readers stays in float, all do: the float matrix
   would stay in the file, and nothing be saved.
4. Small matrices stay, and those that would become no smaller.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from penstock import graph
from penstock.errors import InputError
from penstock.quantization.blocks import Form

if TYPE_CHECKING:
    import onnx_ir as ir

    Array = np.ndarray[Any, np.dtype[Any]]

Layout = Literal["columns", "rows", "table"]  # (K, N); (N, K); (N, K) of which a Gather reads rows
_CONVOLUTION = "a convolution uses each of its weights many times over once it was read; --method static quantizes it"
WHY = {
    "Conv": _CONVOLUTION,
    "ConvTranspose": _CONVOLUTION,
    "GRU": "a recurrent layer takes no weights in blocks; --method dynamic quantizes it",
    "LSTM": "a recurrent layer takes no weights in blocks; --method dynamic quantizes it",
    "RNN": "a recurrent layer takes no weights in blocks",
}
SMALLEST_BLOCK = 16  # of MatMulNBits, and of the kernels that other runtimes have
LARGEST_BLOCK = 256  # that ONNX Runtime has kernels for


@dataclass(frozen=True, slots=True)
class Kept:
    """A node that stays as it is, and why."""

    node: str
    op: str
    reason: str
    weights: int = 0  # how many a MatMul or Gemm has


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """Constant weights and the nodes that read them in one layout."""

    weights: ir.Value
    layout: Layout
    nodes: tuple[ir.Node, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """K inputs and N outputs; of a table, the length of a row and the number of rows."""
        return _sizes(held(self.weights), self.layout)

    def array(self) -> Array:
        """Return the weights (K, N) float32. Raises ``InputError`` where they aren't finite."""
        found = held(self.weights).numpy().astype(np.float32, copy=False)
        if not np.isfinite(found).all():
            kind = "NaN" if np.isnan(found).any() else "infinity"
            count = int((~np.isfinite(found)).sum())
            what = f"the weights {self.weights.name!r} of {label(self.nodes[0])} hold {kind} ({count} of {found.size})"
            raise InputError("not-finite", what, do="find what broke the weights, or leave the node out with --exclude")
        return found if self.layout == "columns" else found.T

    @property
    def inputs(self) -> tuple[ir.Value, ...]:
        """What the nodes multiply with the weights, each once."""
        return tuple(dict.fromkeys(node.inputs[0] for node in self.nodes if node.inputs[0] is not None))


def held(value: ir.Value) -> ir.TensorProtocol:
    """Return the tensor of a constant."""
    import onnx_ir as ir

    found = ir.convenience.get_const_tensor(value)
    assert found is not None
    return found


def label(node: ir.Node) -> str:
    """Return what an error calls a node."""
    return f"{node.op_type} {called(node)!r}"


def called(node: ir.Node) -> str:
    """Return a node's name, or that of what it makes."""
    return str(node.name or next((out.name for out in node.outputs if out.name), "") or node.op_type)


def find(
    model: ir.Model, form: Form, *, exclude: Collection[str] = (), least: int = 0, nbits: bool = False,
    tables: bool = False,
) -> tuple[list[Matrix], list[Kept]]:  # fmt: skip
    """List the matrices to store in blocks, and the nodes that stay. ``nbits``: for MatMulNBits, which takes less."""
    reasons: dict[ir.Node, str] = {}
    groups: dict[ir.Value, dict[Layout, list[ir.Node]]] = {}
    nodes = graph.all_nodes(model)
    for node in nodes:
        layout = _layout(node, tables)
        if layout is None:
            reasons[node] = _other(node)
        elif node.name in exclude:
            reasons[node] = "it was excluded"
        elif reason := _unfit(node, layout, form, least) or (_unfit_for_nbits(node) if nbits else ""):
            reasons[node] = reason
        else:
            weights = node.inputs[_place(layout)]
            assert weights is not None
            groups.setdefault(weights, {}).setdefault(layout, []).append(node)
    found = []
    for weights, readers in groups.items():
        places = {node: _place(layout) for layout, some in readers.items() for node in some}
        other = next((use.node for use in weights.uses() if places.get(use.node) != use.idx), None)
        if other is not None or weights.is_graph_output():
            who = label(other) if other is not None else "the caller"
            reasons.update(dict.fromkeys(places, f"{who} reads its weights in float, so nothing would be saved"))
            continue
        found += [Matrix(weights, layout, tuple(some)) for layout, some in readers.items()]
    return found, [Kept(called(node), node.op_type, reasons[node], _count(node)) for node in nodes if node in reasons]


def _count(node: ir.Node) -> int:
    """Return how many constants a product has as its second factor."""
    import onnx_ir as ir

    factor = node.inputs[1] if node.op_type in ("MatMul", "Gemm") and len(node.inputs) > 1 else None
    tensor = None if factor is None else ir.convenience.get_const_tensor(factor)
    return 0 if tensor is None else tensor.size


def _place(layout: Layout) -> int:
    """Return which input of a node the weights are."""
    return 0 if layout == "table" else 1


def _layout(node: ir.Node, tables: bool) -> Layout | None:
    """Return how a node would read weights in blocks, ``None`` where it reads none."""
    if node.domain != "":
        return None
    if node.op_type == "Gemm":
        return "rows" if node.attributes.get_int("transB", 0) else "columns"
    if node.op_type == "Gather" and tables and _table(node):
        return "table"
    return "columns" if node.op_type == "MatMul" else None


def _table(node: ir.Node) -> bool:
    """Whether a Gather reads rows of a constant matrix of floats."""
    import onnx_ir as ir

    tensor = ir.convenience.get_const_tensor(node.inputs[0]) if node.inputs[0] is not None else None
    floats = tensor is not None and tensor.dtype == ir.DataType.FLOAT and len(tensor.shape) == 2
    return floats and node.attributes.get_int("axis", 0) == 0


def _sizes(matrix: ir.TensorProtocol, layout: Layout) -> tuple[int, int]:
    first, second = matrix.shape.numpy()  # of a constant, so none is symbolic
    return (first, second) if layout == "columns" else (second, first)


def _other(node: ir.Node) -> str:
    """Say why a node that is none of ours stays."""
    if node.domain != "":
        return "it is no operator of the standard"
    if node.op_type == "Gather" and _table(node):
        return "it reads rows of a table; --embeddings stores them in 8 bits"
    return WHY.get(node.op_type, "it has no matrix of weights")


def _unfit(node: ir.Node, layout: Layout, form: Form, least: int) -> str:
    """Say why a node's weights aren't stored in blocks; nothing where they are."""
    import onnx_ir as ir

    place = _place(layout)
    weights, data = node.inputs[place], node.inputs[1 - place]
    if data is None or weights is None or (tensor := ir.convenience.get_const_tensor(weights)) is None:
        left = data is not None and ir.convenience.get_const_tensor(data) is not None
        return "its constant factor isn't the right one" if left else "none of its factors is constant"
    if weights.is_graph_input():
        return "its weights are an input, which the caller can replace"
    if ir.convenience.get_const_tensor(data) is not None:
        return "all of its inputs are constant"
    if tensor.dtype != ir.DataType.FLOAT:
        return f"its weights are {tensor.dtype.name}, not FLOAT"
    if len(tensor.shape) != 2:
        return f"its weights have {len(tensor.shape)} axes, and blocks are cut from a matrix"
    if not tensor.size:
        return "its weights have no elements"
    if tensor.size < least:
        return f"its {tensor.size} weights are fewer than {least}; --least-weights {tensor.size} takes it in"
    inputs, outputs = _sizes(tensor, layout)
    if stored_bytes(inputs, outputs, row_form(inputs) if layout == "table" else form) >= tensor.size * 4:
        return "in blocks its weights would be no smaller"
    return ""


def _unfit_for_nbits(node: ir.Node) -> str:
    """Say why a node can't become a MatMulNBits."""
    first = node.inputs[0]
    if node.op_type == "MatMul" and first is not None and first.shape is not None and len(first.shape) < 2:
        return "its first factor is a vector, which MatMulNBits doesn't take; --weight-format standard does"
    if node.op_type == "Gemm":
        if node.attributes.get_int("transA", 0):
            return "its first factor is transposed, which MatMulNBits doesn't do; --weight-format standard does"
        if node.attributes.get_float("alpha", 1.0) != 1 or node.attributes.get_float("beta", 1.0) != 1:
            return "its alpha or beta isn't 1, and MatMulNBits has none; --weight-format standard keeps them"
    return ""


def stored_bytes(inputs: int, outputs: int, form: Form) -> int:
    """Return the bytes of a matrix in blocks, with its scales and zero points."""
    size = form.size or inputs
    inner = {"none": 0, "integer": form.bits, "float": 32}[form.zero]
    return (inputs * outputs * form.bits + -(-inputs // size) * outputs * (32 + inner) + 7) // 8


def row_form(length: int) -> Form:
    """Return the form of a table: Gather knows no type of 4 bits, and all that reads a row needs one scale."""
    return Form(8, length)


def fitting(form: Form, matrix: Matrix, *, divides: bool, nbits: bool) -> Form:
    """Return the form for a matrix: where it has fewer inputs than a block, one that is as long.

    ``divides``: for a runtime that wants blocks of one length, the longest shorter block that all inputs fall into, or
    one of all inputs. ``nbits``: a power of two, as MatMulNBits has them.
    """
    inputs = matrix.shape[0]
    if matrix.layout == "table":
        return row_form(inputs)
    size = form.size or inputs
    if nbits:
        if not form.size or size > inputs:
            size = _power(inputs, form.size or LARGEST_BLOCK, form)
    elif size >= inputs:
        size = inputs
    elif divides and inputs % size:
        smaller = [size >> shift for shift in range(1, 8) if size >> shift >= SMALLEST_BLOCK]
        size = next((one for one in smaller if inputs % one == 0), inputs)
    return Form(form.bits, size, form.zero)


def _power(inputs: int, most: int, form: Form) -> int:
    """Return the power of two, up to ``most``, that stores a column in the fewest bits, filled up to whole blocks."""

    def cost(size: int) -> int:
        return -(-inputs // size) * (size * form.bits + 32)

    return min((1 << power for power in range(4, 9) if 1 << power <= most), key=cost)


def bytes_of(matrices: Iterable[Matrix]) -> int:
    """Return the bytes of matrices in float, each counted once."""
    return sum(held(weights).nbytes for weights in {one.weights: None for one in matrices})
