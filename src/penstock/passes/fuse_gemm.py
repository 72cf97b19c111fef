"""Join a MatMul and the addition after it to a Gemm.

1. Y = A·B + C with A ``(M, K)`` and B ``(K, N)``, and C such that it broadcasts to ``(M, N)`` and doesn't enlarge it.
2. Not for other ranks: Gemm has two axes. Not for integers, which Gemm takes from opset 9 on, but runtimes don't.
3. A Transpose of A's or B's two axes that nothing else reads becomes ``transA`` or ``transB``.
4. A product that is a graph output, or read elsewhere, stays.
5. A constant C of ``(1, N)`` becomes ``(N,)``, as exporters write a bias: quantizers take no other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.passes.merge_transposes import order_of
from penstock.rewriting import Refusal, Rewrite
from penstock.rewriting.site import Site, attribute

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "fuse"
AFTER: tuple[str, ...] = ()
OPERATORS: tuple[str, ...] = ("Add", "Gemm")
_FLOATS = ("FLOAT", "FLOAT16", "DOUBLE", "BFLOAT16")


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Make a Gemm of an addition, or take a Transpose into a Gemm."""
    return _of_add(node, site) if node.op_type == "Add" else _transposed(node, site)


def _of_add(node: ir.Node, site: Site) -> Rewrite | None:
    for place in (0, 1):
        product, bias = node.inputs[place], node.inputs[1 - place]
        matmul = site.maker(product, "MatMul")
        if matmul is None or product is None or bias is None:
            continue
        a, b = matmul.inputs
        ranks = (site.rank(a), site.rank(b))
        if ranks != (2, 2):
            raise Refusal(f"the product's factors have {ranks[0]} and {ranks[1]} axes; Gemm takes 2 each")
        if product.dtype is None or product.dtype.name not in _FLOATS:
            return None
        if site.opset < 7:
            return None
        shape, whole = site.shape(bias), site.shape(product)
        if shape is None or whole is None or len(shape) > 2 or not _fits(shape, whole):
            raise Refusal("what is added isn't known to fit the product's two axes")
        if site.opset < 11 and len(shape) == 0:
            return None  # a C of no axes is asked for as an input of Gemm from opset 11 on
        site.need_sole_reader(product, "the product")
        if len(shape) == 2 and shape[0] == 1 and site.tensor(bias) is not None and not site.in_function(node):
            array = site.array(bias)
            assert array is not None
            bias = site.constant(array.reshape(-1), bias.dtype)
        return site.instead(node, site.make("Gemm", [a, b, bias]), "MatMul and Add are a Gemm")
    return None


def _fits(shape: tuple[object, ...], whole: tuple[object, ...]) -> bool:
    return all(size in (1, wanted) and size is not None
               for size, wanted in zip(reversed(shape), reversed(whole), strict=False))  # fmt: skip


def _transposed(node: ir.Node, site: Site) -> Rewrite | None:
    inputs = list(node.inputs)
    flags = {name: int(attribute(node, name, 0)) for name in ("transA", "transB")}
    changed = False
    for place, name in enumerate(flags):
        value = inputs[place]
        turn = site.maker(value, "Transpose")
        if turn is None or value is None or order_of(turn, site) != [1, 0] or not site.sole_reader(value):
            continue
        inputs[place], flags[name], changed = turn.inputs[0], 1 - flags[name], True
    if not changed:
        return None
    shown = {name: flag or None for name, flag in flags.items()}
    return site.instead(node, site.copy(node, inputs, **shown), "Gemm transposes by itself")
