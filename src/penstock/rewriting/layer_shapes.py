"""The shapes of layers: products, convolutions, pools, resizing, quantization (ONNX operator specification)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.rewriting.knowledge import Knowledge, Shape, constant, unsure
from penstock.rewriting.shape_rules import need, number, numbers, shape_rule
from penstock.rewriting.sizes import Size, broadcast, times

if TYPE_CHECKING:
    import onnx_ir as ir


@shape_rule("MatMul")
def _matmul(node: ir.Node, known: Knowledge) -> None:
    a, b = need(known, node, 0), need(known, node, 1)
    known.put(node.outputs[0], None, node.inputs[0])
    rows: Shape = a[-2:-1] if len(a) > 1 else ()
    columns: Shape = b[-1:] if len(b) > 1 else ()
    outer = broadcast([a[:-2], b[:-2]])
    if outer is None:
        raise unsure
    known.put(node.outputs[0], (*outer, *rows, *columns))


@shape_rule("Gemm")
def _gemm(node: ir.Node, known: Knowledge) -> None:
    a, b = need(known, node, 0), need(known, node, 1)
    rows = a[1] if number(node, "transA", 0) else a[0]
    known.put(node.outputs[0], (rows, b[0] if number(node, "transB", 0) else b[1]), node.inputs[0])


@shape_rule("Conv")
def _conv(node: ir.Node, known: Knowledge) -> None:
    x, w = need(known, node, 0), need(known, node, 1)
    kernel = numbers(node, "kernel_shape") or [size for size in w[2:] if isinstance(size, int)]
    known.put(node.outputs[0], (x[0], w[0], *_windows(node, x[2:], kernel)), node.inputs[0])


@shape_rule("MaxPool", "AveragePool", "LpPool")
def _pool(node: ir.Node, known: Knowledge) -> None:
    x = need(known, node)
    known.put(node.outputs[0], (*x[:2], *_windows(node, x[2:], numbers(node, "kernel_shape") or [])), node.inputs[0])


@shape_rule("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(node: ir.Node, known: Knowledge) -> None:
    x = need(known, node)
    known.put(node.outputs[0], (*x[:2], *[1] * (len(x) - 2)), node.inputs[0])


def _windows(node: ir.Node, spatial: Shape, kernel: list[int]) -> list[Size]:
    rank = len(spatial)
    if len(kernel) != rank:
        raise unsure
    strides, dilations = numbers(node, "strides") or [1] * rank, numbers(node, "dilations") or [1] * rank
    pads = numbers(node, "pads") or [0] * (2 * rank)
    auto = node.attributes["auto_pad"].as_string() if "auto_pad" in node.attributes else "NOTSET"
    ceil = number(node, "ceil_mode", 0)
    if ceil and auto != "NOTSET":
        raise unsure
    result: list[Size] = []
    for i, size in enumerate(spatial):
        reach = dilations[i] * (kernel[i] - 1)
        padded = 0 if auto == "VALID" else pads[i] + pads[rank + i]
        if auto.startswith("SAME"):
            result.append(-(-size // strides[i]) if isinstance(size, int) else size if strides[i] == 1 else None)
        elif isinstance(size, int):
            room = size + padded - reach - 1
            steps = -(-room // strides[i]) if ceil else room // strides[i]
            if ceil and steps * strides[i] >= size + pads[i]:
                steps -= 1  # a window may not begin in the padding at the end
            result.append(steps + 1)
        else:
            result.append(size if strides[i] == 1 and padded == reach else None)
    return result


@shape_rule("Resize", "Upsample")
def _resize(node: ir.Node, known: Knowledge) -> None:
    known.put(node.outputs[0], None, node.inputs[0])
    shape = need(known, node)
    if "axes" in node.attributes or "keep_aspect_ratio_policy" in node.attributes:
        raise unsure
    sizes = known.sizes(node.inputs[3]) if len(node.inputs) > 3 else None
    if sizes is not None and len(sizes) == len(shape):
        known.put(node.outputs[0], sizes)
        return
    place = 1 if node.op_type == "Upsample" or known.opset < 11 else 2
    held = node.attributes.get("scales")
    tensor = None
    if held is None and len(node.inputs) > place:
        value = node.inputs[place]
        tensor = None if value is None else constant(value)
    factors = held.value if held is not None else None if tensor is None else tensor.numpy().reshape(-1).tolist()
    if factors is None or len(factors) != len(shape):
        raise unsure
    known.put(node.outputs[0], [_scaled(size, float(factor)) for size, factor in zip(shape, factors, strict=True)])


def _scaled(size: Size, factor: float) -> Size:
    if factor == 1.0:
        return size
    if isinstance(size, int):
        return int(size * factor)
    return times(size, int(factor)) if factor == int(factor) else None


@shape_rule("DequantizeLinear")
def _dequantize(node: ir.Node, known: Knowledge) -> None:
    known.put(node.outputs[0], known.shape(node.inputs[0]), node.inputs[1])


@shape_rule("QuantizeLinear")
def _quantize(node: ir.Node, known: Knowledge) -> None:
    import onnx_ir as ir

    like = node.inputs[2] if len(node.inputs) > 2 else None
    wanted = number(node, "output_dtype", 0)
    known.put(
        node.outputs[0], known.shape(node.inputs[0]), ir.DataType(wanted) if wanted else like or ir.DataType.UINT8
    )
