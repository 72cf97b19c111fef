"""penstock env."""

from __future__ import annotations

import click

from penstock.cli import _console
from penstock.cli._options import common

EPILOG = """\b
Examples:
  penstock env list
  penstock env add iree
  penstock env remove iree
"""


@click.group(epilog=EPILOG)
def command() -> None:
    """Show, make and remove the environments of runtimes that can't live beside others.

    Each is a virtual environment of pinned packages, or the pinned files of an npm package, below PENSTOCK_ENVIRONMENTS
    or ~/.local/share/penstock.
    """


@command.command("list")
@common
def _list(as_json: bool, quiet: bool, verbose: bool) -> int:
    """Show which there could be, and which are there."""
    from penstock import environment

    found = [environment.find(name) for name in environment.names()]
    if as_json:
        _console.emit("env list", {"environments": found})
        return 0
    for one in found:
        click.echo(f"{one.name:<22}{one.summary}")
        click.echo(f"  {one.folder}" if not one.state else f"  not there: {one.state}")
    return 0


@command.command("add")
@click.argument("name")
@common
def _add(name: str, as_json: bool, quiet: bool, verbose: bool) -> int:
    """Make the environment NAME; one that is there and whole stays as it is."""
    from penstock import environment

    with _console.progress(quiet) as progress:
        found = environment.add(name, progress)
    if as_json:
        _console.emit("env add", found)
    else:
        count = len(found.packages)
        click.echo(f"{found.name}: {count} package{'s' * (count != 1)} in {found.folder}")
    return 0


@command.command("remove")
@click.argument("name")
@common
def _remove(name: str, as_json: bool, quiet: bool, verbose: bool) -> int:
    """Remove the environment NAME."""
    from penstock import environment

    there = environment.remove(name)
    if as_json:
        _console.emit("env remove", {"name": name, "removed": there})
    else:
        click.echo(f"{name}: removed" if there else f"{name}: there was none")
    return 0
