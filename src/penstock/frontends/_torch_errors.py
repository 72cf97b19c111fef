"""What exporters raise, told as one message with the line of the user's code and the cure. Imports torch."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.fx.experimental import symbolic_shapes
from torch.jit._trace import TracerWarning

from penstock import graph
from penstock.errors import GateError, InputError, PenstockError, UsageError
from penstock.frontends._torch_lines import Home, here, of_error, of_stack

BRANCH = "write the branch with torch.cond or torch.where, or script the function that has it with torch.jit.script"
SIZE = "take sizes from x.shape, without int(), len() or numpy; a reshape takes -1 for an axis that moves"
TENSOR = (
    "keep it in a tensor, without int(), float() or .item(); a loop over it: script its function with torch.jit.script"
)
# what a tracer's warning says → what was lost, and the cure
NUMBER = "a number that depends on the input: the trace keeps the example's"
NUMPY = "what numpy computes: the trace keeps the example's result"
LOST = (
    ("Python boolean", "a branch: the trace keeps the side that the example takes", BRANCH),
    ("Python integer", NUMBER, TENSOR),
    ("Python index", NUMBER, TENSOR),
    ("Python float", NUMBER, TENSOR),
    ("Python list", "the values of a tensor: the trace keeps the example's", TENSOR),
    ("NumPy array", NUMPY, "compute it with torch"),
    ("from_numpy", NUMPY, "compute it with torch"),
    ("len", "the length of a tensor: the trace keeps the example's", "write x.shape[0] in the place of len(x)"),
    ("Iterating over a tensor", "the number of steps of a loop: the trace keeps the example's",
     "script the function that has the loop with torch.jit.script, or write it with while_loop"),
)  # fmt: skip
SPECIALIZED = re.compile(r"marked (?P<dim>\w+) as dynamic but your code specialized it to be a constant \((?P<n>\d+)\)")
RELATED = re.compile(r"Not all values of (?P<dim>\w+) .*? satisfy the generated guard (?P<guard>.*)")


@contextlib.contextmanager
def explained(exporter: str, home: Home, recapture: Callable[[], Any]) -> Iterator[None]:
    """Turn what an exporter raises into one message; a tracer's warning is an error here.

    ``recapture`` captures the module again with all sizes left to torch, which shows the node that holds one fast.
    """
    with _watching(home) as fixed:
        try:
            yield
        except PenstockError:
            raise
        except Exception as error:  # exporters raise dozens of types
            raise _told(exporter, error, home, fixed, recapture) from error


@contextlib.contextmanager
def _watching(home: Home) -> Iterator[list[str]]:
    """Note the user's line at which dynamo takes a size for a constant; it doesn't tell by itself."""
    places: list[str] = []
    name = "_set_replacement"
    plain: Any = getattr(symbolic_shapes.ShapeEnv, name, None)
    if plain is None:  # another version of torch: the message goes without the line
        yield places
        return

    def noting(env: Any, symbol: Any, value: Any, *rest: Any, **named: Any) -> Any:
        if getattr(value, "is_number", False) and (place := here(home)):
            places.append(place)
        return plain(env, symbol, value, *rest, **named)

    setattr(symbolic_shapes.ShapeEnv, name, noting)
    try:
        yield places
    finally:
        setattr(symbolic_shapes.ShapeEnv, name, plain)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all that led to it, the outermost first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _told(exporter: str, error: Exception, home: Home, fixed: list[str], recapture: Callable[[], Any]) -> PenstockError:
    links = list(_chain(error))
    for link in links:
        if match := SPECIALIZED.search(str(link)):
            return _specialized(match["dim"], match["n"], fixed, home, recapture)
        if match := RELATED.search(str(link)):
            what = f"the dimension {match['dim']!r} isn't free: the module holds only where {match['guard']}"
            where = home.text(fixed[0]) if fixed else ""
            return GateError("baked-in-size", what, where=where, do=f"{SIZE}; or give it a fixed size in --input")
    for link in links:
        if "data-dependent" in str(link).lower() or "DataDependent" in type(link).__name__:
            return _data_dependent(link, home)
    what = f"the {exporter} exporter can't export this module: {graph.first_line(links[-1])}"
    other = "torchscript" if exporter == "dynamo" else "dynamo"
    where = next((home.text(place) for link in links if (place := of_error(link, home))), "")
    return InputError("export-failed", what, where=where, do=f"try --exporter {other}; -v shows the whole report")


@contextlib.contextmanager
def warnings_are_errors(home: Home) -> Iterator[None]:
    """Raise ``InputError`` for the first warning of the tracer's, when the trace has ended, well or not.

    Raised at once, they would come out of C++ code that goes on, and some would be lost.
    """
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", TracerWarning)
        try:
            yield
        except Exception as error:
            if told := _lost(seen, home):
                raise told from error
            raise
    if told := _lost(seen, home):
        raise told


def _lost(seen: list[warnings.WarningMessage], home: Home) -> InputError | None:
    told = [(w, home.place(w.filename, w.lineno)) for w in seen if issubclass(w.category, TracerWarning)]
    if not told:
        return None
    # a warning in torch's own code, which has no line of the user's, says less
    warning, place = next((one for one in told if one[1]), told[0])
    where = home.text(place) if place else ""
    text = str(warning.message)
    lost, do = next(((lost, do) for mark, lost, do in LOST if mark in text), (text.split(".")[0], f"{BRANCH}; {SIZE}"))
    if lost == NUMBER and any(word in where for word in ("shape", "size(")):
        do = SIZE
    return InputError("trace-lost-something", f"tracing would lose {lost}", where=where, do=do)


def _specialized(dim: str, size: str, fixed: list[str], home: Home, recapture: Callable[[], Any]) -> GateError:
    node = _holder(int(size), fixed, home, recapture)
    what = f"the size of {dim!r} in the example, {size}, is baked {f'into {node}' if node else 'in'}"
    do = SIZE if size != "1" else "give an example of 2 or more: a size of 1 is taken for a constant"
    return GateError("baked-in-size", what, where=home.text(fixed[0]) if fixed else "", do=f"{do}; or --static")


def _holder(size: int, fixed: list[str], home: Home, recapture: Callable[[], Any]) -> str:
    """Name the node that takes the size as a number: one with it among its arguments, or else one of the same line."""
    try:
        nodes = [node for node in recapture().graph.nodes if node.op == "call_function"]
    except Exception:  # a module that torch can't capture at all has told so before
        return ""
    holds = [node for node in nodes if _mentions(node.args, size)]
    lines = [node for node in nodes if of_stack(node.meta.get("stack_trace") or "", home) in fixed]
    found = next(iter([*(node for node in holds if node in lines), *holds, *lines]), None)
    return f"the node {found.name!r} ({found.target})" if found is not None else ""


def _mentions(arguments: Any, size: int) -> bool:
    """Tell whether a list of sizes among the arguments holds this one; single numbers are mostly axes."""
    lists = [item for item in arguments if isinstance(item, (list, tuple))]
    return any(type(item) is int and item == size for found in lists for item in found)


def _data_dependent(error: BaseException, home: Home) -> InputError:
    place = of_stack(str(error), home) or of_error(error, home)
    what = "a branch, a loop or a size depends on the values of the input, and the export would lose it"
    do = "write a branch with torch.cond or torch.where and a loop with while_loop, or script it with torch.jit.script"
    return InputError("data-dependent", what, where=home.text(place) if place else "", do=do)


def need_exporter(loaded_program: bool, scripted: bool, exporter: str) -> str:
    """Settle on an exporter: what was asked for, or what the source needs. Raises ``UsageError`` where they differ."""
    if loaded_program and exporter == "torchscript":
        raise UsageError("wrong-exporter", "an exported program goes through dynamo", do="leave --exporter out")
    if scripted and exporter == "dynamo":
        what = "the source is scripted with torch.jit.script, which dynamo can't export"
        raise UsageError("wrong-exporter", what, do="leave --exporter out, or give --exporter torchscript")
    if exporter == "auto":
        return "torchscript" if scripted else "dynamo"
    return exporter


def is_scripted(module: torch.nn.Module) -> bool:
    """Tell whether a module or a function that its forward names is scripted: such control flow needs TorchScript."""
    if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        return True
    for part in module.modules():
        forward = getattr(type(part), "forward", None)
        code, names = getattr(forward, "__code__", None), getattr(forward, "__globals__", {})
        if code is not None and any(isinstance(names.get(name), torch.jit.ScriptFunction) for name in code.co_names):
            return True
    return False
