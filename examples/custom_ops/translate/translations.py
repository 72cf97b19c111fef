"""What the operators of net.py are in ONNX. The parameters are those of the PyTorch operator, in its order."""

from onnxscript import opset18 as op


def squash(x, limit: float):  # x is a value of the graph
    """Write acme::squash in standard operators."""
    size = op.Add(op.Abs(op.Div(x, limit)), 1.0)
    return op.Div(x, size)
