"""penstock convert."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from penstock.cli import _console
from penstock.cli._options import FileToWrite, common, config, given, sections
from penstock.cli._settings import checking

if TYPE_CHECKING:
    from collections.abc import Sequence

    from penstock.opsets import Refused
    from penstock.stages.convert import Conversion

EPILOG = """\b
Examples:
  penstock convert model.onnx -o old.onnx --opset 11
  penstock convert model.onnx -o lowest.onnx --opset lowest
  penstock convert model.onnx -o new.onnx --opset 21 --no-proof
  penstock convert model.onnx -o old.onnx --opset 13 --json

What changed in an operator, and which of it can be converted: penstock explain Resize
"""
SHOWN = 40  # kinds of changes that are printed


@click.command(epilog=EPILOG)
@click.argument("model", type=click.Path())
@click.option("-o", "--output", type=FileToWrite(), required=True, help="The .onnx file to write.")
@click.option("--opset", metavar="N|lowest", required=True,
              help="The opset to write, or lowest: the lowest that every node can be said in.")  # fmt: skip
@click.option("--proof/--no-proof", "prove", default=True, help="Run the result beside the original and compare.")
@click.option("--proof-seconds", type=click.FloatRange(min=0.1), default=20.0, show_default=True,
              help="Longest that the proof may run the models.")  # fmt: skip
@sections("check")
@config
@common
def command(
    model: str, output: str, opset: str, prove: bool, proof_seconds: float, config: str | None, as_json: bool,
    quiet: bool, verbose: bool, **values: Any,
) -> int:  # fmt: skip
    """Say MODEL in another opset, newer or older, and tell what became of each node.

    Control flow and local functions are converted too. The result runs beside the original on made-up inputs. Exit code
    1, with every node and its reason, where the opset has no words for what a node means; nothing is written then.
    """
    from penstock import api
    from penstock.errors import UsageError
    from penstock.opsets.whole import NotConvertibleError
    from penstock.stages.convert import ConvertSettings

    if opset != "lowest" and not opset.isdigit():
        raise UsageError("unknown-opset", f"{opset!r} is no opset", do="give a number, or lowest")
    flags = given(values)
    settings = ConvertSettings(proof=prove, proof_seconds=proof_seconds)
    with _console.progress(quiet) as progress, checking(flags, config):
        progress.begin("convert", model)
        try:
            done = api.convert(model, output, "lowest" if opset == "lowest" else int(opset), settings)
        except NotConvertibleError as error:
            if as_json:
                _console.emit("convert", {"output": None, "refused": error.nodes})
            else:
                _refuse(error.nodes, opset)
            return 1
        progress.end(f"opset {done.opset_before} → {done.opset_after}")
    if as_json:
        _console.emit("convert", {"output": output, "refused": (), **{
            name: getattr(done, name) for name in done.__dataclass_fields__}})  # fmt: skip
        return 0
    _show(done)
    click.echo(f"wrote     {output}")
    return 0


def _refuse(nodes: Sequence[Refused], opset: str) -> None:
    for node in nodes:
        inside = f" in the function {node.function}" if node.function else ""
        click.echo(_text(f"refused   {node.op} {node.node!r}{inside}: {node.reason}"))
    count = "1 node" if len(nodes) == 1 else f"{len(nodes):,} nodes"
    click.echo(f"{count} can't be said in opset {opset} with the same meaning; nothing was written")


def _show(done: Conversion) -> None:
    alike: dict[tuple[int, str, str], list[str]] = {}
    for change in done.changes:
        alike.setdefault((change.opset, change.op, change.what), []).append(change.node)
    for (number, op, what), nodes in list(alike.items())[:SHOWN]:
        shown = ", ".join(nodes[:3]) + (f" and {len(nodes) - 3:,} more" if len(nodes) > 3 else "")
        click.echo(_text(f"opset {number:<4}{op}: {what} ({shown})"))
    if len(alike) > SHOWN:
        click.echo(f"          and {len(alike) - SHOWN:,} more changes; --json lists them node by node")
    if done.inlined:
        click.echo(_text(f"functions are inlined, because of {done.inlined}"))
    for node in done.limits[:5]:
        inside = f" in the function {node.function}" if node.function else ""
        click.echo(_text(f"limit     {node.op} {node.node!r}{inside}: {node.reason}"))
    if len(done.limits) > 5:
        click.echo(f"          and {len(done.limits) - 5:,} more nodes like this")
    click.echo(f"opset     {done.opset_before} → {done.opset_after}, "
               f"IR version {done.ir_version_before} → {done.ir_version_after}")  # fmt: skip
    changed = len({(change.node, change.op) for change in done.changes})
    counts = f"{done.nodes_before:,} → {done.nodes_after:,} (Constants don't count)"
    click.echo(f"nodes     {counts}; {changed:,} of them are said otherwise, the others stay as they are")
    proof = done.proof
    told = f": {proof.runs} runs, largest relative difference {proof.worst:.1e}" if proof.runs else ""
    click.echo(_text(f"proof     {proof.state}{told}" + (f"; {proof.reason}" if proof.reason else "")))


def _text(line: str) -> str:
    return _console.printable(line, limit=400)  # nodes are called by names from the file
