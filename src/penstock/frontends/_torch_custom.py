"""Translations that the user gives for operators of PyTorch. Imports torch: load it inside functions only."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import torch

from penstock import places, user_code
from penstock.errors import GateError, InputError, UsageError
from penstock.frontends._torch_choice import need_opset
from penstock.frontends._torch_lines import Home, of_stack
from penstock.frontends._torch_source import Loaded
from penstock.graph import first_line
from penstock.stages.export import ExportSettings

_NAME = re.compile(r"(?P<space>\w+)(?:::|\.)(?P<op>\w+)(?:\.(?P<overload>\w+))?")
_UNTRANSLATED = (
    re.compile(r"No ONNX function found for <OpOverload\(op='(?P<op>[\w.]+)', overload='(?P<overload>\w+)'\)>"),
    re.compile(r"(?:Exporting the operator '|unrecognized namespace )(?P<op>[\w:]+)"),
)
_NODE = re.compile(r"Error when translating node .*?target=torch\.ops\.(?P<op>[\w.]+)\]")
WRITE = "--translate mylib::op=module:function"


@dataclass(frozen=True, slots=True)
class Translation:
    """One operator of PyTorch, and the user's function that writes it in ONNX operators."""

    op: str  # as the user names it
    spec: str  # module:function or file.py:function
    overloads: tuple[Any, ...]  # torch's, all of them where the user names none
    function: Callable[..., Any]
    home: ModuleType


class NeedsOpsetError(InputError):
    """The exporter knows an operator from a later opset on."""

    def __init__(self, op: str, opset: int) -> None:
        what = f"the operator {op} has a translation to ONNX from opset {opset} on"
        super().__init__("no-translation", what, do=f"give --opset {opset}, or leave --opset out")
        self.op, self.opset = op, opset


def need_dynamo(settings: ExportSettings, exporter: str) -> None:
    """Raise ``UsageError`` for a flag that goes with dynamo only, where another exporter is used."""
    given = {"--translate": settings.translate, "--keep-function": settings.keep_function}
    for flag in [flag for flag, value in given.items() if value and exporter != "dynamo"]:
        what = f"{flag} goes with --exporter dynamo, not with {exporter}"
        raise UsageError("wrong-exporter", what, do="leave --exporter out")


def load(settings: ExportSettings, loaded: Loaded) -> tuple[Translation, ...]:
    """Import the functions and find the operators of ``--translate``. Raises ``InputError`` or ``UsageError``."""
    found: dict[Any, Translation] = {}
    for text in settings.translate:
        made = _translation(text, loaded)
        for overload in made.overloads:
            if overload in found:
                what = f"{made.op!r} is translated twice: by {found[overload].spec} and by {made.spec}"
                raise UsageError("bad-translation", what, do="leave one of the two out")
            found[overload] = made
    return tuple({id(made): made for made in found.values()}.values())


def _translation(text: str, loaded: Loaded) -> Translation:
    op, equals, spec = text.partition("=")
    match = _NAME.fullmatch(op.strip())
    if match is None or not equals:
        what = f"{text!r} names no operator and a function that translates it"
        raise UsageError("bad-translation", what, do=f"write it as {WRITE}")
    what = f"the translation of {op.strip()}"
    # the function first: its file may be what registers the operator
    home = _source(spec, loaded) or user_code.module(spec.strip(), what)
    function = user_code.member(home, spec.strip(), what)
    if _without_outputs(function):
        told = f"{what} doesn't say what it returns, so that the exporter takes it for a function without outputs"
        do = "annotate it, for example (x: FLOAT[...]) -> FLOAT[...] with onnxscript's FLOAT; or take @script() away"
        raise InputError("bad-translation", told, where=spec.strip(), do=do)
    return Translation(op.strip(), spec.strip(), _overloads(match), function, home)


def _without_outputs(function: Callable[..., Any]) -> bool:
    """Tell whether a compiled function of onnxscript lacks the annotation from which torch counts its outputs."""
    import onnxscript

    if not isinstance(function, (onnxscript.OnnxFunction, onnxscript.TracedOnnxFunction)):
        return False
    return "return" not in getattr(_inner(function), "__annotations__", {})


def _source(spec: str, loaded: Loaded) -> ModuleType | None:
    """Return the module's own file where the translation lies in it: importing it again would register twice."""
    import sys

    home = sys.modules.get(type(loaded.module).__module__)
    path = Path(spec.rpartition(":")[0]).expanduser()
    same = home is not None and getattr(home, "__file__", None) and path.suffix == ".py"
    return home if same and Path(str(home.__file__)).resolve() == path.resolve() else None  # type: ignore[union-attr]  # same


def _overloads(match: re.Match[str]) -> tuple[Any, ...]:
    space, op, overload = match["space"], match["op"], match["overload"]
    packet = getattr(getattr(torch.ops, space), op, None)
    if packet is None:
        # a registry of torch's own; the names are read, nothing else
        known = {name.partition(".")[0] for name in torch._C._dispatch_get_all_op_names()}
        near = difflib.get_close_matches(f"{space}::{op}", sorted(known), 1, 0.7)
        do = "import what registers it in the module's file or in the translation's"
        do = f"did you mean {near[0]!r}?" if near else do
        raise InputError("no-such-operator", f"PyTorch knows no operator {space}::{op}", where=match[0], do=do)
    names = packet.overloads()
    if overload is None:
        return tuple(getattr(packet, name) for name in names)
    if overload not in names:
        what = f"the operator {space}::{op} has no overload {overload!r}"
        raise InputError("no-such-operator", what, where=match[0], do=f"it has: {', '.join(names)}")
    return (getattr(packet, overload),)


def table(translations: tuple[Translation, ...]) -> dict[Callable[..., Any], Callable[..., Any]] | None:
    """Return the translations as dynamo's exporter wants them."""
    return {overload: made.function for made in translations for overload in made.overloads} or None


def need_used(translations: tuple[Translation, ...], program: torch.export.ExportedProgram) -> None:
    """Raise ``InputError`` for a translation of an operator that the model doesn't have."""
    targets = {
        str(node.target)  # by name: an operator that is registered anew, as at a second import, is another object
        for part in program.graph_module.modules()
        if isinstance(part, torch.fx.GraphModule)
        for node in part.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload)
    }
    for made in translations:
        if not targets & {str(overload) for overload in made.overloads}:
            named = sorted({target.rpartition(".")[0].replace(".", "::", 1) for target in targets})
            shown = ", ".join(named[:12]) + (", …" if len(named) > 12 else "")
            what = f"the translation of {made.op} was not used: the model has no such operator"
            do = f"leave it out, or name the operator that the model has: {shown}"
            raise InputError("translation-not-used", what, where=made.spec, do=do)


def reads(translations: tuple[Translation, ...]) -> dict[str, str]:
    """Digest the files that the translations came from, with what those import."""
    return user_code.files([made.home for made in translations])


@contextlib.contextmanager
def told(
    translations: tuple[Translation, ...], recapture: Callable[[], torch.export.ExportedProgram], home: Home
) -> Iterator[None]:
    """Say of what the exporter raises which operator lacks a translation, or whose translation failed.

    ``recapture`` captures the module again, which shows where in it the operator stands.
    """
    try:
        yield
    except Exception as error:  # exporters raise dozens of types
        links = _chain(error)
        for made in translations:
            if (found := _failed(made, links)) is not None:
                raise found from error
        for link in links:
            opset, op = need_opset(link)
            if opset:
                raise NeedsOpsetError(op, opset) from error
        for link in links:
            if (found := _untranslated(link)) is not None:
                found.where = _place(found.what, recapture, home)
                raise found from error
        raise


def _place(what: str, recapture: Callable[[], torch.export.ExportedProgram], home: Home) -> str:
    """Return the line that calls the operator which a message names, "" where torch can't capture the module."""
    try:
        program = recapture()
    except Exception:  # a module that only tracing takes
        return ""
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            name = str(node.target).rpartition(".")[0].replace(".", "::", 1)
            if name and f" {name} " in what and (place := of_stack(node.meta.get("stack_trace") or "", home)):
                return home.text(place)
    return ""


def _chain(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in found:
        found.append(current)
        current = current.__cause__ or current.__context__
    return found


def _failed(made: Translation, links: list[BaseException]) -> InputError | None:
    """Tell of the innermost error that passed through the translation, with the line in its file."""
    code = _code(made.function)
    where, told = "", ""
    for link in links:
        frame, inside = link.__traceback__, False
        while frame is not None:
            inside = inside or frame.tb_frame.f_code is code
            if inside and code is not None and frame.tb_frame.f_code.co_filename == code.co_filename:
                where = places.text(places.place(code.co_filename, frame.tb_lineno)) or made.spec
                told = f"{type(link).__name__}: {first_line(link)}"
            frame = frame.tb_next
    if not where and any(_translating(link) in {str(overload) for overload in made.overloads} for link in links):
        where, told = made.spec, f"{type(links[-1]).__name__}: {first_line(links[-1])}"
    if not where:
        return None
    what = f"the translation of {made.op} failed: {told}"
    return InputError("translation-failed", what, where=where, do="-v shows the whole report of the exporter")


def _translating(link: BaseException) -> str:
    match = _NODE.search(str(link))
    return match["op"] if match else ""


def _code(function: Callable[..., Any]) -> CodeType | None:
    found = getattr(_inner(function), "__code__", None)
    return found if isinstance(found, CodeType) else None


def _inner(function: Callable[..., Any]) -> object:
    """Return the user's own function, where onnxscript wraps it."""
    return getattr(function, "function", None) or getattr(function, "func", None) or function


def _untranslated(link: BaseException) -> InputError | None:
    for pattern in _UNTRANSLATED:
        if match := pattern.search(str(link)):
            name = match["op"] if "::" in match["op"] else match["op"].replace(".", "::", 1)
            what = f"the operator {name} has no translation to ONNX"
            do = f"give one, a function of onnxscript operators: --translate {name}=module:function"
            if pattern is not _UNTRANSLATED[0]:
                do += " (with --exporter dynamo)"
            return InputError("no-translation", what, do=f"{do}; see docs/custom-operators.md")
    return None


@contextlib.contextmanager
def suspected(translations: tuple[Translation, ...]) -> Iterator[None]:
    """Where the export differs from the module, name the translations: they are the likely cause."""
    try:
        yield
    except GateError as error:
        if not translations or error.id != "export-differs":
            raise
        named = ", ".join(f"{made.op} ({made.spec})" for made in translations)
        do = f"check what was translated by hand: {named}"
        raise GateError(error.id, error.what, where=error.where, do=do) from error
