"""Find and load the user's module. Imports torch: load it inside functions only."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from penstock import user_code
from penstock.errors import InputError
from penstock.frontends import Source
from penstock.frontends._torch_lines import Home
from penstock.graph import first_line
from penstock.store import file_digest

# source → names of the modules that its first import in this process brought in; a later import brings in none of them
_BROUGHT_IN: dict[str, set[str]] = {}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A module in eval mode, what may serve as its example inputs, and the files it was read from."""

    module: torch.nn.Module
    program: torch.export.ExportedProgram | None
    example_inputs: Any  # tensors in order, a function that returns them, or None
    input_specs: tuple[str, ...]  # for a zoo network, whose signature is known
    reads: Mapping[str, str]
    home: Home  # where the user's code lies


def load(source: Source) -> Loaded:
    """Load a module from any of the forms that the frontend claims. Raises ``InputError``."""
    before = set(sys.modules)
    torch.manual_seed(0)  # a module that draws its weights gets the same ones at every load
    reads: dict[str, str] = {}
    program, example = None, None
    specs: tuple[str, ...] = ()
    if source.spec.endswith(".pt2"):
        from penstock.frontends._pt2 import load_program

        path = Path(source.spec)
        program = load_program(path)
        reads[str(path.resolve())] = file_digest(path)
        example = program.example_inputs[0] if program.example_inputs else None
        module: torch.nn.Module = program.module()
        if source.weights:
            do = "leave --weights out: an exported program carries its own"
            raise InputError("weights-do-not-fit", "an exported program takes no weights", where=source.spec, do=do)
        return Loaded(module, program, example, (), reads, Home(path.resolve().parent))
    head, _, name = source.spec.rpartition(":")
    if head == "zoo":
        from penstock import zoo

        module = zoo.load(name)
        weights = zoo.WEIGHTS / zoo.trained(name).weights
        reads[str(weights.resolve())] = file_digest(weights)
        specs = ("x:float32[batch,3,32,32]",)
        lines = Home(zoo.WEIGHTS.parent.parent, "zoo")
    else:
        home = _import_file(Path(head)) if head.endswith(".py") else _import_package(head)
        _BROUGHT_IN.setdefault(head, set()).update(set(sys.modules) - before)
        reads.update(user_code.files([home, *(sys.modules[name] for name in _BROUGHT_IN[head] if name in sys.modules)]))
        torch.manual_seed(0)  # once more: only the first import in this process draws what the file itself draws
        module = _build(home, name, source.spec)
        example = getattr(module, "example_inputs", None) or getattr(home, "example_inputs", None)
        lines = _lines_of(home, head)
    if source.weights:
        path = Path(source.weights)
        _load_weights(module, path)
        reads[str(path.resolve())] = file_digest(path)
    return Loaded(module.eval(), program, example, specs, reads, lines)


def _lines_of(home: ModuleType, head: str) -> Home:
    """Return the folder that lines of source code are told relative to: the file's own, or that of the package."""
    path = Path(home.__file__ or ".").resolve()
    if head.endswith(".py"):
        return Home(path.parent)
    depth = head.count(".") + (path.name == "__init__.py")
    return Home(path.parents[depth], head.partition(".")[0])


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError("no-such-file", "there is no such file", where=str(path), do="check the path before the colon")
    return user_code.import_file(path, "importing the file failed")


def _import_package(name: str) -> ModuleType:
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.util.find_spec(name)
    except (ModuleNotFoundError, ValueError):
        found = None
    if found is None:
        do = "install the package, or run from the folder that holds it; for a file write path/to/file.py:Class"
        raise InputError("no-such-module", f"there is no module named {name!r}", do=do)
    module = user_code.call(lambda: importlib.import_module(name), "importing the module failed", name)
    return module


def _build(home: ModuleType, name: str, spec: str) -> torch.nn.Module:
    made: Any = getattr(home, name, None)
    if made is None:
        offers = [n for n, v in vars(home).items() if inspect.isclass(v) and issubclass(v, torch.nn.Module)]
        do = f"it has: {', '.join(offers)}" if offers else "name a class or a function that it defines"
        raise InputError("no-such-name", f"{home.__name__} has no {name!r}", where=spec, do=do)
    if isinstance(made, torch.nn.Module):
        return made
    if not callable(made):
        raise InputError("not-a-module", f"{name!r} is neither a class nor a function", where=spec)
    try:
        needed = [
            parameter.name
            for parameter in inspect.signature(made).parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]
    except (TypeError, ValueError):
        needed = []
    if needed:
        do = f"write a function without arguments that returns {name}(…), and name it after the colon instead"
        what = f"{name} can't be built without arguments: it wants {', '.join(needed)}"
        raise InputError("needs-arguments", what, where=spec, do=do)
    module = user_code.call(made, f"building {name} failed", spec)
    if not isinstance(module, torch.nn.Module):
        what = f"{name} gives a {type(module).__name__}, not a torch.nn.Module"
        raise InputError("not-a-module", what, where=spec)
    return module


def _load_weights(module: torch.nn.Module, path: Path) -> None:
    if not path.is_file():
        raise InputError("no-such-file", "there is no such file of weights", where=str(path), do="check --weights")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        elif path.suffix in (".pt", ".pth", ".bin"):
            state = torch.load(path, map_location="cpu", weights_only=True)
        else:
            do = "save them as .safetensors or .pt"
            raise InputError("bad-weights", f"weights of the kind {path.suffix!r} aren't read", where=str(path), do=do)
    except InputError:
        raise
    except Exception as error:  # a truncated file, or a pickle that builds more than tensors
        do = "save the state_dict alone, best with safetensors.torch.save_file"
        what = f"the weights can't be read without running code from the file: {first_line(error)}"
        if path.suffix == ".safetensors":
            what = f"the weights can't be read: {first_line(error)}"
        raise InputError("bad-weights", what, where=str(path), do=do) from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError("bad-weights", "the file holds no state_dict of tensors", where=str(path))
    _check_fit(module, state, path)
    module.load_state_dict(state)


def _check_fit(module: torch.nn.Module, state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Compare names and shapes before loading, so that the message can name the first misfit of each kind."""
    wanted = module.state_dict()
    missing, surplus = sorted(set(wanted) - set(state)), sorted(set(state) - set(wanted))
    reshaped = [k for k in wanted if k in state and wanted[k].shape != state[k].shape]
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing (first: {missing[0]})")
    if surplus:
        problems.append(f"{len(surplus)} unknown (first: {surplus[0]})")
    if reshaped:
        key = reshaped[0]
        problems.append(f"{len(reshaped)} of another shape (first: {key} is {list(state[key].shape)}, "
                        f"the module wants {list(wanted[key].shape)})")  # fmt: skip
    if problems:
        what = f"the weights don't fit the module: {'; '.join(problems)}"
        raise InputError("weights-do-not-fit", what, where=str(path), do="give the weights that belong to this module")
