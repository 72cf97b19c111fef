"""What a search found, as a person reads it: the ladder that it climbed, and the front that no model beats."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from penstock.cli import _console

if TYPE_CHECKING:
    from penstock.stages.search import Measured, Searched, SearchSettings


def show(found: Searched, settings: SearchSettings, output: str) -> None:
    """Print the rungs, the front and the result."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("model", overflow="fold")
    table.add_column("what this step changed", overflow="fold")
    for head in ("size\nMB", "score %", "drop, points\n(95 % interval)", "latency to\nfloat (95 %)"):
        table.add_column(head, justify="right")
    table.add_column("verdict", overflow="fold")
    for rung in found.rungs:
        mark = "CHOSEN" if rung.name == found.chosen else f"refused: {rung.refused}" if rung.refused else "passed"
        mark += ", on the front" if rung.name in found.front else ""
        mark += ", measured before" if rung.reused else ""
        mark = rung.refused if rung.same_as else mark
        table.add_row(
            rung.name, rung.changed, *_figures(rung), mark, style="bold green" if rung.name == found.chosen else None
        )
    _console.stdout().print(table)
    click.echo(f"measured on {found.backend}")
    if any(rung.reused for rung in found.rungs):
        click.echo("what was measured before is from an earlier search on this machine; --fresh measures it anew")
    if any(rung.score is not None and rung.latency is None for rung in found.rungs):
        click.echo("not timed: what these steps change costs nothing at run time, so that the best of them is timed")
    if found.exhausted:
        click.echo(f"stopped after {settings.evaluations} models: --evaluations allows more")
    if not found.chosen:
        click.echo(f"no model fits the budget of {settings.max_drop:g} points; nearest: {found.nearest_miss}")
        return
    click.echo(f"chosen    {found.chosen}")
    if found.options:
        given = ", ".join(f"{name} = {value}" for name, value in found.options.items())
        click.echo(f"run with  {given}: a session on {found.backend} computes it as measured only so")
    if found.settings:
        click.echo("settings  " + ", ".join(f"{name} = {value!r}" for name, value in found.settings.items()))
    click.echo(f"wrote {output}")


def _figures(rung: Measured) -> list[str]:
    cells = [f"{rung.size_bytes / 1e6:.2f}" if rung.size_bytes else "–"]
    cells.append("–" if rung.score is None else f"{100 * rung.score:.2f}")
    if rung.drop is None or rung.drop_range is None:
        cells.append("–")
    else:
        cells.append(f"{_points(rung.drop)} ({_points(rung.drop_range[0])} to {_points(rung.drop_range[1])})")
    if rung.latency is None or rung.latency_range is None:
        cells.append("not timed" if rung.score is not None else "–")
    else:
        cells.append(f"{rung.latency:.2f} ({rung.latency_range[0]:.2f}–{rung.latency_range[1]:.2f})")
    return cells


def _points(value: float) -> str:
    """Write a difference with its sign; one that rounds to nothing has none of its own."""
    return f"{round(value, 2) + 0.0:+.2f}"
