"""Arrays whose types numpy has none of, as the bytes of a runtime: bfloat16, float8, parts of a byte, lowest first."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

_SMALL = re.compile(r"(?:u?int|float)([24])(?:_|$)")


def bits(dtype: np.dtype[Any]) -> int:
    """Return how many bits of a runtime's memory an element takes: ml_dtypes gives a byte to what is smaller."""
    found = _SMALL.match(dtype.name)
    return int(found[1]) if found is not None else 8 * dtype.itemsize


def bytes_of(array: Array) -> Array:
    """Return the bytes of an array as a runtime holds them, uint8[n]."""
    import numpy as np

    data: Array = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    size = bits(array.dtype)
    return data if size >= 8 else packed(data & ((1 << size) - 1), size)


def array_of(data: Array, dtype: np.dtype[Any], shape: Sequence[int]) -> Array:
    """Return the array that a runtime's bytes, uint8[n], stand for."""
    import numpy as np

    size = bits(dtype)
    if size < 8:
        data = unpacked(data, size)[: int(np.prod(shape))]
        if dtype.name.startswith("int"):  # the sign goes up to the top of the byte
            data = ((data.astype(np.int8) << (8 - size)) >> (8 - size)).view(np.uint8)
    found: Array = data.copy().view(dtype).reshape(shape)
    return found


def packed(data: Array, size: int) -> Array:
    """Put elements of ``size`` bits into bytes."""
    import numpy as np

    each = 8 // size
    whole = np.zeros(-(-data.size // each) * each, np.uint8)
    whole[: data.size] = data
    shifts = np.arange(each, dtype=np.uint8) * size
    found: Array = np.bitwise_or.reduce(whole.reshape(-1, each) << shifts, axis=1)
    return found.astype(np.uint8)


def unpacked(data: Array, size: int) -> Array:
    """Take elements of ``size`` bits out of bytes."""
    import numpy as np

    shifts = np.arange(8 // size, dtype=np.uint8) * size
    parts: Array = ((data[:, None] >> shifts) & ((1 << size) - 1)).astype(np.uint8)
    return parts.reshape(-1)
