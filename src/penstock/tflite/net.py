"""A net under construction: tensors and operators in the order in which they are computed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from penstock.tflite.flatfile import Array, Grid, Operator, Tensor

INT8, FLOAT = np.dtype(np.int8), np.dtype(np.float32)


@dataclass(slots=True)
class Net:
    """What goes into the file."""

    tensors: list[Tensor] = field(default_factory=list)
    operators: list[Operator] = field(default_factory=list)
    _names: set[str] = field(default_factory=set)
    _floats: dict[int, Tensor] = field(default_factory=dict)  # of integer tensors, by id
    _moved: dict[tuple[int, tuple[int, ...]], Tensor] = field(default_factory=dict)

    def tensor(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], grid: Grid | None = None) -> Tensor:
        """Add a tensor that an operator makes, or that is given."""
        return self._add(Tensor(self._named(name), tuple(int(size) for size in shape), dtype, grid))

    def constant(self, name: str, array: Array, grid: Grid | None = None) -> Tensor:
        """Add a tensor of given values."""
        return self._add(Tensor(self._named(name), array.shape, array.dtype, grid, np.ascontiguousarray(array)))

    def add(
        self, form: str, inputs: tuple[Tensor | None, ...], output: Tensor, version: int = 1, **options: Any
    ) -> Tensor:
        """Add an operator, and return what it makes."""
        self.operators.append(Operator(form, inputs, (output,), version, options))
        return output

    def floats(self, tensor: Tensor) -> Tensor:
        """Return the tensor in float, if it is on a grid."""
        if tensor.grid is None:
            return tensor
        if id(tensor) not in self._floats:
            made = self.tensor(f"{tensor.name}/float", tensor.shape, FLOAT)
            self._floats[id(tensor)] = self.add("DEQUANTIZE", (tensor,), made, 2)
        return self._floats[id(tensor)]

    def on(self, tensor: Tensor, grid: Grid) -> Tensor:
        """Return the tensor's integers on another grid."""
        if tensor.grid is not None and same(tensor.grid, grid):
            return tensor
        made = self.tensor(f"{tensor.name}/requantized", tensor.shape, INT8, grid)
        return self.add("QUANTIZE", (tensor,), made, 1 if tensor.dtype == FLOAT else 2)

    def transposed(self, tensor: Tensor, order: tuple[int, ...]) -> Tensor:
        """Return the tensor with its axes in another order; where that moves nothing, it is but reshaped."""
        if order == tuple(range(len(order))):
            return tensor
        if (found := self._moved.get((id(tensor), order))) is not None:
            return found
        shape = tuple(tensor.shape[axis] for axis in order)
        long = [axis for axis in order if tensor.shape[axis] != 1]
        if long == sorted(long):
            made = self.reshaped(tensor, shape)
        else:
            made = self.tensor(f"{tensor.name}/transposed", shape, tensor.dtype, tensor.grid)
            self.add("TRANSPOSE", (tensor, self.numbers(order)), made, _newer(tensor))
        self._moved[id(tensor), order] = made
        return made

    def reshaped(self, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return the tensor in another shape."""
        if tensor.shape == tuple(shape):
            return tensor
        made = self.tensor(f"{tensor.name}/reshaped", shape, tensor.dtype, tensor.grid)
        return self.add("RESHAPE", (tensor, self.numbers(shape)), made, new_shape=made.shape)

    def numbers(self, values: Any) -> Tensor:
        """Add a constant of int32."""
        return self.constant("numbers", np.asarray(values, np.int32))

    def _add(self, tensor: Tensor) -> Tensor:
        self.tensors.append(tensor)
        return tensor

    def _named(self, name: str) -> str:
        found, number = name, 0
        while found in self._names:
            number += 1
            found = f"{name}_{number}"
        self._names.add(found)
        return found


def _newer(tensor: Tensor) -> int:
    return 2 if tensor.dtype == INT8 else 1


def same(a: Grid, b: Grid) -> bool:
    """Whether two grids are one."""
    return bool(np.array_equal(a.scale, b.scale) and np.array_equal(a.zero_point, b.zero_point))
