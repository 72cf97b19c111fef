"""A node's attributes, read with their defaults. Imports torch: load it inside functions only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

# what a node computes: of its inputs in order (``None``: left out), one tensor, or several
Run = Callable[..., Any]


class Untrainable(Exception):  # noqa: N818  # it is a reason that becomes a part of an error's text
    """Why a node can't be run here."""


@dataclass(frozen=True, slots=True)
class Node:
    """An operator's name and attributes, the opset that it is meant in, and how many inputs and outputs are listed."""

    op: str
    opset: int
    inputs: int
    outputs: int
    attributes: Any  # onnx-ir's mapping of attributes

    def integer(self, name: str, default: int) -> int:
        """Return a whole number."""
        return int(self.attributes.get_int(name, default))

    def real(self, name: str, default: float) -> float:
        """Return a number."""
        return float(self.attributes.get_float(name, default))

    def text(self, name: str, default: str) -> str:
        """Return a text."""
        return str(self.attributes.get_string(name, default))

    def ints(self, name: str) -> list[int] | None:
        """Return a list of whole numbers; ``None`` where it isn't given."""
        found = self.attributes.get_ints(name, None)
        return None if found is None else [int(one) for one in found]

    def has(self, name: str) -> bool:
        """Whether an attribute is given."""
        return name in self.attributes

    def only(self, name: str, value: object, given: object) -> None:
        """Raise :class:`Untrainable` for an attribute that isn't what it has to be."""
        if given != value:
            raise Untrainable(f"{self.op} with {name}={given} isn't among what it knows")


def together(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Bring tensors to one device: sizes and indices are held in the processor's memory."""
    home = next((one.device for one in tensors if one.device.type != "cpu"), None)
    return tensors if home is None else tuple(one.to(home) for one in tensors)


def whole(tensor: torch.Tensor) -> list[int]:
    """Return the numbers in a tensor of sizes, axes or indices."""
    return [int(one) for one in tensor.reshape(-1).tolist()]


def axes_of(node: Node, given: torch.Tensor | None, rank: int) -> list[int]:
    """Return the axes of a reduction or a squeeze, from its attribute or its input, at or above 0; none for all."""
    listed = node.ints("axes") if given is None else whole(given)
    return [axis % rank for axis in listed] if listed else []


def pairs(pads: Sequence[int]) -> list[tuple[int, int]]:
    """Cut ONNX's list of pads, all begins before all ends, into pairs for each axis."""
    half = len(pads) // 2
    return list(zip(pads[:half], pads[half:], strict=True))
