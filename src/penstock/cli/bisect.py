"""penstock bisect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from penstock.cli import _console
from penstock.cli._options import backend_names, common, config, given, sections
from penstock.cli._settings import checking, one

if TYPE_CHECKING:
    from penstock.stages.bisect import Found, Tensor

EPILOG = """\b
Examples:
  penstock bisect model.onnx --backend openvino --against onnxruntime
  penstock bisect int8.onnx --backend litert --against onnxruntime --data digits
  penstock bisect slim.onnx model.onnx
"""


@click.command(epilog=EPILOG)
@click.argument("model", type=click.Path())
@click.argument("other", type=click.Path(), required=False)
@click.option("--backend", default="onnxruntime", show_default=True, shell_complete=backend_names,
              help="Backend to run MODEL on.")  # fmt: skip
@click.option("--against", default="onnxruntime", show_default=True, shell_complete=backend_names,
              help="Backend to run OTHER on, or MODEL again.")  # fmt: skip
@click.option("--bound", default=None, type=click.FloatRange(min=0.0, min_open=True),
              help="Largest difference to the largest value (default: by the precision, 1e-4 of float32).")  # fmt: skip
@click.option("-o", "--output", default=None, type=click.Path(file_okay=False),
              help="Write the node alone, its inputs and both results into this folder.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the data roles and made-up inputs.")
@sections("check", "data")
@config
@common
def command(
    model: str, other: str | None, backend: str, against: str, bound: float | None, output: str | None, seed: int,
    config: str | None, as_json: bool, quiet: bool, verbose: bool, **values: Any,
) -> int:  # fmt: skip
    """Find the first node where two backends, or two models of one source, part.

    Exit code 0 where they agree, 1 where a node was found.
    """
    from penstock import bisecting
    from penstock.data import DataSettings

    flags = given(values)
    ran: list[bisecting.Ran] = []
    with _console.progress(quiet) as progress, checking(flags, config):
        found = bisecting.bisect(
            model, other, backend=backend, against=against, bound=bound, data=one("data", DataSettings, flags, config),
            seed=seed, into=None if output is None else Path(output), progress=progress, ran=ran,
        )  # fmt: skip
    fuses = found is not None and any(name.partition(":")[0] not in LITERAL for name in (backend, against))
    if as_json:
        told = {"agree": found is None, "found": found, "ran": ran, "cut_changes_fusion": fuses}
        _console.emit("bisect", told)
    elif found is None:
        click.echo("they agree")
    else:
        sides = [backend, against]
        if other is not None:
            sides = [name if backend == against else f"{name}, {on}"
                     for name, on in zip(_called(model, other), sides, strict=True)]  # fmt: skip
        _show(found, *sides)
        if fuses and found.confirmed:
            click.echo("  a runtime fuses nodes when it compiles a model; cut out, this one was compiled by itself")
    for side in ran if not as_json else ():
        if side.fell_back:
            click.echo(_console.printable(f"caution: {side.label}: {side.fell_back}"), err=True)
    return 0 if found is None else 1


def _called(one: str, other: str) -> tuple[str, str]:
    """Call two models by their files' names where those differ."""
    names = Path(one).name, Path(other).name
    return names if names[0] != names[1] else (one, other)


LITERAL = ("reference", "tflite-micro")  # they run a model node by node, as it is written
SHOWN = 8  # names of nodes in a line


def _show(found: Found, backend: str, against: str) -> None:
    def say(text: str) -> None:
        click.echo(_console.printable(text))

    say(f"{found.op} {found.node!r}, node {found.position} of {found.nodes}")
    if found.among:
        more = f" and {len(found.among) - SHOWN} more" if len(found.among) > SHOWN else ""
        say(f"  among {len(found.among)} nodes that weren't cut apart there: {', '.join(found.among[:SHOWN])}{more}")
    for name, gap in found.difference.items():
        say(f"  in the model  {name!r} differs by {_level(gap)}, {found.bound:.2g} is the bound")
    for name, gap in found.alone.items():
        say(f"  alone, on the same inputs  {name!r} differs by {_level(gap)}")
    if not found.alone:
        say("  not confirmed: they can't be run without their neighbours there")
    elif not found.confirmed:
        say("  not confirmed: alone it agrees. What differs built up before it, or comes of how nodes are fused;")
        say("  cutting a model takes fusions apart")
    for tensor in found.inputs:
        say(f"  reads  {_told(tensor)}")
    for ours, theirs in found.outputs:
        say(f"  makes  {_told(ours)}  ({backend})")
        say(f"         {_told(theirs)}  ({against})")
    for file in found.files:
        say(f"wrote {file}")


def _level(gap: Any) -> str:
    if gap.reason and gap.max_abs is None:
        return str(gap.reason)
    if gap.nonfinite:
        return f"{gap.nonfinite} NaNs or infinities"
    return (
        f"{gap.relative:.2g} of the largest value"
        if gap.relative is not None
        else f"{gap.mismatches:.2%} of the values"
    )


def _told(one: Tensor) -> str:
    shape = ",".join(map(str, one.shape))
    if one.low is None:
        return f"{one.name}:{one.dtype}[{shape}]"
    bad = f", {one.nonfinite} NaNs or infinities" if one.nonfinite else ""
    return (
        f"{one.name}:{one.dtype}[{shape}]  {one.low:.4g} to {one.high:.4g}, mean {one.mean:.4g}, std {one.std:.4g}, "
        f"{one.zeros:.0%} zeros{bad}"
    )
