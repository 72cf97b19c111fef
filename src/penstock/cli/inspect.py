"""penstock inspect."""

from __future__ import annotations

from typing import Any

import click

from penstock.cli import _console
from penstock.cli._options import common, config, given, sections
from penstock.cli._settings import checking

EPILOG = """\b
Examples:
  penstock inspect model.onnx
  penstock inspect model.onnx --json > model.json
  penstock inspect out/models/int8/model.onnx
"""


@click.command(epilog=EPILOG)
@click.argument("model", type=click.Path())
@sections("check")
@config
@common
def command(model: str, config: str | None, as_json: bool, quiet: bool, verbose: bool, **values: Any) -> int:
    """Show what MODEL is made of and what it costs: operators, shapes, parameters, MACs, weights, memory."""
    from penstock import api

    with checking(given(values), config):
        found = api.inspect(model)
    if as_json:
        _console.emit("inspect", found)
        return 0
    from penstock.cli._inspection import show

    show(found, _console.stdout())
    return 0
