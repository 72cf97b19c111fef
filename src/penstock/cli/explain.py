"""penstock explain."""

from __future__ import annotations

import textwrap

import click

from penstock.cli import _console
from penstock.cli._options import common

EPILOG = """\b
Examples:
  penstock explain
  penstock explain baked-in-size
  penstock explain linked-external-data --json
"""


def _ids(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    from penstock import explanations

    return [id for id in explanations.everything() if id.startswith(incomplete.lower())]


@click.command(epilog=EPILOG)
@click.argument("code", required=False, shell_complete=_ids)
@common
def command(code: str | None, as_json: bool, quiet: bool, verbose: bool) -> int:
    """Explain the error id CODE: what happened, why it is refused, what to do. Without one, list all.

    The id of an error stands in its --json form, and in the line "more" of its message.
    """
    from penstock import explanations

    if code is None:
        known = explanations.everything()
        if as_json:
            _console.emit("explain", known)
            return 0
        for id, one in known.items():
            click.echo(f"{id:<26}{one.what}")
        return 0
    found = explanations.explanation(code.lower())
    if as_json:
        _console.emit("explain", {"id": code, "explanation": found})
        return 0
    sections = {"NAME": code, "WHAT": found.what, "WHY": found.why, "CURE": found.cure}
    sections["SEE ALSO"] = ", ".join(found.see)
    for title, text in sections.items():
        click.echo(f"{title}\n{textwrap.fill(text, 78, initial_indent='    ', subsequent_indent='    ')}\n")
    return 0
