"""What a node costs: multiply-accumulates (MACs) and floating- or fixed-point operations (FLOPs), from shapes alone.

MACs are counted for the operators that are sums of products: convolutions, matrix products, recurrent layers,
attention, Einsum. There FLOPs are 2·MACs (the bias isn't counted). For the others FLOPs are one for each element of
the output (of the input for reductions, times the window for pooling): an order of magnitude, not a model of the
hardware. Operators that only move data cost nothing. If, Loop and Scan cost nothing themselves, and each body counts
once, however often it runs. What no rule covers is unknown, with the reason, and never zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

Shape = tuple[int, ...]
FREE = frozenset(
    """Cast CastLike Compress Concat ConcatFromSequence Constant ConstantOfShape DepthToSpace Expand EyeLike Flatten
    Gather GatherElements GatherND Identity If Loop NonZero OneHot Optional OptionalGetElement OptionalHasElement
    Pad Range Reshape ReverseSequence Scan Scatter ScatterElements ScatterND SequenceAt SequenceConstruct
    SequenceEmpty SequenceErase SequenceInsert SequenceLength Shape Size Slice SpaceToDepth Split SplitToSequence
    Squeeze Tile Transpose Trilu Unsqueeze""".split()  # noqa: SIM905  # a list this long reads better as a text
)
PER_OUTPUT = frozenset(
    """Abs Acos Acosh Add And Asin Asinh Atan Atanh BatchNormalization Bernoulli BitShift BitwiseAnd BitwiseNot
    BitwiseOr BitwiseXor Ceil Celu Clip Cos Cosh CumSum DequantizeLinear Div Dropout DynamicQuantizeLinear Elu Equal
    Erf Exp Floor Gelu Greater GreaterOrEqual GroupNormalization HardSigmoid HardSwish Hardmax InstanceNormalization
    IsInf IsNaN LayerNormalization LRN LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization Max Mean
    MeanVarianceNormalization Min Mish Mod Mul Neg Not Or PRelu Pow QuantizeLinear RMSNormalization RandomNormal
    RandomNormalLike RandomUniform RandomUniformLike Reciprocal Relu Resize RotaryEmbedding Round Selu Shrink
    Sigmoid Sign Sin Sinh Softmax Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Upsample Where Xor
    BiasGelu FastGelu QuickGelu BiasSplitGelu SkipLayerNormalization EmbedLayerNormalization
    SimplifiedLayerNormalization SkipSimplifiedLayerNormalization QLinearAdd QLinearMul QLinearSigmoid
    QLinearLeakyRelu QLinearSoftmax QLinearConcat""".split()  # noqa: SIM905  # a list this long reads better as a text
)
PER_INPUT = frozenset(
    """ArgMax ArgMin GlobalAveragePool GlobalLpPool GlobalMaxPool QLinearGlobalAveragePool QLinearReduceMean ReduceL1
    ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
    ReduceSumSquare""".split()  # noqa: SIM905  # a list this long reads better as a text
)
POOLS = frozenset({"AveragePool", "MaxPool", "LpPool", "QLinearAveragePool"})
STANDARD = frozenset({"", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc"})


class Unknown(Exception):  # noqa: N818 - a result that travels by exception, not a fault
    """Why a node's cost isn't known."""


@dataclass(frozen=True, slots=True)
class Cost:
    """One node's cost; both ``None`` where it isn't known, with the reason."""

    macs: int | None
    flops: int | None
    reason: str = ""


def cost(node: ir.Node, shapes: Mapping[ir.Value, Shape]) -> Cost:
    """Count one node, without its bodies."""
    name = node.op_type
    if node.domain not in STANDARD:
        return Cost(None, None, f"no rule for the domain {node.domain!r}")
    try:
        if name in FREE:
            return Cost(0, 0)
        rule = RULES.get(name)
        if name == "Attention":
            rule = _microsoft_attention if node.domain else _attention
        if rule is not None:
            macs = rule(Look(node, shapes))
            return Cost(macs, 2 * macs)
        if name == "Einsum":
            return _einsum(Look(node, shapes))
        if name in PER_OUTPUT:
            return Cost(0, Look(node, shapes).out_size())
        if name in PER_INPUT:
            return Cost(0, math.prod(Look(node, shapes).shape(0)))
        if name in POOLS:
            look = Look(node, shapes)
            return Cost(0, look.out_size() * math.prod(look.ints("kernel_shape")))
    except Unknown as unknown:
        return Cost(None, None, str(unknown))
    return Cost(None, None, "no rule for this operator")


@dataclass(frozen=True, slots=True)
class Look:
    """A node with the shapes around it; what is missing raises ``Unknown``."""

    node: ir.Node
    shapes: Mapping[ir.Value, Shape]

    def shape(self, index: int) -> Shape:
        """Return the shape of one input."""
        value = self.node.inputs[index] if index < len(self.node.inputs) else None
        if value is None:
            raise Unknown(f"input {index} is absent")
        if value not in self.shapes:
            raise Unknown(f"the shape of {value.name!r} is unknown")
        return self.shapes[value]

    def has(self, index: int) -> bool:
        """Tell whether an optional input is there."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def out_size(self) -> int:
        """Return how many elements the first output has."""
        value = self.node.outputs[0]
        if value not in self.shapes:
            raise Unknown(f"the shape of {value.name!r} is unknown")
        return math.prod(self.shapes[value])

    def number(self, name: str, default: int | None = None) -> int:
        """Return an attribute that is a whole number."""
        attribute = self.node.attributes.get(name)
        if attribute is None or attribute.is_ref():
            if default is None:
                raise Unknown(f"the attribute {name!r} is absent")
            return default
        return int(attribute.value)

    def ints(self, name: str) -> list[int]:
        """Return an attribute that is a list of whole numbers."""
        attribute = self.node.attributes.get(name)
        if attribute is None or attribute.is_ref():
            raise Unknown(f"the attribute {name!r} is absent")
        return [int(item) for item in attribute.value]


def _conv(weight: int) -> Callable[[Look], int]:
    return lambda look: look.out_size() * math.prod(look.shape(weight)[1:])


def _conv_transpose(look: Look) -> int:
    return math.prod(look.shape(0)) * math.prod(look.shape(1)[1:])


def _gemm(look: Look) -> int:
    first = look.shape(0)
    if len(first) != 2:
        raise Unknown("its first input is no matrix")
    return look.out_size() * first[0 if look.number("transA", 0) else 1]


def _matmul(look: Look) -> int:
    first = look.shape(0)
    if not first:
        raise Unknown("its first input is a scalar")
    return look.out_size() * first[-2 if look.number("transA", 0) and len(first) > 1 else -1]


def _matmul_nbits(look: Look) -> int:
    return look.out_size() * look.number("K")


def _recurrent(look: Look) -> int:
    sequence = look.shape(0)  # (steps, batch, features), or (batch, steps, features) with layout=1
    if len(sequence) != 3:
        raise Unknown("its input has not three axes")
    return sequence[0] * sequence[1] * (math.prod(look.shape(1)) + math.prod(look.shape(2)))


def _attention(look: Look) -> int:
    """Count Q·Kᵀ and the product with V; ONNX's Attention takes (B, heads, T, size) or (B, T, heads·size)."""
    query, key, value = look.shape(0), look.shape(1), look.shape(2)
    steps = key[-2] + (look.shape(4)[-2] if look.has(4) else 0)
    if len(query) == 4:
        return query[0] * query[1] * query[2] * steps * (query[3] + value[3])
    heads, kv_heads = look.number("q_num_heads"), look.number("kv_num_heads")
    return query[0] * query[1] * steps * (query[2] + value[2] // kv_heads * heads)


def _multi_head_attention(look: Look) -> int:
    query, key, value = look.shape(0), look.shape(1), look.shape(2)
    if not len(query) == len(key) == len(value) == 3:
        raise Unknown("its inputs are packed")
    return query[0] * query[1] * key[1] * (query[2] + value[2])


def _microsoft_attention(look: Look) -> int:
    tokens, weight = look.shape(0), look.shape(1)
    if len(tokens) != 3 or look.node.attributes.get("qkv_hidden_sizes"):
        raise Unknown("its input is packed, or Q, K and V have widths of their own")
    batch, steps, width = tokens
    seen = steps + (look.shape(4)[3] if look.has(4) else 0)  # the past is (2, batch, heads, steps, size)
    return batch * steps * width * weight[1] + 2 * batch * steps * seen * (weight[1] // 3)


def _einsum(look: Look) -> Cost:
    attribute = look.node.attributes.get("equation")
    text = "" if attribute is None else str(attribute.value).replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    if "." in text or not arrow or len(terms) > 2:
        raise Unknown("only einsums of one or two operands, with an arrow and no ellipsis, are counted")
    sizes: dict[str, int] = {}
    for index, term in enumerate(terms):
        for label, size in zip(term, look.shape(index), strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    total = math.prod(sizes.values())
    if len(terms) == 2 and set(sizes) - set(right):
        return Cost(total, 2 * total)
    return Cost(0, total)


RULES: dict[str, Callable[[Look], int]] = {
    "Conv": _conv(1), "FusedConv": _conv(1), "NhwcFusedConv": _conv(1), "ConvInteger": _conv(1), "DeformConv": _conv(1),
    "QLinearConv": _conv(3), "ConvTranspose": _conv_transpose, "Gemm": _gemm, "FusedGemm": _gemm, "QGemm": _gemm,
    "MatMul": _matmul, "FusedMatMul": _matmul, "TransposeMatMul": _matmul, "QLinearMatMul": _matmul,
    "MatMulInteger": _matmul, "MatMulIntegerToFloat": _matmul, "DynamicQuantizeMatMul": _matmul,
    "MatMulNBits": _matmul_nbits, "LSTM": _recurrent, "GRU": _recurrent, "RNN": _recurrent,
    "DynamicQuantizeLSTM": _recurrent, "MultiHeadAttention": _multi_head_attention,
}  # fmt: skip
