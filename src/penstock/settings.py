"""Settings: frozen dataclasses whose fields are the flags, the TOML keys, the docs and a part of the cache key.

A value comes from the first of: flag, environment (``PENSTOCK_SECTION_FIELD``), file (``penstock.toml`` or
``[tool.penstock]`` in ``pyproject.toml``), default.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import math
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from penstock.errors import UsageError

T = TypeVar("T")

# section of the file → the dataclass that holds it; each lives with the stage that it is for
SECTIONS: dict[str, str] = {
    "check": "penstock.precheck:CheckSettings",
    "data": "penstock.data:DataSettings",
    "export": "penstock.stages.export:ExportSettings",
    "optimize": "penstock.stages.optimize:OptimizeSettings",
    "quantize": "penstock.stages.quantize:QuantizeSettings",
    "verify": "penstock.stages.verify:VerifySettings",
    "evaluate": "penstock.stages.evaluate:EvaluateSettings",
    "bench": "penstock.stages.bench:BenchSettings",
    "select": "penstock.stages.select:SelectSettings",
}
# sections of commands that a build has no part of
OWN: dict[str, str] = {"search": "penstock.stages.search:SearchSettings"}


def option(
    default: T, help: str, *, choices: tuple[str, ...] = (), flag: str = "", minimum: float | None = None,
    maximum: float | None = None,
) -> T:  # fmt: skip
    """Declare a settings field: its default, its help, its choices, another name for its flag, its least and most."""
    metadata = {"help": help, "choices": choices, "flag": flag, "minimum": minimum, "maximum": maximum}
    field: T = dataclasses.field(default=default, metadata=metadata)
    return field


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    """One settings field as the command line and the docs need it."""

    section: str
    name: str
    kind: type  # int, float, str or bool
    many: bool  # a tuple of ``kind``
    optional: bool
    default: object
    help: str
    choices: tuple[str, ...]
    flag: str
    minimum: float | None
    maximum: float | None = None


def section_class(section: str) -> type:
    """Import the dataclass of a section."""
    module, _, name = {**SECTIONS, **OWN}[section].partition(":")
    return cast(type, getattr(importlib.import_module(module), name))


def fields(section: str, cls: type | None = None) -> list[Field]:
    """List the fields of a section in order."""
    cls = cls or section_class(section)
    hints = typing.get_type_hints(cls)
    found = []
    for field in dataclasses.fields(cls):
        kind, many, optional = _kind(hints[field.name])
        meta = field.metadata
        flag = meta.get("flag") or "--" + field.name.replace("_", "-")
        found.append(
            Field(
                section, field.name, kind, many, optional, field.default,
                meta.get("help", ""), meta.get("choices", ()), flag, meta.get("minimum"), meta.get("maximum"),
            )
        )  # fmt: skip
    return found


def _kind(hint: Any) -> tuple[type, bool, bool]:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        inner = next(arg for arg in args if arg is not type(None))
        kind, many, _ = _kind(inner)
        return kind, many, True
    if origin is tuple:
        return cast(type, args[0]), True, False
    if origin is typing.Literal:
        return str, False, False
    return cast(type, hint), False, False


def find_file(start: Path) -> Path | None:
    """Find the settings file of a folder: ``penstock.toml``, else a ``pyproject.toml`` with ``[tool.penstock]``."""
    if (path := start / "penstock.toml").is_file():
        return path
    path = start / "pyproject.toml"
    if path.is_file() and "penstock" in _parse(path).get("tool", {}):
        return path
    return None


def read_file(path: Path) -> dict[str, Any]:
    """Read a settings file; unknown sections and keys are errors that offer the nearest name."""
    table = _parse(path)
    if path.name == "pyproject.toml":
        table = table.get("tool", {}).get("penstock", {})
    top = {"source", "weights", "seed", "backends", "tools", "inputs", "libraries", "input", "example"}
    for section, value in table.items():
        if section not in SECTIONS and section not in OWN and section not in top:
            raise unknown("section or key", section, [*SECTIONS, *sorted(top)], str(path))
        if section in SECTIONS or section in OWN:
            if not isinstance(value, dict):
                raise UsageError("bad-setting", f"[{section}] is a table of settings", where=str(path))
            known = [field.name for field in fields(section)]
            for key in value:
                if key.replace("-", "_") not in known:
                    raise unknown(f"setting in [{section}]", key, known, str(path))
    for key in ("input", "example"):  # they belong to the export, but one looks for them at the file's head
        if key in table:
            table["export"] = {key: table[key], **table.get("export", {})}
    return table


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError("no-such-file", "there is no such settings file", where=str(path)) from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError("bad-settings-file", f"the settings can't be read: {error}", where=str(path)) from error


def unknown(what: str, name: str, known: list[str], where: str) -> UsageError:
    """Build the error for an unknown name, with the nearest known one."""
    near = difflib.get_close_matches(name.replace("-", "_"), known, 1, 0.5)
    do = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(known)}"
    return UsageError("unknown-setting", f"there is no {what} named {name!r}", where=where, do=do)


def resolve(
    section: str, flags: Mapping[str, Any], environ: Mapping[str, str], file: Mapping[str, Any], cls: type[T]
) -> T:
    """Build a section's settings: flag > environment > file > default. ``flags`` holds only what was given."""
    values: dict[str, Any] = {}
    prefix, known = f"PENSTOCK_{section}_".upper(), [field.name for field in fields(section, cls)]
    for variable in environ:
        if variable.startswith(prefix) and (name := variable[len(prefix) :].lower()) not in known:
            raise unknown(f"setting in [{section}]", name, known, f"the environment variable {variable}")
    table = {key.replace("-", "_"): value for key, value in file.get(section, {}).items()}
    for field in fields(section, cls):
        variable = f"PENSTOCK_{section}_{field.name}".upper()
        if field.name in flags:
            values[field.name] = _coerce(field, flags[field.name], field.flag)
        elif variable in environ:
            values[field.name] = _coerce(field, environ[variable], variable)
        elif field.name in table:
            values[field.name] = _coerce(field, table[field.name], f"[{section}] {field.name}")
    return cls(**values)


def _coerce(field: Field, value: Any, where: str) -> Any:
    if value is None and field.optional:
        return None
    if field.many:
        if not isinstance(value, (str, list, tuple)):
            raise UsageError("bad-setting", f"{where} wants a list, got {value!r}", where=where)
        items = split(value) if isinstance(value, str) else list(value)
        return tuple(_scalar(field, item, where) for item in items if item != "")
    return _scalar(field, value, where)


def split(text: str) -> list[str]:
    """Cut a list at its commas, but not inside brackets: ``x:float32[batch,3]`` is one item."""
    return [part.strip() for part in re.split(r",(?![^\[]*\])", text) if part.strip()]


def _loose(kind: type, value: Any) -> bool:
    """Tell whether a value would only become ``kind`` by a conversion that hides a mistake."""
    if isinstance(value, bool):
        return True
    return (kind is str and not isinstance(value, str)) or (kind is int and isinstance(value, float))


def _scalar(field: Field, value: Any, where: str) -> Any:
    expected = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[field.kind]
    try:
        if field.kind is bool:
            if isinstance(value, str):
                value = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[value.lower()]
            if not isinstance(value, bool):
                raise ValueError
            result: Any = value
        elif _loose(field.kind, value):
            raise ValueError
        else:
            result = field.kind(value)
            if field.kind is float and not math.isfinite(result):
                raise ValueError
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise UsageError("bad-setting", f"{where} wants {expected}, got {value!r}", where=where) from error
    if field.choices and result not in field.choices:
        shown = ", ".join(choice or "(empty)" for choice in field.choices)
        raise UsageError("bad-setting", f"{where} is one of {shown}, not {result!r}", where=where)
    if field.minimum is not None and result < field.minimum:
        raise UsageError("bad-setting", f"{where} is at least {field.minimum:g}, not {result!r}", where=where)
    if field.maximum is not None and result > field.maximum:
        raise UsageError("bad-setting", f"{where} is at most {field.maximum:g}, not {result!r}", where=where)
    return result
