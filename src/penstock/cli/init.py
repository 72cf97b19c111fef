"""penstock init."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from penstock.cli import _console
from penstock.cli._options import FileToWrite, common
from penstock.errors import UsageError

EPILOG = """\b
Examples:
  penstock init
  penstock init model.onnx --yes
  penstock init net.py --data cifar-10-batches-bin --yes -o penstock.toml --force
"""


@click.command(epilog=EPILOG)
@click.argument("source", required=False, type=click.Path())
@click.option("-o", "--output", type=FileToWrite(), default="penstock.toml", show_default=True,
              help="The settings file to write.")  # fmt: skip
@click.option("--data", default=None, help="The data set, instead of the question.")
@click.option("--yes", is_flag=True, help="Ask nothing: take what is found, and defaults.")
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@common
def command(
    source: str | None, output: str, data: str | None, yes: bool, force: bool, as_json: bool, quiet: bool, verbose: bool
) -> int:
    """Write a commented settings file for a model, after three questions or none.

    SOURCE is what `penstock build` takes, or a .py file, whose modules are found without running it; the questions are
    for what isn't given. With data, a limit of one point of accuracy is set. Where there is no terminal to ask on,
    nothing is asked.
    """
    from penstock import starting

    path = Path(output)
    if path.exists() and not force:
        raise UsageError(
            "file-exists", "there is a settings file already", where=output, do="give --force or another -o"
        )
    ask = not yes and not as_json and sys.stdin.isatty()
    if source is None:
        here = sorted(Path().glob("*.onnx"))
        suggested = str(here[0]) if here else ""
        source = (
            click.prompt("Which model (model.onnx, file.py:Class, zoo:digits)", default=suggested or None)
            if ask
            else suggested
        )
    if not source:
        raise UsageError("no-source", "no source is given", do="give model.onnx, file.py:Class or zoo:cifar10")
    found = starting.look(source, Path.cwd())
    chosen, first, drop = data if data is not None else found.data, starting.LATENCY, None
    if ask:
        if data is None:
            chosen = click.prompt("Which labelled data (a folder, an .npz, module:function; empty: none)",
                                  default=found.data, show_default=bool(found.data))  # fmt: skip
        kinds = click.Choice([starting.LATENCY, starting.ACCURACY, starting.SIZE])
        first = click.prompt("What matters most", type=kinds, default=starting.LATENCY)
    if chosen:
        drop = starting.DROP
    starting.check_data(chosen)
    starting.write(path, found, starting.answers_for(chosen, first, drop))
    if as_json:
        _console.emit("init", {"output": output, "source": found.source, "data": chosen, "objective": first})
        return 0
    for note in found.notes:
        click.echo(starting.plain(note))
    if chosen:
        click.echo(f"limit   at most {starting.DROP:g} points of accuracy lost ([select] max_drop)")
    click.echo(f"wrote   {output}")
    click.echo("next    penstock build --dry-run, then penstock build")
    return 0
