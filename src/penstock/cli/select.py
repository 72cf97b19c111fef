"""penstock select."""

from __future__ import annotations

from typing import Any

import click

from penstock.cli import _console, _tables
from penstock.cli._options import common, config, given, sections
from penstock.cli._settings import one

EPILOG = """\b
Examples:
  penstock select out --max-size-mb 1
  penstock select out --objective accuracy --max-latency-ms 0.5
  penstock select out --max-drop 0.2 --json
"""


@click.command(epilog=EPILOG)
@click.argument("folder", type=click.Path())
@sections("select")
@config
@common
def command(folder: str, config: str | None, as_json: bool, quiet: bool, verbose: bool, **values: Any) -> int:
    """Choose again from the finished build in FOLDER. Nothing is measured anew; exit code 1 when nothing fits."""
    from penstock import api
    from penstock.stages.select import SelectSettings

    settings = one("select", SelectSettings, given(values), config)
    found, rows = api.select(folder, settings)
    if as_json:
        shown = {
            "chosen": found.chosen, "nearest_miss": found.nearest_miss,
            "deployments": _tables.result_json(rows, found.chosen),
        }  # fmt: skip
        _console.emit("select", shown)
        return 0 if found.chosen else 1
    console = _console.stdout()
    _tables.show_rows(console, rows, found.chosen)
    console.print(
        f"chosen    {found.chosen}" if found.chosen else f"none fits; the nearest miss is {found.nearest_miss}"
    )
    return 0 if found.chosen else 1
