"""penstock inspect."""

from __future__ import annotations

import click

from penstock.cli import _console
from penstock.cli._options import common

EPILOG = """\b
Examples:
  penstock inspect model.onnx
  penstock inspect model.onnx --json > model.json
  penstock inspect out/models/int8/model.onnx
"""


@click.command(epilog=EPILOG)
@click.argument("model", type=click.Path())
@common
def command(model: str, as_json: bool, quiet: bool, verbose: bool) -> int:
    """Show what MODEL is made of and what it costs: operators, shapes, parameters, MACs, weights, memory."""
    from penstock import api

    found = api.inspect(model)
    if as_json:
        _console.emit("inspect", found)
        return 0
    from penstock.cli._inspection import show

    show(found, _console.stdout())
    return 0
