"""What is known of operators by name: which want more than 16 bits whatever passes by, and which suffer from zeros."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.quantization.half.binding import is_float32
from penstock.quantization.half.sums import RECURRENT, REDUCTIONS, WEIGHTED

if TYPE_CHECKING:
    import onnx_ir as ir

FINE = {
    "AffineGrid": "positions in an image", "Bernoulli": "random numbers", "BlackmanWindow": "a window of a signal",
    "CumSum": "running sums", "DFT": "a transform of a signal", "Det": "a determinant",
    "HammingWindow": "a window of a signal", "HannWindow": "a window of a signal",
    "MaxRoiPool": "positions in an image", "MelWeightMatrix": "frequencies", "Multinomial": "random numbers",
    "NegativeLogLikelihoodLoss": "a loss", "RandomNormal": "random numbers", "RandomNormalLike": "random numbers",
    "RandomUniform": "random numbers", "RandomUniformLike": "random numbers", "Range": "positions",
    "RoiAlign": "positions in an image", "STFT": "a transform of a signal", "SoftmaxCrossEntropyLoss": "a loss",
}  # fmt: skip
ADDING = REDUCTIONS | {"GroupNormalization", "LRN", "LogSoftmax", "Softmax"}
# operators that make something large, or nothing, of what has become 0
AFTER_ZERO = frozenset({"Div", "Log", "Pow", "Reciprocal", "ReduceLogSum", "Sqrt"})
# operators whose result may turn on the last bits of what they read, however far back these were lost
SHARP = frozenset({"Cos", "Exp", "Log", "Sin", "Tan"})
HANDS_ON = frozenset({"Cast", "Clip", "Expand", "Identity", "Max", "Reshape", "Squeeze", "Tile", "Unsqueeze"})
WHOLE = frozenset({"Ceil", "Floor", "Mod", "Round"})
# operators that take so much time that 16 bits pay for a Cast on either side
COMPUTING = WEIGHTED | RECURRENT | {"Attention", "Einsum", "FusedConv", "FusedGemm", "FusedMatMul"}


def behind(node: ir.Node) -> set[str]:
    """Return the tensors that a node's result is made of, back to convolutions, matrix products and inputs."""
    found: set[str] = set()
    work = [node]
    while work:
        one = work.pop()
        for value in one.inputs:
            if value is None or value.name in found or not is_float32(value):
                continue
            found.add(str(value.name))
            maker = value.producer()
            if maker is not None and maker.op_type not in COMPUTING:
                work.append(maker)
    return found
