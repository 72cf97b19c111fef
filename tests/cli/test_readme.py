"""What the docs tell a user to type: every command parses, and the Python of the README runs."""

import re
import shlex
from pathlib import Path
from types import ModuleType

import click
import pytest

from penstock import cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]


def commands() -> list[str]:
    """Collect the lines of shell blocks that call penstock, with continued lines joined."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```(?:sh|console|bash)\n(.*?)```", page.read_text(), re.S):
            for line in block.replace("\\\n", " ").splitlines():
                line = re.sub(r"^\$ ", "", line.strip())
                if line.startswith("penstock "):
                    found.append(line)
    return sorted(set(found))


def test_there_are_commands_to_check() -> None:
    assert len(commands()) > 10


@pytest.mark.parametrize("line", commands())
def test_a_documented_command_parses(line: str) -> None:
    words = shlex.split(re.split(r" >>? ", line)[0], comments=True)[1:]
    command: click.Command | None = cli.group
    context = click.Context(cli.group)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        command = command.get_command(context, words[0])
        assert command is not None, words[0]
        words = words[1:]
    assert command is not None
    if "--help" not in words and not isinstance(command, click.Group):
        command.make_context(line, words)


def test_the_python_of_the_readme_runs(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.save(tiny.conv(), tmp_path / "model.onnx")
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S):
        exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out.split()[0].isdigit()
