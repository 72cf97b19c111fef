"""penstock explain."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import click

from penstock.cli import _console
from penstock.cli._options import common

if TYPE_CHECKING:
    from penstock.opsets.telling import Operator

EPILOG = """\b
Examples:
  penstock explain
  penstock explain baked-in-size
  penstock explain Resize
  penstock explain linked-external-data --json
"""


def _ids(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    from penstock import explanations

    return [id for id in explanations.everything() if id.startswith(incomplete.lower())]


def _operator(found: Operator) -> None:
    versions = ", ".join(str(one.since) for one in found.versions)
    click.echo(f"{found.domain or 'ai.onnx'}::{found.name}, versions {versions}" + (", deprecated" * found.deprecated))
    if found.doc:
        click.echo(textwrap.fill(found.doc, 96, initial_indent="    ", subsequent_indent="    "))
    for one in found.versions:
        click.echo(f"\nopset {one.since}")
        rows = [*one.changes] or ["nothing that shows in its form"]
        for way in ("up", "down"):
            if text := getattr(one, way):
                rows.append(f"converted {way}: {text}")
        for row in rows:
            click.echo(textwrap.fill(row, 96, initial_indent="    ", subsequent_indent="        "))


@click.command(epilog=EPILOG)
@click.argument("code", required=False, shell_complete=_ids)
@common
def command(code: str | None, as_json: bool, quiet: bool, verbose: bool) -> int:
    """Explain CODE: an error id, or an operator by its name. Without one, list all error ids.

    The id of an error stands in its --json form, and in the line "more" of its message: it is told what happened, why
    it is refused, what to do. Of an operator it is told what changed in each opset, and what convert makes of that.
    """
    from penstock import explanations
    from penstock.explanations import Explanation

    if code is None:
        known = explanations.everything()
        if as_json:
            _console.emit("explain", known)
            return 0
        for id, one in known.items():
            click.echo(f"{id:<26}{one.what}")
        return 0
    found = explanations.find(code)
    if not isinstance(found, Explanation):
        if as_json:
            _console.emit("explain", {"id": code, "operator": found})
        else:
            _operator(found)
        return 0
    code = code.lower()
    if as_json:
        _console.emit("explain", {"id": code, "explanation": found})
        return 0
    sections = {"NAME": code, "WHAT": found.what, "WHY": found.why, "CURE": found.cure}
    sections["SEE ALSO"] = ", ".join(found.see)
    for title, text in sections.items():
        click.echo(f"{title}\n{textwrap.fill(text, 78, initial_indent='    ', subsequent_indent='    ')}\n")
    return 0
