"""penstock completion."""

from __future__ import annotations

import click

from penstock.cli import _console
from penstock.cli._options import common

EPILOG = """\b
Examples:
  penstock completion bash >> ~/.bashrc
  penstock completion zsh >> ~/.zshrc
  penstock completion fish > ~/.config/fish/completions/penstock.fish
"""


@click.command(epilog=EPILOG)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@common
def command(shell: str, as_json: bool, quiet: bool, verbose: bool) -> int:
    """Print the script that lets SHELL complete commands, options and their values."""
    from click.shell_completion import get_completion_class

    from penstock.cli import group

    found = get_completion_class(shell)
    assert found is not None  # click has all three
    script = found(group, {}, "penstock", "_PENSTOCK_COMPLETE").source()
    if as_json:
        _console.emit("completion", {"shell": shell, "script": script})
    else:
        click.echo(script)
    return 0
