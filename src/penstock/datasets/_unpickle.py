"""Read a pickle of plain values and numeric arrays, such as CIFAR-10's python layout, and run nothing of what it names.

A pickle is a program: it names functions and calls them. Here the only names it can reach are those of ``_NAMES``,
and each of them is a stand-in of this file that records its arguments. Arrays are made from the records afterwards,
once types, shapes and lengths fit together. No import takes place; numpy's own reconstruction code isn't reached.
"""

from __future__ import annotations

import io
import math
import pickle  # noqa: TID251 - the one reader of pickles; no global of the file's choice can be reached through it
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from penstock.errors import InputError

if TYPE_CHECKING:
    import numpy as np

LIMIT_BYTES = 64 << 20  # CIFAR-10's batches have 31 MB
NUMBERS = {f"{kind}{size}" for kind, sizes in {"u": "1248", "i": "1248", "f": "248"}.items() for size in sizes} | {"b1"}


class _Dtype:
    """What a pickle says of a numeric type."""

    __slots__ = ("code", "order")

    def __init__(self, code: object) -> None:
        if not isinstance(code, (str, bytes)) or _text(code).lstrip("<>|=") not in NUMBERS:
            raise pickle.UnpicklingError(f"arrays of type {code!r} are not read")
        self.code = _text(code).lstrip("<>|=")
        self.order = "<"

    def __setstate__(self, state: Any) -> None:
        order = _text(state[1])
        if order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("arrays of structured types are not read")
        self.order = "<" if order in "|=" else order


class _Array:
    """What a pickle says of an array, checked: shape, type, order of the axes, bytes."""

    __slots__ = ("data", "dtype", "fortran", "shape")

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape):
            raise pickle.UnpicklingError(f"an array has the shape {shape!r}")
        if not isinstance(dtype, _Dtype) or not isinstance(data, (bytes, bytearray)):
            raise pickle.UnpicklingError("an array doesn't hold plain numbers")
        if math.prod(shape) * int(dtype.code[1:]) != len(data):
            raise pickle.UnpicklingError(f"an array of shape {shape} holds {len(data)} bytes")
        self.shape, self.dtype, self.fortran, self.data = shape, dtype, bool(fortran), bytes(data)

    def build(self) -> np.ndarray:
        """Make the array, in native byte order."""
        import numpy as np

        dtype = np.dtype(self.dtype.order + self.dtype.code)
        array = np.frombuffer(self.data, dtype).reshape(self.shape, order="F" if self.fortran else "C")
        return array.astype(dtype.newbyteorder("="))


class _Name:
    """A name that the pickle may use: to call, or to pass on. It has no attributes that a pickle could set."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., object]) -> None:
        self._call = call

    def __call__(self, *args: object) -> object:
        return self._call(*args)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a name is given a state")


def _text(value: object) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else str(value)


def _refuse(*args: object) -> object:
    raise pickle.UnpicklingError("an array is made in an unknown way")


def _latin1(text: str, encoding: object = "latin1") -> bytes:
    """Turn text into bytes: how Python 3 writes bytes in protocol 2. No other codec is reached."""
    if _text(encoding) not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"the codec {encoding!r} is not read")
    return text.encode("latin1")


def _from_buffer(data: object, dtype: object, shape: object, order: object = "C") -> _Array:
    array = _Array()
    array.__setstate__((1, shape, dtype, _text(order) == "F", data))
    return array


_NAMES: dict[tuple[str, str], Callable[..., object]] = {("_codecs", "encode"): _latin1}
for _core in ("numpy.core", "numpy._core"):
    _NAMES[_core + ".multiarray", "_reconstruct"] = lambda *_: _Array()
    _NAMES[_core + ".numeric", "_frombuffer"] = _from_buffer
_NAMES["__builtin__", "bytes"] = lambda: b""  # how Python 3 writes empty bytes in protocol 2
_NAMES["builtins", "bytes"] = lambda: b""
_NAMES["numpy", "ndarray"] = _refuse
_NAMES["numpy", "dtype"] = lambda code, *_: _Dtype(code)


# The unpickler in Python, not the one in C: that one allocates whatever a memo index asks for, up to 64 GiB.
class _Reader(pickle._Unpickler):
    """An unpickler that reaches the names above and no other."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _Name(_NAMES[module, name])


def read(data: bytes, where: str) -> dict[str, object]:
    """Read a pickled dictionary with text keys; arrays at its top level come back as numpy arrays.

    Raises ``InputError`` for whatever else the pickle is, holds or asks for.
    """
    do = "only plain dictionaries of numbers, texts and numeric arrays are read; save the data as .npz instead"
    if len(data) > LIMIT_BYTES:
        raise InputError("unsafe-pickle", f"the pickle has more than {LIMIT_BYTES >> 20} MiB", where=where, do=do)
    try:
        found = _Reader(io.BytesIO(data), encoding="bytes").load()
        if type(found) is not dict:
            raise pickle.UnpicklingError("it holds no dictionary")
        return {
            (key.decode("latin1") if isinstance(key, bytes) else str(key)): (
                value.build() if isinstance(value, _Array) else value
            )
            for key, value in found.items()
        }
    except Exception as error:  # a parser meets arbitrary bytes: whatever it raises is about the file
        reason = str(error) or type(error).__name__
        raise InputError("unsafe-pickle", f"the pickle is not read: {reason}", where=where, do=do) from error
