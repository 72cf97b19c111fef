"""penstock zoo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from penstock.cli import _console
from penstock.cli._options import common, config, given, sections
from penstock.cli._settings import one

EPILOG = """\b
Examples:
  penstock zoo list
  penstock zoo card digits
  penstock zoo train cifar10 --data cifar-10-batches-bin -o trained
"""


@click.group(epilog=EPILOG)
def command() -> None:
    """Reference networks: show them, train them."""


@command.command("list")
@common
def list_networks(as_json: bool, quiet: bool, verbose: bool) -> int:
    """Show the networks with their accuracy."""
    from penstock import zoo
    from penstock.errors import MissingError

    shown = []
    for name, entry in zoo.RECIPES.items():
        try:
            card = zoo.card(name)
        except MissingError:
            card = {}
        accuracy = card.get("test_accuracy")
        shown.append({"name": name, "description": entry.description, "test_accuracy": accuracy})
        if not as_json:
            told = f"{100 * accuracy:.2f} % top-1" if isinstance(accuracy, float) else "not trained"
            click.echo(f"zoo:{name:<10} {entry.description}: {told}")
    if as_json:
        _console.emit("zoo list", shown)
    return 0


@command.command("card")
@click.argument("name")
@common
def show_card(name: str, as_json: bool, quiet: bool, verbose: bool) -> int:
    """Show how the weights of NAME came to be and how good they are."""
    from penstock import zoo

    card = zoo.card(name)
    if as_json:
        _console.emit("zoo card", card)
        return 0
    for key, value in card.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        click.echo(f"{key:<18} {value}")
    return 0


@command.command("train", epilog=EPILOG)
@click.argument("name")
@click.option("-o", "--output", type=click.Path(file_okay=False), default=None,
              help="Folder for the weights, the card and the checkpoint (default: trained-NAME).")  # fmt: skip
@sections("data")
@config
@common
def train(
    name: str, output: str | None, config: str | None, as_json: bool, quiet: bool, verbose: bool, **values: Any
) -> int:
    """Train NAME on the CPU by its recipe. Interrupted, the same command goes on from the last whole epoch."""
    from penstock import zoo
    from penstock.data import DataSettings
    from penstock.zoo.training import train as run

    zoo.trained(name)
    data = one("data", DataSettings, given(values), config)
    folder = Path(output or f"trained-{name}")
    with _console.progress(quiet, every_step=True) as progress:
        card = run(name, data.data or name, data, folder, progress)
    if as_json:
        _console.emit("zoo train", card)
    else:
        click.echo(f"test accuracy {100 * card.test_accuracy:.2f} % of {card.test_samples:,} images")
        click.echo(f"wrote {folder}")
    return 0
