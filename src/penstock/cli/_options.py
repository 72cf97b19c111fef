"""Click options made from settings dataclasses, and the options that every command has."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from penstock import settings
from penstock.errors import UsageError
from penstock.settings import Field

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from penstock.registry import Kind

F = TypeVar("F", bound=Callable[..., Any])


def sections(
    *names: str, short: Mapping[str, str] | None = None, hidden: Mapping[str, Collection[str]] | None = None
) -> Callable[[F], F]:
    """Add the options of settings sections; values arrive as ``section__field``, ``None`` where not given.

    ``short`` gives options, by that name, another flag beside their own. ``hidden`` are fields by section that a
    command doesn't read: they aren't offered, and arrive where they are given all the same, to be refused.
    """

    def decorate(function: F) -> F:
        for name in reversed(names):
            for field in reversed(settings.fields(name)):
                other = (short or {}).get(f"{field.section}__{field.name}")
                function = _option(field, other, hidden=field.name in (hidden or {}).get(name, ()))(function)
        return function

    return decorate


def of_class(name: str, place: str) -> Callable[[F], F]:
    """Add the options of settings that aren't a section of the file: the class at ``place``, as ``module:class``."""

    def decorate(function: F) -> F:
        module, _, cls = place.partition(":")
        for field in reversed(settings.fields(name, getattr(importlib.import_module(module), cls))):
            function = _option(field, None)(function)
        return function

    return decorate


def _option(field: Field, short: str | None, *, hidden: bool = False) -> Callable[[F], F]:
    target = f"{field.section}__{field.name}"
    shown = _default(field)
    where = f"[{field.section}] " if field.section in settings.SECTIONS else ""
    text = f"{where}{field.help}" + (f" (default: {shown})" if shown else "")
    if field.kind is bool:
        flag = field.flag if "/" in field.flag else f"{field.flag}/--no-{field.flag[2:]}"
        return click.option(flag, target, default=None, help=text, hidden=hidden)
    metavar = {int: "N", float: "X", str: "TEXT"}[field.kind]
    if field.choices:
        metavar = "|".join(choice for choice in field.choices if choice)
    flags = (field.flag,) if short is None else (short, field.flag)

    def whole(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
        """Hold a number to its form here, where the flag that was given is known."""
        if short is not None and field.kind is int and value is not None and not value.strip().lstrip("+-").isdigit():
            raise UsageError("bad-setting", f"{short} wants a whole number, got {value!r}", where=short)
        return value

    return click.option(
        *flags, target, default=None, multiple=field.many, help=text, metavar=metavar, shell_complete=_values(field),
        callback=whole, hidden=hidden,
    )  # fmt: skip


def _data(incomplete: str) -> list[str | CompletionItem]:
    """Offer the data sets that go by a name; files and folders as well, which the shell finds itself."""
    from click.shell_completion import CompletionItem

    named: list[str | CompletionItem] = [name for name in ("cifar10", "digits") if name.startswith(incomplete)]
    return named or [CompletionItem(incomplete, type="file")]


def _values(
    field: Field,
) -> Callable[[click.Context, click.Parameter, str], list[str | CompletionItem]]:
    """Offer a shell the values of a field: its choices, or the names that the registry has for it."""

    def offer(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str | CompletionItem]:
        known = [choice for choice in field.choices if choice]
        kinds: dict[str, Kind] = {"method": "quantizers", "passes": "passes", "skip": "passes", "also": "passes"}
        if field.name in kinds:
            from penstock import registry

            known = registry.names(kinds[field.name])
        if field.name == "data":
            return _data(incomplete)
        before, comma, last = incomplete.rpartition(",") if field.many else ("", "", incomplete)
        return [f"{before}{comma}{value}" for value in known if value.startswith(last)]

    return offer


def backend_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Offer a shell the names of the backends, after a comma too."""
    from penstock import registry

    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in registry.names("backends") if name.startswith(last)]


def _default(field: Field) -> str:
    if field.default is None or field.default == "" or field.default == ():
        return ""
    if isinstance(field.default, bool):
        return "on" if field.default else "off"
    if isinstance(field.default, tuple):
        return ",".join(str(item) for item in field.default)
    return f"{field.default:g}" if isinstance(field.default, float) else str(field.default)


def given(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Sort what was given on the command line by section."""
    found: dict[str, dict[str, Any]] = {}
    for target, value in values.items():
        section, separator, name = target.partition("__")
        if not separator or value is None or value == ():
            continue
        if isinstance(value, tuple):
            value = tuple(part for item in value for part in settings.split(item))
        found.setdefault(section, {})[name] = value
    return found


class FileToWrite(click.Path):
    """A file that a command writes; a name that can only be a folder's, or nobody's, is refused at once."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False)

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        """Refuse the names that a file can't have."""
        text = str(value)
        if not text.strip():
            self.fail("no file is named.", parameter, context)
        if text.endswith(("/", "/.", "/..")) or text in (".", ".."):
            self.fail(f"{text!r} names a folder; name a file, such as {text.rstrip('/.') or '.'}/model.onnx.",
                      parameter, context)  # fmt: skip
        return super().convert(value, parameter, context)


def common(function: F) -> F:
    """Add --json, --quiet and --verbose."""
    function = click.option("-v", "--verbose", is_flag=True, help="Show the whole traceback of an error.")(function)
    function = click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")(function)
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")(function)


config = click.option(
    "--config", type=click.Path(dir_okay=False), default=None,
    help="Settings file (default: ./penstock.toml, or [tool.penstock] in ./pyproject.toml).",
)  # fmt: skip
