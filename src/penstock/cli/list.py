"""penstock list."""

from __future__ import annotations

import click

from penstock.cli import _console
from penstock.cli._options import common

EPILOG = """\b
Examples:
  penstock list
  penstock list backends
  penstock list backends --coverage
  penstock list backends --coverage --operator Resize
  penstock list passes --json
"""
KINDS = ("frontends", "passes", "quantizers", "backends", "datasets", "targets", "commands")


@click.command(epilog=EPILOG)
@click.argument("kind", required=False, type=click.Choice(KINDS))
@click.option("--coverage", is_flag=True, help="of backends: what the standard's node tests gave on each, as measured")
@click.option("--operator", default="", metavar="NAME", help="with --coverage: what each backend makes of one operator")
@common
def command(
    kind: str | None, coverage: bool, operator: str, as_json: bool, quiet: bool, verbose: bool
) -> int:  # fmt: skip
    """Show what is there of each KIND, where it comes from, and what doesn't run here and why.

    What isn't built in is shown with the package that brings it and its version.
    """
    from penstock import registry
    from penstock.errors import UsageError

    if coverage or operator:
        if kind not in (None, "backends"):
            raise UsageError("bad-option", f"--coverage is of backends, not of {kind}")
        from penstock.cli import _coverage

        _coverage.show(list(registry.describe("backends")), operator, as_json)
        return 0
    kinds = [k for k in registry.KINDS if kind is None or k == kind]
    plugins = list(registry.describe(*kinds))
    found = {k: [plugin for plugin in plugins if plugin.kind == k] for k in kinds}
    if as_json:
        _console.emit("list", found)
        return 0
    for k, listed in found.items():
        click.echo(k)
        for plugin in listed:
            origin = "" if plugin.origin == "built in" else f" [{plugin.origin}]"
            click.echo(f"  {plugin.name:<34}{plugin.summary}{origin}")
            if plugin.problem:
                click.echo(f"  {'':<34}can't run here: {plugin.problem}")
        if not listed:
            click.echo("  none yet")
    return 0
