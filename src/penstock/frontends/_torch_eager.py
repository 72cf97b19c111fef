"""What the module does when it runs as plain Python: where it leaves tensors, where it drops axes. Imports torch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
_TRUTHS = {"__bool__", "is_nonzero", "__contains__"}
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


@contextmanager
def _before(name: str, note: Callable[[str, torch.Tensor], None]) -> Iterator[None]:
    """Call ``note`` before a method of tensors."""
    plain, own = getattr(torch.Tensor, name), name in vars(torch.Tensor)

    def noting(tensor: torch.Tensor, *rest: Any, **named: Any) -> Any:
        note(name, tensor)
        return plain(tensor, *rest, **named)

    setattr(torch.Tensor, name, noting)
    try:
        yield
    finally:
        if own:
            setattr(torch.Tensor, name, plain)
        else:
            delattr(torch.Tensor, name)


@dataclass(frozen=True, slots=True)
class Leaves:
    """The user's lines that take something out of a tensor, themselves or in a function of torch's that they call.

    Sizes are plain numbers here, so a line that is in no set, and of which a tracer complains, takes sizes alone.
    """

    values: set[str]  # what they take is computed: it depends on the values of the input
    numbers: set[str]  # those of them where it is more than a truth
    constants: set[str]  # it always was a parameter or a buffer


def leaves(module: torch.nn.Module, feeds: Feeds, home: Home) -> Leaves:
    """Run the module, and list the lines that take something out of a tensor."""
    own = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    values: set[str] = set()
    numbers: set[str] = set()
    constants: set[str] = set()

    def leaving(name: str, tensor: torch.Tensor) -> None:
        line = here(home)
        (constants if id(tensor) in own else values).add(line)
        if id(tensor) not in own and name not in _TRUTHS:
            numbers.add(line)

    def note(name: str, args: Any, kwargs: Any, _: Any) -> None:
        for tensor in _pytree.tree_leaves((args, kwargs)) if name in _MAKES else ():
            if isinstance(tensor, torch.Tensor):
                leaving(name, tensor)

    with _watching(note), contextlib.ExitStack() as methods:
        for name in _LEAVES:  # by themselves: a mode doesn't see what torch's own functions call
            methods.enter_context(_before(name, leaving))
        run_module(module, feeds)
    return Leaves(values, numbers, constants - values)


def squeezes(module: torch.nn.Module, feeds: Feeds, home: Home) -> list[tuple[str, int]]:
    """Run the module, and list its squeezes without an axis: the user's line, and how many axes it drops there."""
    found: list[tuple[str, int]] = []

    def note(name: str, args: Any, kwargs: Any, result: Any) -> None:
        if name == "squeeze" and len(args) == 1 and "dim" not in kwargs:
            found.append((here(home), args[0].ndim - result.ndim))

    with _watching(note):
        run_module(module, feeds)
    return found
