"""A first settings file for a model: what can be found out of it and of the folder, every key with its help."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock import settings
from penstock.errors import InputError, PenstockError
from penstock.settings import Field

DATA = ("cifar-10-batches-bin",)
LATENCY, ACCURACY, SIZE = "latency", "accuracy", "size"


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
        offered = modules(Path(head))
        notes = (
            [] if name in offered else [f"{head} seems to have no {name}; it has: {', '.join(offered) or 'no module'}"]
        )
        return Found(source, tuple(notes), nearby(folder))
    if source.endswith(".py"):
        offered = modules(Path(source))
        if not offered:
            what = "the file defines no class that derives from torch.nn.Module"
            raise InputError(
                "no-such-name", what, where=source, do="write path/to/file.py:function that returns a module"
            )
        notes = [f"other modules of the file: {', '.join(offered[:-1])}"] if len(offered) > 1 else []
        return Found(f"{source}:{offered[-1]}", tuple(notes), nearby(folder))
    if source.endswith(".onnx"):
        return Found(source, _of_onnx(Path(source)), nearby(folder))
    return Found(source, (), nearby(folder))


def modules(path: Path) -> list[str]:
    """List the classes of a file that look like modules of PyTorch, in order; the file isn't run."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError("no-such-file", "there is no such file", where=str(path), do="check the path") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError("not-python", f"the file can't be read as Python: {error}", where=str(path)) from error
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    found: list[str] = []
    for node in classes:
        bases = [ast.unparse(base) for base in node.bases]
        if any(base.split(".")[-1] == "Module" or base in found for base in bases):
            found.append(node.name)
    return found


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
    return next((name for name in DATA if (folder / name).is_dir()), "")


def text(found: Found, answers: Mapping[str, Mapping[str, Any]]) -> str:
    """Write the settings file: what was answered is set, all else stands there as a comment with its default."""
    lines = ["# Settings of a Penstock build; `penstock build` reads them from the folder it runs in.", ""]
    lines += [f"# {note}" for note in found.notes] + ([""] if found.notes else [])
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


def readable(path: Path) -> str:
    """Return "" when a written file can be read back, else why not: a guard for odd paths and names."""
    try:
        settings.read_file(path)
    except PenstockError as error:
        return error.what
    return ""
