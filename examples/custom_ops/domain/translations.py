"""Writes acme::inverse as the operator Inverse of the domain ai.onnx.contrib, which a library implements."""

from onnxscript import FLOAT, script
from onnxscript.values import Opset

contrib = Opset("ai.onnx.contrib", 1)


@script(default_opset=contrib)
def inverse(x: FLOAT[...]) -> FLOAT[...]:
    """Return the inverse of a square matrix."""
    return contrib.Inverse(x)
