"""A first settings file for a model: what can be found out of it and of the folder, every key with its help."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock import datasets, python_outline, settings, store
from penstock.errors import InputError, MissingError, PenstockError
from penstock.frontends import Source
from penstock.python_outline import PythonOutline
from penstock.settings import Field
from penstock.stages import export

DATA = ("cifar-10-batches-bin",)
LATENCY, ACCURACY, SIZE = "latency", "accuracy", "size"
DROP = 1.0  # points of accuracy that may be lost, where there is data to measure them on


@dataclass(frozen=True, slots=True)
class Found:
    """What was found out: the source, notes for the file's head, and data that lies nearby."""

    source: str
    notes: tuple[str, ...]
    data: str


def look(source: str, folder: Path) -> Found:
    """Look at a source without running anything of it. Raises ``InputError`` for a file that is absent or refused."""
    head, colon, name = source.rpartition(":")
    if colon and head.endswith(".py"):
        outline = python_outline.read(Path(head))
        offered = ", ".join(outline.modules) or "no module"
        notes = [] if name in outline.names else [f"{head} seems to have no {name}; it has: {offered}"]
        return Found(source, (*notes, *_inputs(outline, name)), nearby(folder))
    if source.endswith(".py"):
        outline = python_outline.read(Path(source))
        modules = outline.modules
        if not modules:
            what = "the file defines no class that derives from torch.nn.Module"
            raise InputError(
                "no-such-name", what, where=source, do="write path/to/file.py:function that returns a module"
            )
        notes = [f"other modules of the file: {', '.join(modules[:-1])}"] if len(modules) > 1 else []
        return Found(f"{source}:{modules[-1]}", (*notes, *_inputs(outline, modules[-1])), nearby(folder))
    if source.endswith(".onnx"):
        return Found(source, _of_onnx(Path(source)), nearby(folder))
    held = Source(source)
    _, frontend = export.frontend(held)
    need = getattr(frontend, "need", None)
    try:
        if need is not None:
            need(held)
    except MissingError as error:  # the file may be meant for another machine
        return Found(source, (f"{error.what}: {error.do}",), nearby(folder))
    return Found(source, (), nearby(folder))


def _inputs(outline: PythonOutline, name: str) -> list[str]:
    """Say what is to be added where nothing tells what shapes a module takes."""
    if not outline.has_no_example(name):
        return []
    return [f"nothing says what shapes {name} takes: set [export] input, or [data] data, before building"]


def check_data(spec: str) -> None:
    """Raise ``InputError`` where no data source reads ``spec``."""
    if spec:
        datasets.source(spec)


def _of_onnx(path: Path) -> tuple[str, ...]:
    from penstock import graph, precheck

    precheck.check(path)
    model = graph.load(path)
    signature = graph.signature(model)
    shown = [f"input   {spec.text()}" for spec in signature.inputs]
    shown += [f"output  {spec.text()}" for spec in signature.outputs]
    return (*shown, f"opset {model.opset_imports.get('', '?')}, {graph.precision(model)}")


def nearby(folder: Path) -> str:
    """Return a data set that lies in the folder, or an empty text."""
    for name in DATA:
        with contextlib.suppress(InputError):
            datasets.source(str(folder / name))
            return name
    return ""


def text(found: Found, answers: Mapping[str, Mapping[str, Any]]) -> str:
    """Write the settings file: what was answered is set, all else stands there as a comment with its default."""
    lines = ["# Settings of a Penstock build; `penstock build` reads them from the folder it runs in.", ""]
    lines += [f"# {plain(note)}" for note in found.notes] + ([""] if found.notes else [])
    lines += [f"source = {_value(found.source)}", '# weights = "net.safetensors"', '# backends = ["onnxruntime"]']
    lines += ["# seed = 0"]
    for section in settings.SECTIONS:
        doc = (settings.section_class(section).__doc__ or "").strip().splitlines()
        lines += ["", f"[{section}]" + (f"  # {doc[0]}" if doc else "")]
        for field in settings.fields(section):
            lines += [
                f"# {field.help}" + (f"; one of {', '.join(c for c in field.choices if c)}" if field.choices else "")
            ]
            chosen = answers.get(section, {})
            if field.name in chosen:
                lines.append(f"{field.name} = {_value(chosen[field.name])}")
            else:
                lines.append(f"# {field.name} = {_value(_example(field))}")
    return "\n".join(lines) + "\n"


def plain(text: str) -> str:
    """Return a text, which may quote a model file, on one line without control characters."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def _example(field: Field) -> object:
    if field.default is None:
        least = field.minimum or 1
        return {int: int(least), float: float(least), bool: True, str: ""}[field.kind]
    return list(field.default) if isinstance(field.default, tuple) else field.default


def _value(value: object) -> str:
    import tomli_w

    return tomli_w.dumps({"v": value}, multiline_strings=False).removeprefix("v = ").strip().replace("\n", " ")


def answers_for(data: str, first: str, drop: float | None) -> dict[str, dict[str, Any]]:
    """Return the settings that the three answers stand for."""
    found: dict[str, dict[str, Any]] = {}
    if data:
        found["data"] = {"data": data}
    found["select"] = {"objective": first}
    if drop is not None and data:
        found["select"]["max_drop"] = drop
    return found


def write(path: Path, found: Found, answers: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the settings file, after it was read back and gave what was answered.

    Raises ``PenstockError`` where it doesn't: a source or a name that no settings file can hold.
    """
    content = text(found, answers)
    with store.scratch() as work:
        store.write_bytes(work / path.name, content.encode())
        table = settings.read_file(work / path.name)
    if table != {"source": found.source, **{name: {} for name in settings.SECTIONS}, **answers}:
        what = "the settings file would say something else than was meant"
        raise PenstockError("unwritable-settings", what, where=found.source, do="rename the file, or write it by hand")
    store.write_bytes(path, content.encode())
