"""penstock optimize."""

from __future__ import annotations

from typing import Any

import click

from penstock.cli import _console
from penstock.cli._options import common, config, given, sections
from penstock.cli._settings import checking, one

EPILOG = """\b
Examples:
  penstock optimize model.onnx -o slim.onnx
  penstock optimize model.onnx -o slim.onnx --skip fold-constants
  penstock optimize model.onnx -o slim.onnx --passes fold-batchnorm,remove-unused --json
"""


@click.command(epilog=EPILOG)
@click.argument("model", type=click.Path())
@click.option("-o", "--output", type=click.Path(dir_okay=False), required=True, help="The .onnx file to write.")
@sections("check", "optimize")
@config
@common
def command(
    model: str, output: str, config: str | None, as_json: bool, quiet: bool, verbose: bool, **values: Any
) -> int:
    """Run the passes over MODEL until none of them finds anything, and tell what each did and did not."""
    from penstock import api
    from penstock.stages.optimize import OptimizeSettings

    flags = given(values)
    settings = one("optimize", OptimizeSettings, flags, config)
    with _console.progress(quiet) as progress, checking(flags, config):
        progress.begin("optimize", model)
        done = api.optimize(model, output, settings)
        progress.end(f"{done.nodes_before} → {done.nodes_after} nodes")
    if as_json:
        _console.emit("optimize", {"output": output, **done.facts(), "measured": done.measured()})
        return 0
    changes: dict[str, int] = {}
    for record in done.passes:
        changes[record.name] = changes.get(record.name, 0) + record.changes
    for name, count in changes.items():
        click.echo(f"{name:<34} {count:>5} changes")
    last = max((record.round for record in done.passes), default=0)
    for record in done.passes:
        if record.undone:
            click.echo(_text(f"{record.name}: taken back in round {record.round}: {record.undone}"))
        if record.round == last:
            for place in record.declined[:10]:
                click.echo(_text(f"{record.name}: not at {place.node}: {place.reason}"))
    state = "a fixpoint" if done.settled else "no fixpoint yet: raise --max-rounds"
    click.echo(f"{done.nodes_before} → {done.nodes_after} nodes after {done.rounds} rounds, {state}")
    click.echo(f"wrote {output}")
    return 0


def _text(line: str) -> str:
    return _console.printable(line, limit=400)  # nodes are called by names from the file
