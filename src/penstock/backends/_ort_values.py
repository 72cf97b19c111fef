"""Tensors of the types that numpy has none of, in and out of ONNX Runtime: bfloat16, float8, and parts of a byte.

The runtime's own way to numpy refuses them. Their bytes are its and ml_dtypes' alike, but for elements smaller than a
byte, which it packs, the first in the lowest bits.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

_NAMED = re.compile(r"tensor\((bfloat16|float8\w+|float4\w+|u?int[24])\)")


def element(kind: str) -> int | None:
    """Return the format's number of such a type, as the runtime writes it ("tensor(bfloat16)"); ``None`` of others."""
    found = _NAMED.fullmatch(kind)
    if found is None:
        return None
    from onnx import TensorProto

    return int(TensorProto.DataType.Value(found[1].upper()))


def run(
    session: Any, outputs: Sequence[str], feeds: Mapping[str, Array], kinds: Mapping[str, int | None]
) -> list[Array]:
    """Run a session; ``kinds`` has the number of each input's type where numpy has none."""
    made = session.run_with_ort_values(
        list(outputs), {name: _given(one, kinds.get(name)) for name, one in feeds.items()}
    )
    return [_taken(one) for one in made]


def _given(array: Array, kind: int | None) -> Any:
    import numpy as np
    import onnxruntime

    if kind is None:
        return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
    value = onnxruntime.OrtValue.ortvalue_from_shape_and_type([*array.shape], kind)
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    bits = _bits(kind)
    if bits < 8:
        data = _packed(data & ((1 << bits) - 1), bits)
    if data.nbytes:
        ctypes.memmove(value.data_ptr(), data.ctypes.data, data.nbytes)
    return value


def _taken(value: Any) -> Array:
    import numpy as np
    from onnx.helper import tensor_dtype_to_np_dtype

    if not value.is_tensor() or element(value.data_type()) is None:
        found: Array = value.numpy()
        return found
    kind, shape = value.element_type(), value.shape()
    size = value.tensor_size_in_bytes()
    data = np.frombuffer(ctypes.string_at(value.data_ptr(), size) if size else b"", np.uint8)
    bits, dtype = _bits(kind), np.dtype(tensor_dtype_to_np_dtype(kind))
    if bits < 8:
        data = _unpacked(data, bits)[: int(np.prod(shape))]
        if dtype.name.startswith("int"):  # the sign goes up to the top of the byte
            data = ((data.astype(np.int8) << (8 - bits)) >> (8 - bits)).view(np.uint8)
    return data.copy().view(dtype).reshape(shape)


def _bits(kind: int) -> int:
    from onnx import TensorProto

    name = TensorProto.DataType.Name(kind)
    return 2 if name.endswith("INT2") else 4 if name.endswith("INT4") or name.startswith("FLOAT4") else 8


def _packed(data: Array, bits: int) -> Array:
    import numpy as np

    each = 8 // bits
    whole = np.zeros(-(-data.size // each) * each, np.uint8)
    whole[: data.size] = data
    shifts = np.arange(each, dtype=np.uint8) * bits
    found: Array = np.bitwise_or.reduce(whole.reshape(-1, each) << shifts, axis=1)
    return found.astype(np.uint8)


def _unpacked(data: Array, bits: int) -> Array:
    import numpy as np

    shifts = np.arange(8 // bits, dtype=np.uint8) * bits
    parts: Array = ((data[:, None] >> shifts) & ((1 << bits) - 1)).astype(np.uint8)
    return parts.reshape(-1)
