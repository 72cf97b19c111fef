"""Tensors of the types that numpy has none of, in and out of ONNX Runtime, whose own way to numpy refuses them."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from penstock.backends import _bits

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
    given = {name: _given(array, kinds.get(name)) for name, array in feeds.items()}
    return [_taken(one) for one in session.run_with_ort_values(list(outputs), given)]


def _given(array: Array, kind: int | None) -> Any:
    import numpy as np
    import onnxruntime

    if kind is None:
        return onnxruntime.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"))
    value = onnxruntime.OrtValue.ortvalue_from_shape_and_type([*array.shape], kind)
    data = _bits.bytes_of(array)
    if data.nbytes:
        ctypes.memmove(value.data_ptr(), data.ctypes.data, data.nbytes)
    return value


def _taken(value: Any) -> Array:
    import numpy as np
    from onnx.helper import tensor_dtype_to_np_dtype

    if not value.is_tensor() or element(value.data_type()) is None:
        found: Array = value.numpy()
        return found
    size = value.tensor_size_in_bytes()
    data = np.frombuffer(ctypes.string_at(value.data_ptr(), size) if size else b"", np.uint8)
    return _bits.array_of(data, np.dtype(tensor_dtype_to_np_dtype(value.element_type())), value.shape())
