"""Sizes that would fill the memory are refused before anything is made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from penstock.errors import UsageError
from penstock.signature import TensorSpec

LIMIT_BYTES = 1 << 30  # of all inputs of one run


def need_room(specs: Sequence[TensorSpec], sizes: Mapping[str, int], what: str, where: str) -> None:
    """Raise ``UsageError`` where inputs of these sizes would take more than the limit."""
    taken = sum(_bytes(spec, sizes) for spec in specs)
    if taken > LIMIT_BYTES:
        told = f"{what} would take {taken / 1e9:.3g} GB, the limit is {LIMIT_BYTES / 1e9:.3g} GB"
        do = "give smaller sizes: the proof needs some that differ, not large ones"
        raise UsageError("sizes-too-large", told, where=where, do=do)


def _bytes(spec: TensorSpec, sizes: Mapping[str, int]) -> int:
    shape = [dim if isinstance(dim, int) else sizes.get(str(dim), 1) for dim in spec.shape or ()]
    return math.prod(shape) * np.dtype(spec.dtype).itemsize
