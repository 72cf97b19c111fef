"""penstock check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from penstock.cli import _console
from penstock.cli._options import common, config, given, sections
from penstock.cli._settings import one

EPILOG = """\b
Examples:
  penstock check model.onnx
  penstock check model.onnx --json
  penstock check model.onnx --max-nodes 100000
  penstock check model.onnx --copy-links
"""
_COLOURS = {"refused": "red", "warning": "yellow", "note": "cyan"}


@click.command(epilog=EPILOG)
@click.argument("model", type=click.Path())
@click.option("--copy-links", is_flag=True,
              help="Show where external data that are links lead, and put copies in their place.")  # fmt: skip
@sections("check")
@config
@common
def command(
    model: str, copy_links: bool, config: str | None, as_json: bool, quiet: bool, verbose: bool, **values: Any
) -> int:
    """Look MODEL through without running anything of it. Exit code 2 when it is refused."""
    from penstock import precheck, store

    settings = one("check", precheck.CheckSettings, given(values), config)
    copied = []
    if copy_links:
        for link, target in precheck.linked_files(Path(model)):
            leads = "is a hard link" if link == target or not link.is_symlink() else f"leads to {target}"
            store.copy_file(target, link)
            copied.append({"link": str(link), "target": str(target)})
            click.echo(f"{link} {leads}: replaced by a copy", err=True)
    found = precheck.examine(Path(model), settings)
    if as_json:
        shown = {"file": found.file, "findings": found.findings, "figures": found.figures, "copied": copied}
        _console.emit("check", shown)
        return 2 if found.refused else 0
    for finding in found.findings:
        click.echo(
            click.style(f"{finding.severity:<8}", fg=_COLOURS[finding.severity]) + f"{finding.id}: {finding.what}"
        )
        if finding.where and finding.where != found.file:
            click.echo(f"          where: {finding.where}")
        if finding.do:
            click.echo(f"          do:    {finding.do}")
    click.echo(f"{found.file}: " + ", ".join(_figure(*item) for item in found.figures.items()))
    click.echo("refused" if found.refused else "fine to open" + (", with warnings" if found.findings else ""))
    return 2 if found.refused else 0


def _figure(name: str, value: int) -> str:
    text = {
        "size_bytes": "{:,} bytes",
        "nodes": "{:,} nodes",
        "messages": "{:,} messages",
        "depth": "messages nest {} deep",
        "subgraph_depth": "graphs {} deep",
        "tensors": "{:,} tensors",
        "declared_bytes": "{:,} bytes of tensors declared",
    }
    return text[name].format(value)
