"""What goes into a model and what comes out: names, dtypes, shapes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias

from penstock.errors import UsageError

Dim: TypeAlias = "int | str | None"  # a size, the name of a dynamic dimension, or unknown


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output. ``dtype`` is numpy's name; ``example`` gives a size to each dynamic dimension."""

    name: str
    dtype: str
    shape: tuple[Dim, ...] | None  # None: the rank is unknown

    def text(self) -> str:
        """Return ``name:dtype[batch,3,32,32]``."""
        if self.shape is None:
            return f"{self.name}:{self.dtype}[…]"
        return f"{self.name}:{self.dtype}[{','.join('?' if d is None else str(d) for d in self.shape)}]"


@dataclass(frozen=True, slots=True)
class Signature:
    """The inputs and outputs of a model, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def fixed_batch(self) -> int | None:
        """The size of axis 0 where the model fixes it for an input, else ``None``."""
        for spec in self.inputs:
            if spec.shape and isinstance(spec.shape[0], int):
                return spec.shape[0]
            if spec.shape is not None and not spec.shape:
                return 1
        return None


DTYPES = (
    "float16", "float32", "float64", "bool",
    "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64",
)  # fmt: skip
_SPEC = re.compile(r"^(?P<name>[^:\[\]]+):(?P<dtype>[a-z0-9]+)\[(?P<dims>[^\]]*)\]$")


def parse_input(text: str) -> tuple[TensorSpec, dict[str, int]]:
    """Read ``x:float32[batch,3,height=64,32]``: a named size is a dynamic dimension, ``=64`` its example size.

    Returns the spec and the example sizes. Raises ``UsageError`` when the text doesn't parse.
    """
    match = _SPEC.match(text.strip())
    if not match:
        raise UsageError(
            "bad-input-spec",
            f"can't read the input {text!r}",
            do="write it as name:dtype[dims], for example x:float32[batch,3,32,32] or x:float32[batch,3,height=64,64]",
        )
    if match["dtype"] not in DTYPES:
        do = f"use one of {', '.join(DTYPES)}"
        raise UsageError("bad-input-spec", f"there is no dtype {match['dtype']!r} in {text!r}", do=do)
    shape: list[Dim] = []
    sizes: dict[str, int] = {}
    for dim in filter(None, (part.strip() for part in match["dims"].split(","))):
        label, _, size = dim.partition("=")
        if label.isdigit() and int(label) > 0 and not size:
            shape.append(int(label))
            continue
        if not label.isidentifier() or ("=" in dim and not (size.isdigit() and int(size) > 0)):
            raise UsageError(
                "bad-input-spec", f"can't read the dimension {dim!r} of {text!r}", do="use 3, batch or h=64"
            )
        shape.append(label)
        if size:
            sizes[label] = int(size)
    return TensorSpec(match["name"], match["dtype"], tuple(shape)), sizes
