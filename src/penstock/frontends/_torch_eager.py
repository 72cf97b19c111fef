"""What the module does when it runs as plain Python: where it leaves tensors, where it drops axes. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

from penstock.frontends._torch_lines import Home, here
from penstock.frontends._torch_module import Feeds, run_module

# what takes a number, a truth or numpy's values out of a tensor
_LEAVES = {
    "__bool__", "__int__", "__float__", "__index__", "__complex__", "__array__", "__format__", "__repr__",
    "__contains__", "item", "tolist", "numpy", "is_nonzero",
}  # fmt: skip
_MAKES = {"tensor", "as_tensor"}
_Calls = Callable[[str, Any, Any, Any], None]


class _Watch(TorchFunctionMode):
    """Hand every call of a function on tensors, with its result, to ``note``."""

    def __init__(self, note: _Calls) -> None:
        super().__init__()
        self._note = note

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self._note(getattr(function, "__name__", ""), args, kwargs or {}, result)
        return result


@contextmanager
def _watching(note: _Calls) -> Iterator[None]:
    with _Watch(note):
        yield


def leaves(module: torch.nn.Module, feeds: Feeds, home: Home) -> tuple[set[str], set[str]]:
    """Run the module, and list the user's lines that take something out of a tensor.

    The first set are those where the tensor is computed: what they take depends on the values of the input. The second
    are those where it always was a parameter or a buffer. Sizes are plain numbers here, so a line that is in neither
    set, and of which a tracer complains, takes sizes alone.
    """
    own = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    values: set[str] = set()
    constants: set[str] = set()

    def note(name: str, args: Any, kwargs: Any, _: Any) -> None:
        if name in _LEAVES:
            found = [args[0]]
        elif name in _MAKES:
            found = [leaf for leaf in _pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        else:
            return
        for tensor in found:
            (constants if id(tensor) in own else values).add(here(home))

    with _watching(note):
        run_module(module, feeds)
    return values, constants - values


def squeezes(module: torch.nn.Module, feeds: Feeds, home: Home) -> list[tuple[str, int]]:
    """Run the module, and list its squeezes without an axis: the user's line, and how many axes it drops there."""
    found: list[tuple[str, int]] = []

    def note(name: str, args: Any, kwargs: Any, result: Any) -> None:
        if name == "squeeze" and len(args) == 1 and "dim" not in kwargs:
            found.append((here(home), args[0].ndim - result.ndim))

    with _watching(note):
        run_module(module, feeds)
    return found
