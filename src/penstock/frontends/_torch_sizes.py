"""The sizes at which an export is proved: those that the module itself takes. Imports torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from penstock.errors import PenstockError
from penstock.frontends._torch_module import run_module
from penstock.frontends._torch_plan import Plan, resized
from penstock.frontends.torch import flat

# other sizes to try for an axis that is not the batch, from the most telling on: added to the example's size
STEPS = (1, 2, 4, 8, 16, 32, 64, -1, -2, -4, -8, -16, -32)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Which sizes to compare at, and what the module's own runs at them show."""

    wanted: tuple[Mapping[str, int], ...]  # every batch, then two sizes of each other dimension, one at a time
    fixed: tuple[str, ...]  # dimensions of which the module takes no other size than the example's, or 1
    outputs: tuple[Mapping[int, str], ...]  # for each output the axes that go with a dimension


def find(module: torch.nn.Module, plan: Plan, batches: tuple[int, ...]) -> Sizes:
    """Find the sizes: a batch is what the user asked for, of other axes 1 and another, where the module takes them."""
    example, batch = plan.sizes(), plan.batch()
    plain = flat(run_module(module, plan.example))
    axes: list[dict[int, str]] = [{} for _ in plain]
    wanted = [{**example, batch: size} for size in batches] if batch else []
    fixed, others = [], dict(example)
    for dim in example:
        taken = []
        for sizes, outputs in _accepted(module, plan, example, dim):
            _note(axes, plain, outputs, dim, sizes[dim])
            taken.append(sizes)
            if sizes[dim] != 1:
                others[dim] = sizes[dim]
                break
        if any(dim in found.values() for found in axes):
            _forget(axes, module, plan, example, dim)
        if dim == batch:
            continue
        if all(sizes[dim] == 1 for sizes in taken):  # nothing, or an axis of 1 that is broadcast
            fixed.append(dim)
        else:
            wanted += taken
    _confirm(axes, module, plan, others)
    return Sizes(tuple(wanted), tuple(fixed), tuple(axes))


def _accepted(
    module: torch.nn.Module, plan: Plan, example: Mapping[str, int], dim: str
) -> Iterator[tuple[dict[str, int], list[torch.Tensor]]]:
    """Run the module at 1, and then at others, and yield those that it takes."""
    size = example[dim]
    others = [size + step for step in STEPS] + [2 * size, size // 2, 3 * size]
    return _taken(module, plan, example, dim, [1, *others])


def _taken(
    module: torch.nn.Module, plan: Plan, example: Mapping[str, int], dim: str, others: list[int]
) -> Iterator[tuple[dict[str, int], list[torch.Tensor]]]:
    for other in dict.fromkeys(others):
        if other < 1 or other == example[dim]:
            continue
        sizes = {**example, dim: other}
        try:
            yield sizes, flat(run_module(module, resized(plan, sizes, 0)))
        except PenstockError:
            continue


def _note(
    axes: list[dict[int, str]], plain: list[torch.Tensor], other: list[torch.Tensor], dim: str, size: int
) -> None:
    for found, before, after in zip(axes, plain, other, strict=False):
        if before.ndim == after.ndim and size != 1:  # an axis of 1 may be another axis, or broadcast
            found |= {a: dim for a in range(after.ndim) if before.shape[a] != after.shape[a] == size and a not in found}


def _forget(
    axes: list[dict[int, str]], module: torch.nn.Module, plan: Plan, example: Mapping[str, int], dim: str
) -> None:
    """Run the module far from the example, and forget axes that don't go with the dimension there: ``x[:, :8]``."""
    size = example[dim]
    for sizes, outputs in _taken(module, plan, example, dim, [2 * size + 1, 2 * size, 4 * size]):
        _keep(axes, outputs, {dim: sizes[dim]})
        return


def _confirm(axes: list[dict[int, str]], module: torch.nn.Module, plan: Plan, sizes: Mapping[str, int]) -> None:
    """Run the module with all dimensions at other sizes together: windows of an image may go with one, and with two."""
    try:
        outputs = flat(run_module(module, resized(plan, sizes, 0)))
    except PenstockError:
        return
    _keep(axes, outputs, sizes)


def _keep(axes: list[dict[int, str]], outputs: list[torch.Tensor], sizes: Mapping[str, int]) -> None:
    for found, output in zip(axes, outputs, strict=False):
        for axis, name in list(found.items()):
            if name in sizes and (axis >= output.ndim or output.shape[axis] != sizes[name]):
                del found[axis]
