"""Turn quantized weights back into floats. Only run when asked for: it undoes a part of the quantization.

1. ``DequantizeLinear`` of a constant, ``(x - zero) * scale`` with both constant, becomes the floats that it makes,
   rounded as a runtime does. Per tensor, per axis and by blocks.
2. The file grows by what the smaller type saved, and the weights stay rounded as they were.
3. Values that are quantized in a run keep their pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penstock.passes import Phase
from penstock.passes._quantization import SPANS, Quantization, quantization
from penstock.rewriting import Refusal, Rewrite
from penstock.rewriting.site import Site

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

PHASE: Phase = "lower"
AFTER: tuple[str, ...] = ("fold-constants",)
OPERATORS: tuple[str, ...] = ("DequantizeLinear",)
OPTIONAL = True
MOST = 1 << 30  # bytes of floats that are made of one weight


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Compute a DequantizeLinear of which all is constant."""
    tensor = site.tensor(node.inputs[0])
    if tensor is None:
        return None
    how = quantization(node, site)
    kind = tensor.dtype.name
    if how.real.name not in ("FLOAT", "FLOAT16") or not (kind in SPANS or (kind, how.real.name) == ("INT32", "FLOAT")):
        raise Refusal(f"{kind} scaled by {how.real.name} isn't computed ahead")
    if (size := tensor.size * how.real.itemsize) > MOST:
        raise Refusal(f"it would make {int(size):,} bytes of floats, {MOST:,} are made at most")
    array = floats(tensor.numpy(), how)
    return site.instead(node, site.constant(array, how.real), f"a weight of {kind} becomes floats")


def floats(integers: Array, how: Quantization) -> Array:
    """Return ``(x - zero) * scale``: in float32, and from there in the type that is wanted, as runtimes do it."""
    import numpy as np

    scale, zero = (_spread(array, integers.shape, how) for array in (how.scale.astype(np.float32), how.zero))
    moved = (integers.astype(np.float64) - zero).astype(np.float32)  # the difference of two integers is exact
    return (moved * scale).astype(how.real.numpy())


def _spread(array: Array, shape: tuple[int, ...], how: Quantization) -> Array:
    """Let scales and zero points stand beside the elements that they are for."""
    import numpy as np

    if array.size == 1:
        return array.reshape(())
    if how.block:
        cut: Array = np.repeat(array, how.block, how.axis)
        return cut[tuple(slice(size) for size in shape)]
    return array.reshape([-1 if axis == how.axis else 1 for axis in range(len(shape))])
