"""penstock optimize."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from penstock.cli import _console
from penstock.cli._options import FileToWrite, common, config, given, sections
from penstock.cli._settings import checking, one

if TYPE_CHECKING:
    from penstock.stages.optimize import Optimized

EPILOG = """\b
Examples:
  penstock optimize model.onnx -o slim.onnx
  penstock optimize model.onnx -o slim.onnx --skip fold-constants
  penstock optimize model.onnx -o slim.onnx --verify-each --strict
  penstock optimize model.onnx -o slim.onnx --opset 20
  penstock optimize model.onnx -o for-ort.onnx --for ort
  penstock optimize model.onnx -o slim.onnx --trace steps.json --json

What happened to one node, and why not more: penstock explain model.onnx NODE
"""


@click.command(epilog=EPILOG)
@click.argument("model", type=click.Path())
@click.option("-o", "--output", type=FileToWrite(), required=True, help="The .onnx file to write.")
@click.option("--trace", type=FileToWrite(), default=None,
              help="Write every step there, as JSON: the graph as it came, and an event for each change.")  # fmt: skip
@sections("check", "optimize", short={"optimize__opset": "--opset"})
@config
@common
def command(
    model: str, output: str, trace: str | None, config: str | None, as_json: bool, quiet: bool, verbose: bool,
    **values: Any,
) -> int:  # fmt: skip
    """Run the passes over MODEL until none of them finds anything, prove the result, and tell what each did.

    The result is standard ONNX. It runs beside the original on made-up inputs, at several sizes of every dynamic axis;
    a pass that changes what the model computes is left out and named. Exit code 1 where --strict forbids that.
    """
    from penstock import api
    from penstock.stages.optimize import OptimizeSettings

    flags = given(values)
    settings = one("optimize", OptimizeSettings, flags, config)
    with _console.progress(quiet) as progress, checking(flags, config):
        progress.begin("optimize", model)
        done = api.optimize(model, output, settings, trace=trace)
        progress.end(f"{done.nodes_before:,} → {done.nodes_after:,} nodes")
    if as_json:
        _console.emit("optimize", {"output": output, **done.facts(), "measured": done.measured()})
        return 0
    _show(done)
    click.echo(f"wrote     {output}" + (f", {trace}" if trace else ""))
    return 0


def _show(done: Optimized) -> None:
    active = [record for record in done.passes if record.changes]
    if active:
        click.echo(f"{'pass':<34}{'changes':>8}{'nodes':>8}{'bytes a run':>14}{'ms':>8}")
    times = dict(zip((record.name for record in done.passes), done.seconds, strict=True))
    for record in active:
        saved = f"{-record.saved_bytes:+,}" if record.saved_bytes else "–"
        nodes = f"{-record.nodes_gone:+,}" if record.nodes_gone else "–"
        click.echo(f"{record.name:<34}{record.changes:>8,}{nodes:>8}{saved:>14}{times[record.name] * 1000:>8.1f}")
    for told in done.complaints():
        click.echo(_text(told))
    shown = 0
    for record in done.passes:
        for place in record.declined[:3]:
            if shown < 12:
                click.echo(_text(f"not done  {record.name} at {place.node}: {place.reason}"))
                shown += 1
    more = sum(len(record.declined) for record in done.passes) - shown
    if more > 0:
        click.echo(f"          and {more:,} more places; --json lists them")
    if (said := done.restated) is not None:
        changed = len({(change.node, change.op) for change in said.changes})
        count = {0: "none of the nodes is", 1: "1 node is"}.get(changed, f"{changed:,} nodes are")
        told = f"; functions are inlined, because of {said.inlined}" if said.inlined else ""
        click.echo(_text(f"opset     {said.opset_before} → {said.opset_after}; {count} said otherwise{told}"))
    state = "a fixpoint" if done.settled else "no fixpoint"
    nodes = f"{done.nodes_before:,} → {done.nodes_after:,}" if active else f"{done.nodes_after:,}, as before"
    click.echo(f"nodes     {nodes} (Constants don't count); {state} after {done.rounds} rounds")
    if (special := done.specialised) is not None:
        told = special.refused or f"→ {' → '.join(map(str, special.nodes))} nodes by its own optimizer"
        click.echo(
            _text(f"{special.runtime}  {told}" + ("" if special.refused else "; not portable: it runs there alone"))
        )
    click.echo(f"weights   {done.weight_bytes_before:,} → {done.weight_bytes_after:,} bytes")
    proof = done.proof
    told = f"{proof.runs} runs, largest relative difference {proof.worst:.1e}" if proof.runs else proof.oracle
    click.echo(
        _text(
            f"proof     {proof.state}" + (f": {told}" if told else "") + (f"; {proof.reason}" if proof.reason else "")
        )
    )
    own = done.specialised is not None and not done.specialised.refused
    if not active and not own and done.restated is None and not done.complaints():
        click.echo("nothing could be improved: the result computes what the model did, node for node")


def _text(line: str) -> str:
    return _console.printable(line, limit=400)  # nodes are called by names from the file
