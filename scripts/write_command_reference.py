"""Write docs/commands.md and docs/settings.md from the command line and the settings themselves.

    python scripts/write_command_reference.py            write both
    python scripts/write_command_reference.py --check    exit with 1, and say which, where one is out of date

What is written depends on the code alone: not on the terminal's width, the environment or the installed runtimes.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from penstock import settings
from penstock.cli import group

DOCS = Path(__file__).resolve().parent.parent / "docs"
NOTE = "<!-- Written by scripts/write_command_reference.py. Change the code, then run `make docs`. -->"

COMMANDS_HEAD = """
Results go to stdout, progress and messages to stderr; with `--json`, one object on stdout. The settings of a section
may stand in a file or in the environment as well: see [settings.md](settings.md).
"""
SETTINGS_HEAD = """
A setting is taken from the first of these that has it: the flag, the environment variable, the settings file, the
default. The file is the one that `--config` names, else `penstock.toml` in the current folder, else `[tool.penstock]`
in its `pyproject.toml`. Keys may be written with `-` or `_`; an unknown one is an error. Lists are arrays in the file;
a flag of a list may be given several times, and a flag or a variable may hold several values with commas between them.
See [a commented file](../examples/penstock.toml).

Above the first section of the file stand `source`, `weights`, `backends` and `seed`, named like the argument
and the flags of `penstock build`; they have no environment variables. `PENSTOCK_CACHE`, or `--cache`, is the cache
folder; it changes no result.
"""


def commands() -> str:
    """Return the text of commands.md."""
    lines = [NOTE, "", "# Commands", ""]
    lines += ["```", _usage(group, "penstock"), "```", "", _sentence(group.help), ""]
    lines += [f"{_sentence(group.epilog)} An interrupted command exits with 130.", ""]
    lines += [*COMMANDS_HEAD.strip().splitlines(), ""]
    found = list(_walk(group, "penstock"))
    for name, command in found:
        lines.append(f"- [`{name}`](#{_anchor(name)}): {_sentence(command.short_help or command.help)}")
    for name, command in found:
        lines += ["", *_command(name, command)]
    return "\n".join(lines) + "\n"


def _walk(parent: click.Group, prefix: str) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(parent, info_name=prefix)
    for name in parent.list_commands(context):
        command = parent.get_command(context, name)
        assert command is not None
        full = f"{prefix} {name}"
        if isinstance(command, click.Group):
            yield from _walk(command, full)
        else:
            yield full, command


def _command(name: str, command: click.Command) -> list[str]:
    lines = [f"## {name}", "", "```", _usage(command, name), "```", ""]
    lines += [*_paragraphs(command.help), ""]
    groups: dict[str, list[tuple[str, str, str]]] = {"": []}
    for option in command.get_params(click.Context(command, info_name=name)):
        if isinstance(option, click.Option) and "--help" not in option.opts and not option.hidden:
            section, text = re.fullmatch(r"(?:\[(\w+)\] )?(.*)", option.help or "", re.DOTALL).groups()  # type: ignore[union-attr]  # it matches anything
            default = _option_default(option)
            if found := re.search(r" \(default: ([^()]*)\)\.?$", text):
                default, text = found[1], text[: found.start()]
            groups.setdefault(section or "", []).append((_names(option), text, default))
    for section, rows in groups.items():
        if not rows:
            continue
        title = f"Settings of [`[{section}]`](settings.md#{section})" if section else "Options"
        lines += [f"{title}:", "", "| option | meaning | default |", "|---|---|---|"]
        lines += [f"| {_code(names)} | {_cell(text)} | {_code(default)} |" for names, text, default in rows]
        lines.append("")
    if command.epilog:
        lines += ["Examples:", "", "```sh", *_examples(command.epilog), "```", ""]
    return lines[:-1]


def _usage(command: click.Command, name: str) -> str:
    context = click.Context(command, info_name=name, max_content_width=10_000, terminal_width=10_000)
    return " ".join(command.get_usage(context).split()).removeprefix("Usage: ")


def _names(option: click.Option) -> str:
    names = ", ".join(option.opts)
    if option.secondary_opts:
        return f"{names} / {', '.join(option.secondary_opts)}"
    if option.is_flag:
        return names
    return f"{names} {option.metavar or option.type.name.upper()}"


def _option_default(option: click.Option) -> str:
    shown = option.show_default and isinstance(option.default, (str, int, float))
    return str(option.default) if shown else ""


def _examples(epilog: str) -> list[str]:
    rows = [row.strip() for row in epilog.replace("\b", "").splitlines()]
    return [row for row in rows if row and row != "Examples:"]


def _paragraphs(text: str | None) -> list[str]:
    found = [" ".join(part.split()) for part in re.split(r"\n\s*\n", (text or "").strip())]
    return "\n\n".join(found).splitlines()


def _sentence(text: str | None) -> str:
    return _paragraphs(text)[0] if text else ""


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _code(text: str) -> str:
    return f"`{_cell(text)}`" if text else ""


def reference() -> str:
    """Return the text of settings.md."""
    lines = [NOTE, "", "# Settings", "", *SETTINGS_HEAD.strip().splitlines()]
    for section, home in settings.SECTIONS.items():
        module, _, name = home.partition(":")
        doc = _sentence(settings.section_class(section).__doc__)
        lines += ["", f"## {section}", "", f"{doc} (`{module}.{name}`)", ""]
        lines += ["| key | type | default | flag | environment | meaning |", "|---|---|---|---|---|---|"]
        for field in settings.fields(section):
            variable = f"PENSTOCK_{section}_{field.name}".upper()
            cells = (f"`{field.name}`", _type(field), _code(_default(field)), _code(_flag(field)), f"`{variable}`")
            lines.append(f"| {' | '.join(cells)} | {_cell(field.help)} |")
    return "\n".join(lines) + "\n"


def _type(field: settings.Field) -> str:
    if field.choices:
        return " or ".join(f"`{choice}`" if choice else "empty" for choice in field.choices)
    kind = {int: "whole number", float: "number", bool: "true or false", str: "text"}[field.kind]
    least = "" if field.minimum is None else f", {field.minimum:g} or more"
    return f"list: {kind}{least}" if field.many else kind + least


def _default(field: settings.Field) -> str:
    value = field.default
    if value is None or value == "" or value == ():
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(str(item) for item in value) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _flag(field: settings.Field) -> str:
    if field.kind is bool and "/" not in field.flag:
        return f"{field.flag}/--no-{field.flag[2:]}"
    return field.flag


def main(arguments: list[str]) -> int:
    """Write the files, or compare them; return the exit code."""
    if arguments not in ([], ["--check"]):
        print("usage: write_command_reference.py [--check]", file=sys.stderr)
        return 2
    stale = []
    for name, text in (("commands.md", commands()), ("settings.md", reference())):
        path = DOCS / name
        if arguments and (not path.is_file() or path.read_text(encoding="utf-8") != text):
            stale.append(f"docs/{name}")
        elif not arguments:
            path.write_text(text, encoding="utf-8")
    if stale:
        print(f"{' and '.join(stale)} differ from the code: run `make docs` and commit the result", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
