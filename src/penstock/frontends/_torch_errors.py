"""What exporters raise, told as one message with the line of the user's code and the cure. Imports torch."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.fx.experimental import symbolic_shapes
from torch.onnx._constants import ONNX_TORCHSCRIPT_EXPORTER_MAX_OPSET

import penstock
from penstock import graph
from penstock.errors import GateError, InputError, PenstockError
from penstock.frontends._torch_cures import CHECK, CONTROL, OTHER, SIZE, for_size, is_check, is_slice, makes_number
from penstock.frontends._torch_lines import Home, layer, of_error, of_stack, stack
from penstock.frontends._torch_module import parameters
from penstock.frontends._torch_plan import Plan

SPECIALIZED = re.compile(r"marked (?P<dim>\w+) as dynamic but your code specialized it to be a constant \((?P<n>\d+)\)")
RELATED = re.compile(r"Not all values of (?P<dim>\w+) .*? satisfy the generated guard (?P<guard>.*)")
_SIZE_OF = re.compile(r"L\['(?P<name>\w+)'\](?:\[(?P<index>\d+)\])?\.size\(\)\[(?P<axis>\d+)\]")
_OPSET = re.compile(r"Unsupported onnx_opset_version: (?P<asked>\d+)")
_SLICE = "(aten.slice.Tensor)"
_OWN = str(Path(penstock.__file__).parent)
_ADDRESS = re.compile(r" (?:object )?at 0x[0-9a-f]+")


class InTorchError(GateError):
    """A size was baked in by a layer of torch's own: another exporter may write that layer as one operator."""


class InUsersCodeError(InTorchError):
    """A size was baked in where the user only computes: dynamo settles more there than the operators need."""


class InSliceError(InTorchError):
    """A size was settled where the user cuts something out: torchscript writes the bounds of a slice as they are."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a message may need: the exporter, the inputs, the user's code, and the module for a second look."""

    exporter: str
    module: torch.nn.Module
    plan: Plan
    home: Home
    recapture: Callable[
        [], Any
    ]  # captures again with all sizes left to torch, which shows the node that holds one fast


@dataclass(frozen=True, slots=True)
class _Place:
    """A line of the user's at which dynamo settled something about a size."""

    line: str
    layer: str  # the file of a layer of torch's that did so, called from that line
    index: bool  # the size was used as an index or as a number of steps
    guard: str = ""  # what dynamo settled there, in its own symbols


@dataclass(frozen=True, slots=True)
class _Seen:
    fixed: list[_Place] = field(default_factory=list)
    guarded: list[_Place] = field(default_factory=list)


@contextlib.contextmanager
def explained(told: Told) -> Iterator[None]:
    """Turn what an exporter raises into one message."""
    seen = _Seen()
    with _watching(seen, told.home):
        try:
            yield
        except PenstockError:
            raise
        except Exception as error:  # exporters raise dozens of types
            raise _message(error, told, seen) from error


@contextlib.contextmanager
def _watching(seen: _Seen, home: Home) -> Iterator[None]:
    """Note the user's lines at which dynamo settles a size; it doesn't tell by itself.

    Where another version of torch has other methods, the messages go without the line.
    """

    def fixing(_: Any, __: Any, value: Any = None, *___: Any) -> None:
        if getattr(value, "is_number", False):
            seen.fixed.extend(_place(home))

    def guarding(_: Any, __: Any = None, guard: Any = None, *___: Any) -> None:
        seen.guarded.extend(replace(place, guard=str(guard)) for place in _place(home))

    with _before("_set_replacement", fixing), _before("_log_guard", guarding):
        yield


@contextlib.contextmanager
def _before(method: str, note: Callable[..., None]) -> Iterator[None]:
    plain: Any = getattr(symbolic_shapes.ShapeEnv, method, None)
    if plain is None:
        yield
        return

    def noting(*rest: Any, **named: Any) -> Any:
        note(*rest)
        return plain(*rest, **named)

    setattr(symbolic_shapes.ShapeEnv, method, noting)
    try:
        yield
    finally:
        setattr(symbolic_shapes.ShapeEnv, method, plain)


def _place(home: Home) -> list[_Place]:
    frames = stack(sys._getframe(1))
    index = within = False
    for file, line, name in frames:
        if found := home.place(file, line):
            return [_Place(found, layer(((file, line) for file, line, _ in frames), home), index)]
        if within and file.startswith(_OWN):  # beyond is whoever asked for the export
            return []
        index, within = index or name == "__index__", within or not file.startswith(_OWN)
    return []


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all that led to it, the outermost first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _message(error: Exception, told: Told, seen: _Seen) -> PenstockError:
    links = list(_chain(error))
    for link in links:
        if match := SPECIALIZED.search(str(link)):
            places = seen.fixed or seen.guarded
            if not any(place.line for place in places) and (line := of_stack(str(link), told.home)):
                places = [_Place(line, "", False)]  # strict mode runs the user's code itself, and tells the line alone
            return _specialized(match["dim"], match["n"], places, told)
        if match := RELATED.search(str(link)):
            return _related(match["dim"], match["guard"], seen.guarded or seen.fixed, told)
    for link in links:
        if "data-dependent" in str(link).lower() or "DataDependent" in type(link).__name__:
            return _data_dependent(link, told.home)
    if match := _OPSET.search(str(links[-1])):
        do = f"give one of {ONNX_TORCHSCRIPT_EXPORTER_MAX_OPSET} or lower, or leave --opset out"
        return InputError("opset-not-honoured", f"the {told.exporter} exporter knows no opset {match['asked']}", do=do)
    what = f"the {told.exporter} exporter can't export this module: {_ADDRESS.sub('', graph.first_line(links[-1]))}"
    other = "torchscript" if told.exporter == "dynamo" else "dynamo"
    where = next((told.home.text(place) for link in links if (place := of_error(link, told.home))), "")
    return InputError("export-failed", what, where=where, do=f"try --exporter {other}; -v shows the whole report")


def _specialized(dim: str, size: str, places: list[_Place], told: Told) -> GateError:
    place = places[0] if places else _Place("", "", False)
    where = told.home.text(place.line) if place.line else ""
    what = f"the size of {dim!r} in the example, {size}, is baked in"
    if place.layer:
        return _in_torch(what, place.layer, where)
    node, stored = _holder(int(size), [one.line for one in places], told)
    what = f"the size of {dim!r} in the example, {size}, is baked {f'into {node}' if node else 'in'}"
    do = for_size(where, number=place.index)
    if stored:
        what = f"{what}, by {stored}, which has that size"
        do = "store it with a size of 1, which is broadcast, or make it in forward with x.shape"
    if size == "1":
        do = "give an example of 2 or more: a size of 1 is taken for a constant"
    return _computed(do, node, what, where, "--static")


def _related(dim: str, guard: str, places: list[_Place], told: Told) -> GateError:
    met = [one for one in places if one.guard and _bare(one.guard) in _bare(guard)]
    place = next(reversed(met or places), _Place("", "", False))
    where = told.home.text(place.line) if place.line else ""
    what = f"the dimension {dim!r} isn't free: the module holds only where {_readable(guard, told)}"
    if place.layer:
        return _in_torch(what, place.layer, where)
    node, _ = _holder(None, [place.line], told)
    if node:
        what = f"{what} (at {node})"
    if (do := for_size(where)) == SIZE and "<=" in guard:
        do = OTHER  # no size was taken: some are too small, or too large, for what is done there
    return _computed(do, node, what, where, "give it a fixed size in --input")


def _computed(do: str, node: str, what: str, where: str, last: str) -> GateError:
    """Tell of a size that is settled on a line: of one that decides nothing, the other exporter may be right."""
    if do not in (SIZE, OTHER):
        return GateError("baked-in-size", what, where=where, do=f"{do}; or {last}")
    if is_slice(where) or (_SLICE in node and not makes_number(where)):
        return InSliceError("baked-in-size", what, where=where, do=f"{OTHER}; or {last}")
    do = do if do == OTHER else f"{do}; or {OTHER}"
    return InUsersCodeError("baked-in-size", what, where=where, do=f"{do}; or {last}")


def _bare(guard: str) -> str:
    """Write a guard without the names of sizes, which differ between torch's messages and its own table."""
    return re.sub(r"[\s()]", "", re.sub(r"\bs\d+\b", "SIZE", _SIZE_OF.sub("SIZE", guard)))


def _in_torch(what: str, layer: str, where: str) -> InTorchError:
    do = "try --exporter torchscript, which may write this layer as one operator; or give the axis a fixed size"
    return InTorchError("baked-in-size", f"{what}, by torch's own code ({layer})", where=where, do=do)


def _readable(guard: str, told: Told) -> str:
    """Write dimensions by their names, and leave limits out that are none."""
    taken = parameters(told.module)

    def named(match: re.Match[str]) -> str:
        position = taken.index(match["name"]) if match["name"] in taken else -1
        position = int(match["index"]) if match["index"] else position
        if not 0 <= position < len(told.plan.names):
            return match[0]
        name, axis = told.plan.names[position], int(match["axis"])
        return told.plan.dynamic.get(name, {}).get(axis, f"{name}.shape[{axis}]")

    parts = [part for part in guard.strip().rstrip(".").split(" and ") if "Infinity" not in part]
    return _SIZE_OF.sub(named, " and ".join(parts))


def _holder(size: int | None, lines: list[str], told: Told) -> tuple[str, str]:
    """Name the node that takes the size as a number, on these lines if there is one; else the first on the lines.

    With it comes the stored tensor that brings the size there, if the node takes one and no number.
    """
    try:
        program = told.recapture()
    except Exception:  # a module that torch can't capture at all has told so before
        return "", ""
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    holds = [node for node in nodes if size is not None and _takes(node, size)]
    its = {node: of_stack(node.meta.get("stack_trace") or "", told.home) for node in nodes}
    there = [node for node in nodes if its[node] in lines]
    after = [node for node in nodes if any(_below(its[node], line) for line in lines)]  # what uses what is made there
    found = next(iter([*(node for node in holds if node in there), *holds, *there, *after]), None)
    if found is None:
        return "", ""
    target = found.target if isinstance(found.target, torch._ops.OpOverload) else getattr(found.target, "__name__", "")
    stored = _stored(program, found, size) if size is not None and found not in holds else ""
    return f"the node {found.name!r} ({target})", stored


def _below(place: str, line: str) -> bool:
    """Tell whether a place stands below a line of the same file."""
    (file, _, number), (other, _, start) = place.rpartition(":"), line.rpartition(":")
    return bool(file) and file == other and int(number) > int(start)


def _stored(program: Any, node: Any, size: int) -> str:
    """Name the buffer or parameter of this size in some axis that a node takes, "" where it takes none."""
    signature = program.graph_signature
    kinds = (("the buffer", signature.inputs_to_buffers), ("the parameter", signature.inputs_to_parameters))
    for argument in node.all_input_nodes:
        value = argument.meta.get("val")
        for kind, names in kinds:
            if argument.name in names and size in tuple(getattr(value, "shape", ())):
                return f"{kind} {names[argument.name]!r}"
    return ""


def _takes(node: Any, size: int) -> bool:
    """Tell whether an argument that isn't an axis, as the operator's schema names them, is this size."""
    schema = getattr(node.target, "_schema", None)
    for argument, value in zip(schema.arguments if schema is not None else (), node.args, strict=False):
        items = value if isinstance(value, (list, tuple)) else [value]
        if "dim" not in argument.name and any(type(item) is int and item == size for item in items):
            return True
    return False


def _data_dependent(error: BaseException, home: Home) -> InputError:
    place = of_stack(str(error), home) or of_error(error, home)
    what = "a branch, a loop or a size depends on the values of the input, and the export would lose it"
    where = home.text(place) if place else ""
    return InputError("data-dependent", what, where=where, do=CHECK if is_check(where) else CONTROL)
