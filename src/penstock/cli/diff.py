"""penstock diff."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from penstock.cli import _console
from penstock.cli._options import common, config, given, sections
from penstock.cli._settings import checking, one

if TYPE_CHECKING:
    from penstock.data import DataSettings
    from penstock.model_difference import ModelDifference

EPILOG = """\b
Examples:
  penstock diff out-monday out-friday
  penstock diff out-laptop out-server --json
  penstock diff model.onnx slim.onnx
  penstock diff out/models/fp32/model.onnx out/models/int8/model.onnx --golden out/golden

Exit code 0: the same models, and of builds the same choice. 1: something differs. Measured times alone don't count.
"""
TITLES = {
    "input": "inputs", "setting": "settings", "tool": "tools", "machine": "machine", "variant": "models",
    "golden": "golden set", "verdict": "verdicts", "score": "accuracy", "latency": "latency", "chosen": "choice",
}  # fmt: skip
MOST = 20  # lines of a kind that are shown


@click.command(epilog=EPILOG)
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@click.option("--golden", default=None, type=click.Path(), help="Models: run both on this golden folder of a build.")
@click.option("--run/--no-run", "runs", default=True, help="Models: run both, on made-up inputs without others.")
@sections("check", "data")
@config
@common
def command(
    a: str, b: str, golden: str | None, runs: bool, config: str | None, as_json: bool, quiet: bool, verbose: bool,
    **values: Any,
) -> int:  # fmt: skip
    """Tell how two builds or two models differ.

    Of the builds in the folders A and B: what they were given, what came out, and why. Of two model files: nodes,
    attributes and shapes, weights and by how much, and what they compute.
    """
    if Path(a).is_file() and Path(b).is_file():
        from penstock.data import DataSettings

        flags = given(values)
        data = one("data", DataSettings, flags, config)
        with checking(flags, config):
            return _models(Path(a), Path(b), golden, runs, data, as_json, quiet)
    return _builds(Path(a), Path(b), as_json)


def _builds(a: Path, b: Path, as_json: bool) -> int:
    from penstock.difference import compare

    found = compare(a, b)
    counted = [one for one in found.followed if one.kind != "latency"]
    code = 0 if found.same_models and not counted else 1
    if as_json:
        _console.emit("diff", found)
        return code
    title = ""
    for change in found.causes:
        title = _title(change.kind, title)
        click.echo(f"  {change.name}: {_short(change.a)} → {_short(change.b)}")
    for one_ in found.followed:
        title = _title(one_.kind, title)
        click.echo(f"  {one_.name}: {one_.what}" + (f"\n      because: {one_.why}" if one_.why else ""))
    if not found.causes:
        click.echo("the same inputs, settings, tools and machine")
    if found.same_models:
        click.echo("the same models, byte for byte")
    return code


def _title(kind: str, before: str) -> str:
    if TITLES[kind] != before:
        click.echo(TITLES[kind])
    return TITLES[kind]


def _short(value: object) -> str:
    if value is None:
        return "absent"
    text = str(value)
    return text[:12] + "…" if len(text) == 64 and text.isalnum() else text


def _models(a: Path, b: Path, golden: str | None, runs: bool, data: DataSettings, as_json: bool, quiet: bool) -> int:
    from penstock.model_difference import compare

    with _console.progress(quiet) as progress:
        progress.begin("diff", "nodes and weights")
        found = compare(a, b)
        progress.end(f"{len(found.only_a) + len(found.only_b) + len(found.changed):,} nodes differ")
        if runs:
            progress.begin("diff", "running both")
            found = _run(found, a, b, golden, data)
            progress.end(f"{found.samples} samples")
    if as_json:
        _console.emit("diff", found)
    else:
        _show(found)
    return 0 if found.same else 1


def _run(found: ModelDifference, a: Path, b: Path, golden: str | None, data: DataSettings) -> ModelDifference:
    """Run both; where that can't be, the reason is a part of the answer."""
    from penstock import api
    from penstock.errors import PenstockError

    try:
        told = api.verify(b, golden or str(a), data=data, options={"optimization": "disabled"})  # as A is run
    except PenstockError as error:
        return replace(found, not_run=error.what)
    return replace(
        found, outputs=told.outputs, samples=told.samples, not_run="" if told.samples else told.outcome.reason
    )


def _show(found: ModelDifference) -> None:
    for title, lines in (
        ("interface", found.interface),
        ("opsets", found.opsets),
        ("operators", [f"{op}: {a} → {b}" for op, (a, b) in found.operators.items()]),
        ("only in A", [_node(place) for place in found.only_a]),
        ("only in B", [_node(place) for place in found.only_b]),
        ("changed", [f"{_node(c.node)}: {c.what}: {c.a} → {c.b}" for c in found.changed]),
        ("weights", [f"{w.name}: {w.what}{_by(w.max_abs, w.relative, w.share)}" for w in found.weights]),
    ):
        if lines:
            click.echo(title)
        for line in lines[:MOST]:
            click.echo(_console.printable(f"  {line}", limit=300))
        if len(lines) > MOST:
            click.echo(f"  and {len(lines) - MOST:,} more; --json lists them")
    click.echo(f"{found.same_weights:,} weights are the same")
    for name, gap in found.outputs.items():
        shown = "equal" if gap.equal else gap.reason or _gap(gap.relative, gap.sqnr_db, gap.mismatches)
        click.echo(_console.printable(f"output {name}: {shown}, over {found.samples} samples"))
    if found.not_run:
        click.echo(_console.printable(f"not run: {found.not_run}"))
    if found.same:
        click.echo("the same model" + (", as far as is known without running" if found.not_run else ""))


def _node(place: Any) -> str:
    return f"{place.scope}{place.op} {place.name or ''} → {', '.join(place.outputs)}"


def _by(max_abs: float | None, relative: float | None, share: float | None) -> str:
    if not max_abs:
        return ""
    return f"; {share:.1%} differ, by {max_abs:.3g} at most" + (f" ({relative:.2g} of the largest)" if relative else "")


def _gap(relative: float | None, sqnr_db: float | None, mismatches: float | None) -> str:
    if relative is None:
        return f"{mismatches:.2%} of the elements differ"
    return f"relative difference {relative:.2g}" + (f", SQNR {sqnr_db:.1f} dB" if sqnr_db is not None else "")
