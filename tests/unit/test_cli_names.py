"""A command's module takes its name in the package: nothing there may use a builtin of that name afterwards."""

import importlib

import pytest

from penstock import cli


def test_help_works_after_every_command_was_imported(capsys: pytest.CaptureFixture[str]) -> None:
    for name in cli.COMMANDS:
        importlib.import_module(f"penstock.cli.{name}")
    assert cli.run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in cli.COMMANDS)
