"""penstock check."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from penstock.cli import _console
from penstock.cli._console import printable
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
    found = precheck.examine(Path(model), settings)
    copied: list[dict[str, str]] = []
    # nothing is read by a link's name as long as anything else is wrong with the model
    others = {finding.id for finding in found.refused} - {"linked-external-data"}
    if copy_links and others:
        for link in found.links:
            leads, _ = _leads(link)
            click.echo(printable(f"{link} {leads}: not copied, as there is more to refuse"), err=True)
    elif copy_links and found.links:
        for link in found.links:
            leads, target = _leads(link)
            why = store.copy_plain(link, settings.max_tensor_bytes)
            click.echo(printable(f"{link} {leads}: {f'not copied, {why}' if why else 'replaced by a copy'}"), err=True)
            copied += [] if why else [{"link": str(link), "target": target}]
        found = precheck.examine(Path(model), settings)
        do = "put the data file itself in the link's place, or export the model again"
        left = [replace(f, do=do) if f.id == "linked-external-data" else f for f in found.findings]
        found = replace(found, findings=tuple(left))
    if as_json:
        shown = {"file": found.file, "findings": found.findings, "figures": found.figures, "copied": copied}
        _console.emit("check", shown)
        return 2 if found.refused else 0
    for finding in found.findings:
        severity = click.style(f"{finding.severity:<8}", fg=_COLOURS[finding.severity])
        click.echo(severity + printable(f"{finding.id}: {finding.what}"))
        if finding.where and finding.where != found.file:
            click.echo(printable(f"          where: {finding.where}"))
        if finding.do:
            click.echo(printable(f"          do:    {finding.do}"))
    click.echo(printable(f"{found.file}: ") + ", ".join(_figure(*item) for item in found.figures.items()))
    click.echo("refused" if found.refused else "fine to open" + (", with warnings" if found.findings else ""))
    return 2 if found.refused else 0


def _leads(link: Path) -> tuple[str, str]:
    """Say where a link leads, and name the place."""
    try:
        if not link.is_symlink():
            return "is a hard link", str(link)
        target = os.path.realpath(link)
    except OSError:
        return "is a link", ""
    return f"leads to {target}", target


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
