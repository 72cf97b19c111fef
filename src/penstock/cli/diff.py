"""penstock diff."""

from __future__ import annotations

import click

from penstock.cli import _console
from penstock.cli._options import common

EPILOG = """\b
Examples:
  penstock diff out-monday out-friday
  penstock diff out-laptop out-server --json
  penstock diff before after -q

Exit code 0: the same models and the same choice. 1: something else came out. Measured times alone don't count.
"""
TITLES = {
    "input": "inputs", "setting": "settings", "tool": "tools", "machine": "machine", "variant": "models",
    "golden": "golden set", "verdict": "verdicts", "score": "accuracy", "latency": "latency", "chosen": "choice",
}  # fmt: skip


@click.command(epilog=EPILOG)
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@common
def command(a: str, b: str, as_json: bool, quiet: bool, verbose: bool) -> int:
    """Tell how the builds in the folders A and B differ: what they were given, what came out, and why."""
    from pathlib import Path

    from penstock.difference import compare

    found = compare(Path(a), Path(b))
    counted = [one for one in found.followed if one.kind != "latency"]
    code = 0 if found.same_models and not counted else 1
    if as_json:
        _console.emit("diff", found)
        return code
    title = ""
    for change in found.causes:
        title = _title(change.kind, title)
        click.echo(f"  {change.name}: {_short(change.a)} → {_short(change.b)}")
    for one in found.followed:
        title = _title(one.kind, title)
        click.echo(f"  {one.name}: {one.what}" + (f"\n      because: {one.why}" if one.why else ""))
    if not found.causes:
        click.echo("the same inputs, settings, tools and machine")
    if found.same_models:
        click.echo("the same models, byte for byte")
    return code


def _title(kind: str, before: str) -> str:
    if TITLES[kind] != before:
        click.echo(TITLES[kind])
    return TITLES[kind]


def _short(value: object) -> str:
    if value is None:
        return "absent"
    text = str(value)
    return text[:12] + "…" if len(text) == 64 and text.isalnum() else text
