"""What a model's file says of its inputs and outputs, for runtimes that take arrays by position, or fix every size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from penstock import graph
from penstock.errors import InputError
from penstock.signature import Signature, TensorSpec

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class Given:
    """Arrays in the model's order, the size of the batch, and the sizes of other named axes."""

    arrays: dict[str, np.ndarray]
    batch: int
    sizes: dict[str, int]


def signature(path: Path) -> Signature:
    """Return the signature of a model file. Raises ``InputError``."""
    return graph.signature(graph.load(path, weights=False))


def given(model: Signature, feeds: Mapping[str, np.ndarray]) -> Given:
    """Hold the feeds against the signature. Raises ``InputError`` for a wrong name, dtype, rank or size."""
    wanted = {spec.name: spec for spec in model.inputs}
    if set(wanted) != set(feeds):
        what = f"the model wants the inputs {', '.join(wanted)}; it was given {', '.join(feeds)}"
        raise InputError("run-failed", what)
    sizes: dict[str, int] = {}
    batch = 0
    for name, spec in wanted.items():
        array = feeds[name]
        if not hasattr(array, "dtype"):
            what = f"the model wants {spec.text()}; it was given a {type(array).__name__}, and only arrays are taken"
            raise InputError("run-failed", what)
        if spec.shape is None:
            continue
        fits = array.dtype.name == spec.dtype or (array.dtype.kind in "OUS" and spec.dtype in ("object", "str"))
        if not fits or array.ndim != len(spec.shape):
            raise _wrong(spec, array)
        for axis, (dim, size) in enumerate(zip(spec.shape, array.shape, strict=True)):
            if dim == size or (dim is None and axis):
                continue
            if isinstance(dim, int):
                raise _wrong(spec, array)
            if axis == 0:
                batch = batch or size
            if dim is not None and sizes.setdefault(dim, size) != size:
                what = f"the axis {dim!r} is {sizes[dim]} in one input and {size} in {name!r}"
                raise InputError("run-failed", what)
    return Given({name: feeds[name] for name in wanted}, batch or model.fixed_batch or 1, sizes)


def _wrong(spec: TensorSpec, array: np.ndarray) -> InputError:
    dims = ",".join(map(str, array.shape))
    return InputError("run-failed", f"the model wants {spec.text()}; it was given {array.dtype.name}[{dims}]")


def open_axes(model: Signature) -> list[str]:
    """Return the axes, beside the first, whose sizes a run decides."""
    return [str(dim or "?") for spec in model.inputs for dim in (spec.shape or ())[1:] if not isinstance(dim, int)]
