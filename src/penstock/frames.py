"""Frames: a JSON object and arrays, in one piece of bytes, for a runtime in another process or in a browser.

A frame is the length of its head (4 bytes, little endian), the head (JSON), zeros up to a multiple of 8, and the bytes
of the arrays one after the other, each padded likewise. Arrays of texts stand in the head.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from penstock.jsonable import Json

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

ALIGN = 8
MOST_HEAD = 256 << 20  # bytes: a stream that holds something else would ask for any number of them


def packed(told: Json, arrays: Sequence[Array] = ()) -> list[bytes | memoryview]:
    """Return the pieces of a frame, to be written one after the other."""
    import numpy as np

    described: list[Json] = []
    pieces: list[bytes | memoryview] = []
    for array in arrays:
        if array.dtype.kind in "OUS":
            texts: list[Json] = [str(one) for one in array.reshape(-1)]
            described.append({"shape": [*array.shape], "texts": texts})
            continue
        whole = np.ascontiguousarray(array)
        described.append({"shape": [*array.shape], "dtype": whole.dtype.name, "bytes": whole.nbytes})
        pieces += [whole.reshape(-1).view(np.uint8).data, _padding(whole.nbytes)]
    head = json.dumps({"told": told, "arrays": described}).encode()
    return [struct.pack("<I", len(head)), head, _padding(4 + len(head)), *pieces]


def unpacked(read: Callable[[int], bytes]) -> tuple[Json, list[Array]]:
    """Read a frame with ``read``, which gives so many bytes or raises ``EOFError``; the arrays may be written to.

    Raises ``EOFError``, or ``ValueError`` for what is no frame.
    """
    import numpy as np

    (length,) = struct.unpack("<I", read(4))
    if length > MOST_HEAD:
        raise ValueError("this is no frame")
    head = cast("dict[str, Any]", json.loads(read(length)))
    read(len(_padding(4 + length)))
    arrays: list[Array] = []
    for one in head["arrays"]:
        if "texts" in one:
            arrays.append(np.array(one["texts"], dtype=object).reshape(one["shape"]))
            continue
        data = read(one["bytes"])
        read(len(_padding(one["bytes"])))
        arrays.append(np.frombuffer(bytearray(data), dtype=_dtype(one["dtype"])).reshape(one["shape"]))
    return head["told"], arrays


def of_bytes(data: bytes) -> tuple[Json, list[Array]]:
    """Take a whole frame apart. Raises ``ValueError`` for what is none."""
    place = 0

    def read(count: int) -> bytes:
        nonlocal place
        if place + count > len(data):
            raise ValueError("the frame is cut off")
        place += count
        return data[place - count : place]

    return unpacked(read)


def _padding(length: int) -> bytes:
    return b"\0" * (-length % ALIGN)


def _dtype(name: str) -> np.dtype[Any]:
    import numpy as np

    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return found
