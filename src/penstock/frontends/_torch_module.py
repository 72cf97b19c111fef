"""The user's module on arrays: what it takes, returns and changes. Imports torch: load it inside functions only."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree

from penstock import places, user_code
from penstock.errors import InputError
from penstock.signature import DTYPES

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class FirstRun:
    """What the first run on the example shows."""

    outputs: tuple[str, ...]  # their names in the exported model
    changed: tuple[str, ...]  # inputs that the module writes into
    scripted: bool  # it calls something that is scripted, whatever name it calls that by


def parameters(module: torch.nn.Module) -> list[str]:
    """Return the names of forward's parameters, those of a traced or scripted module too."""
    try:
        return list(inspect.signature(module.forward).parameters)
    except (TypeError, ValueError):  # a method in C++ has a schema in place of a signature
        schema = getattr(module.forward, "schema", None)
        return [argument.name for argument in schema.arguments][1:] if schema is not None else []


def line_of(module: torch.nn.Module) -> str:
    """Name the line of the module's forward, for a message that has no closer one; else its class."""
    forward = getattr(type(module), "forward", None)
    code = getattr(forward, "__code__", None)
    found = places.place(code.co_filename, code.co_firstlineno) if code is not None else ""
    return places.text(found) if found else type(module).__name__


def arrays_of(values: Mapping[str, Any], id: str, whose: str, where: str) -> dict[str, np.ndarray]:
    """Make arrays of the user's tensors, arrays and lists. Raises ``InputError`` for what can't be an input."""
    return {
        name: _array(value, f"{whose} {f'input {name}' if name.isdigit() else repr(name)}", id, where)
        for name, value in values.items()
    }


def _array(value: Any, what: str, id: str, where: str) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        if kind not in DTYPES:
            do = "take it as float32, and convert it inside forward"
            raise InputError(id, f"{what} is a tensor of {kind}, which can't be an input", where=where, do=do)
        if value.layout != torch.strided:
            do = "give it as a dense tensor: value.to_dense()"
            raise InputError(id, f"{what} is a sparse tensor, which can't be an input", where=where, do=do)
        if value.device.type == "meta":
            do = "give it values: torch.zeros or torch.randn without device='meta'"
            raise InputError(id, f"{what} is a tensor on the device meta: it has no values", where=where, do=do)
        made: np.ndarray = value.detach().cpu().numpy()
        return made
    try:
        array = np.asarray(value)
    except ValueError:  # a list of lists of different lengths
        array = np.asarray(None)
    if array.dtype.name not in DTYPES:
        do = "return tensors or arrays of numbers"
        raise InputError(id, f"{what} is {_an(value)}, not a tensor", where=where, do=do)
    return array


def _an(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def tensors(feeds: Feeds) -> tuple[torch.Tensor, ...]:
    """Make the module's arguments of arrays: copies, as a module may write into them."""
    return tuple(torch.from_numpy(np.array(array, order="C")) for array in feeds.values())


def shapes(feeds: Feeds) -> str:
    """Return ``x float32[2, 3], y int64[2]``."""
    return ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in feeds.items())


def run_module(module: torch.nn.Module, feeds: Feeds, whose: str = "") -> Any:
    """Run the module; what it raises is an ``InputError`` that names the user's line. ``whose`` names the inputs."""
    given = tensors(feeds)

    def forward() -> Any:
        with torch.no_grad():
            return module(*given)

    what = f"the module fails on {f'{whose}, ' if whose else ''}{shapes(feeds)}"
    return user_code.call(forward, what, line_of(module))


def first_run(module: torch.nn.Module, feeds: Feeds) -> FirstRun:
    """Run the module on the example. Raises ``InputError`` where it returns what a model can't."""
    given, called = tensors(feeds), False
    plain = torch._C.ScriptFunction.__call__

    def noting(function: Any, *rest: Any, **named: Any) -> Any:
        nonlocal called
        called = True
        return plain(function, *rest, **named)

    def forward() -> Any:
        with torch.no_grad():
            return module(*given)

    torch._C.ScriptFunction.__call__ = noting  # type: ignore[method-assign,assignment]  # put back below
    try:
        outputs = user_code.call(forward, f"the module fails on {shapes(feeds)}", line_of(module))
    finally:
        torch._C.ScriptFunction.__call__ = plain  # type: ignore[method-assign]
    names = _named(module, outputs)
    changed = tuple(
        name for (name, array), tensor in zip(feeds.items(), given, strict=True)
        if not np.array_equal(tensor.detach().numpy(), array, equal_nan=array.dtype.kind == "f")
    )  # fmt: skip
    return FirstRun(names, changed, called)


def _named(module: torch.nn.Module, outputs: Any) -> tuple[str, ...]:
    leaves = _pytree.tree_flatten_with_path(outputs)[0]
    known = [(path, leaf) for path, leaf in leaves if leaf is not None]
    if not any(isinstance(leaf, torch.Tensor) for _, leaf in known):
        do = "return a tensor, or tuples, lists and dicts of tensors"
        raise InputError("no-output", "the module returns no tensor", where=line_of(module), do=do)
    for number, (path, leaf) in enumerate(leaves):
        key = getattr(path[0], "key", None) if len(path) == 1 else None
        called = repr(key) if isinstance(key, str) else str(number)
        if leaf is not None and (wrong := _wrong(leaf)):
            what, do = wrong
            raise InputError(
                "output-not-a-tensor", f"output {called} of the module is {what}", where=line_of(module), do=do
            )
    if isinstance(outputs, Mapping) and len(outputs) == len(known):
        return tuple(str(key) for key in outputs)
    return ("output",) if len(known) == 1 else tuple(f"output_{i}" for i in range(len(known)))


def _wrong(leaf: object) -> tuple[str, str] | None:
    """Say what an output is that no model can return, and what to do."""
    if not isinstance(leaf, torch.Tensor):
        return f"{_an(leaf)}, not a tensor", "leave it out, or return it as a tensor"
    if leaf.layout != torch.strided:
        return "a sparse tensor, which ONNX doesn't have", "return it as a dense tensor: y.to_dense()"
    if leaf.is_complex():
        return "complex, and ONNX has no operators on complex numbers", "return its two parts: torch.view_as_real(y)"
    if (kind := str(leaf.dtype).removeprefix("torch.")) not in DTYPES:
        return f"a tensor of {kind}, which the runtimes can't hand out as an array", "return it as float32: y.float()"
    return None


def array_of(tensor: torch.Tensor) -> np.ndarray:
    """Return an output's values."""
    made: np.ndarray = tensor.detach().cpu().numpy()
    return made
