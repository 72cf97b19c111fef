"""penstock schema."""

from __future__ import annotations

import json

import click

from penstock.cli import _console
from penstock.cli._options import common

EPILOG = """\b
Examples:
  penstock schema > penstock.schema.json
  penstock schema --json
  penstock schema -q > .vscode/penstock.schema.json
"""


@click.command(epilog=EPILOG)
@common
def command(as_json: bool, quiet: bool, verbose: bool) -> int:
    """Print the JSON Schema of the settings file, for editors and checkers."""
    from penstock.schema import schema

    if as_json:
        _console.emit("schema", schema())
    else:
        click.echo(json.dumps(schema(), indent=2))
    return 0
