"""Tensors of the types that numpy has none of, in and out of ONNX Runtime, whose own way to numpy refuses them.

Imported by runtimes in environments of their own too, which hold ml_dtypes and no onnx.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from penstock.backends import _bits

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

_NAMED = re.compile(r"tensor\((\w+)\)")
# the runtime's name of a type → the format's number of it, and ml_dtypes' name
TYPES = {
    "bfloat16": (16, "bfloat16"), "float8e4m3fn": (17, "float8_e4m3fn"), "float8e4m3fnuz": (18, "float8_e4m3fnuz"),
    "float8e5m2": (19, "float8_e5m2"), "float8e5m2fnuz": (20, "float8_e5m2fnuz"), "uint4": (21, "uint4"),
    "int4": (22, "int4"), "float4e2m1": (23, "float4_e2m1fn"), "float8e8m0": (24, "float8_e8m0fnu"),
    "uint2": (25, "uint2"), "int2": (26, "int2"),
}  # fmt: skip


def element(kind: str) -> int | None:
    """Return the format's number of such a type, as the runtime writes it ("tensor(bfloat16)"); ``None`` of others."""
    found = _NAMED.fullmatch(kind)
    return TYPES[found[1]][0] if found is not None and found[1] in TYPES else None


def run(session: Any, feeds: Mapping[str, Array]) -> list[Array]:
    """Run a session of ONNX Runtime's on one batch, whatever the types of its inputs and outputs."""
    kinds = {value.name: element(value.type) for value in session.get_inputs()}
    outputs = [value.name for value in session.get_outputs()]
    given = {name: _given(array, kinds.get(name)) for name, array in feeds.items()}
    return [_taken(one) for one in session.run_with_ort_values(outputs, given)]


def runner(session: Any) -> Callable[[Any, Mapping[str, Array]], list[Array]]:
    """Return what runs a session like this one on one batch: by numpy's arrays where it has all the types, else so."""
    return run if needed(session) else _plain


def _plain(session: Any, feeds: Mapping[str, Array]) -> list[Array]:
    found: list[Array] = session.run(None, dict(feeds))
    return found


def needed(session: Any) -> bool:
    """Tell whether a session takes or makes a type that numpy has none of."""
    return any(element(value.type) is not None for value in (*session.get_inputs(), *session.get_outputs()))


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

    if not value.is_tensor() or element(value.data_type()) is None:
        found: Array = value.numpy()
        return found
    import ml_dtypes

    name = next(name for number, name in TYPES.values() if number == value.element_type())
    size = value.tensor_size_in_bytes()
    data = np.frombuffer(ctypes.string_at(value.data_ptr(), size) if size else b"", np.uint8)
    return _bits.array_of(data, np.dtype(getattr(ml_dtypes, name)), value.shape())
