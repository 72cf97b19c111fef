"""What ``penstock list backends --coverage`` shows: how much of the standard each backend was measured to do."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import cast

import click

from penstock.cli import _console
from penstock.conformance import measured, measuring
from penstock.conformance.measured import Coverage
from penstock.errors import UsageError
from penstock.registry import Plugin

MOST_REASONS = 3


def show(backends: list[Plugin], operator: str, as_json: bool) -> None:
    """Print a line for each backend, or what each makes of one operator. Raises ``UsageError``."""
    found = {plugin.name: coverage for plugin in backends if (coverage := measured.of(plugin.name)) is not None}
    reasons = measuring.LEFT_OUT | measuring.UNMEASURED
    missing = {
        plugin.name: reasons.get(plugin.name, "it wasn't measured") for plugin in backends
        if plugin.name not in found
    }  # fmt: skip
    if operator:
        _of_operator(found, operator, as_json)
        return
    if as_json:
        _console.emit("list", {"coverage": {name: _json(one) for name, one in found.items()}, "not_measured": missing})
        return
    _table(found)
    for name, reason in missing.items():
        click.echo(f"not measured  {name}: {reason}")
    for plugin in backends:
        coverage = found.get(plugin.name)
        if coverage is not None and (here := _version(plugin)) not in ("", coverage.version):
            click.echo(f"note          {plugin.name} is {here} here; {coverage.version} was measured")


def _version(plugin: Plugin) -> str:
    """Return the version of a backend's runtime that is here, "" where it can't run."""
    from penstock import registry
    from penstock.backends import Backend

    if plugin.problem:
        return ""
    backend = cast(Backend, registry.load("backends", plugin.name))
    return str(backend.facts().get("version", ""))


def _table(found: Mapping[str, Coverage]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("backend", no_wrap=True)
    table.add_column("version", max_width=12, no_wrap=True)
    for name in ("passed", "wrong", "refused", "failed", "died", "of sessions", "operators"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, one in found.items():
        share = f"{100 * one.counts['passed'] / one.opened:.1f} %" if one.opened else "–"
        counts = [one.counts[kind] for kind in ("passed", "wrong", "refused", "failed")]
        died = one.counts["crashed"] + one.counts["hung"]
        operators = f"{len(one.whole)} + {len(one.partial)}"
        table.add_row(name, one.version, *(f"{count:,}" for count in (*counts, died)), share, operators)
    _console.stdout().print(table)
    suites, days = ({getattr(one, name) for one in found.values()} for name in ("suite", "measured"))
    when = " to ".join(sorted({min(days), max(days)})) if days else "never"
    click.echo(
        f"The node tests of {', '.join(sorted(suites))}, measured {when}. refused: no session can be made, by name;"
    )
    click.echo(
        "failed: it can't be run; died: its process did, or it hung; operators: whole + in part, of those tested."
    )
    click.echo("--operator NAME shows what each makes of one operator; --json has every test that didn't pass.")


def _json(coverage: Coverage) -> dict[str, object]:
    return {
        "facts": coverage.facts, "suite": coverage.suite, "measured": coverage.measured, "system": coverage.system,
        "counts": coverage.counts, "operators": coverage.operators,
    }  # fmt: skip


def _of_operator(found: Mapping[str, Coverage], operator: str, as_json: bool) -> None:
    known = {name for one in found.values() for name in one.operators}
    if operator not in known:
        near = difflib.get_close_matches(operator, known, 1)
        do = f"did you mean {near[0]}?" if near else "names are those of the standard: Conv, or ai.onnx.ml.Normalizer"
        raise UsageError("bad-option", f"there is no test of an operator {operator!r}", do=do)
    told = {name: one.operators[operator] for name, one in found.items() if operator in one.operators}
    if as_json:
        _console.emit("list", {"operator": operator, "backends": told})
        return
    for name, one in told.items():
        shown = ", ".join(f"{count} {kind}" for kind, count in one.counts.items())
        click.echo(f"{name:<22}{shown}")
        reasons = [*dict.fromkeys(result.reason for result in one.others.values())]
        for reason in reasons[:MOST_REASONS]:
            click.echo(f"{'':<22}  {_console.printable(reason)}")
        if len(reasons) > MOST_REASONS:
            click.echo(f"{'':<22}  and {len(reasons) - MOST_REASONS} more reasons; --json has all")
