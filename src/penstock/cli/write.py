"""penstock write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import click

from penstock.cli import _console
from penstock.cli._options import FileToWrite, common, config, given, of_class, sections
from penstock.cli._settings import checking, one

if TYPE_CHECKING:
    from collections.abc import Mapping

    from penstock.jsonable import Json

EPILOG = """\b
Examples:
  penstock write model.onnx -o model.tflite
  penstock write model.onnx -o model.tflite --batch 8 --layout nhwc
  penstock write detector.onnx -o detector.tflite --sizes height=160,width=160
  penstock write int8.onnx -o board.tflite --ends int8 --layout nhwc --json
"""


@click.command(epilog=EPILOG)
@click.argument("model", type=click.Path())
@click.option("-o", "--output", type=FileToWrite(), required=True, help="The .tflite file to write.")
@of_class("tflite", "penstock.targets.tflite:TfliteSettings")
@sections("check")
@config
@common
def command(
    model: str, output: str, config: str | None, as_json: bool, quiet: bool, verbose: bool, **values: Any
) -> int:
    """Write MODEL, float or quantized, as a TensorFlow Lite file, without TensorFlow.

    Sizes are fixed. Convolutions get their channels last; what has to be transposed for that is at the border. A layer
    between QuantizeLinear and DequantizeLinear computes on int8, all others in float. What TFLite has no words for is
    refused, node by node.
    """
    from penstock import api
    from penstock.targets.tflite import TfliteSettings

    flags = given(values)
    settings = one("tflite", TfliteSettings, flags, config)
    with _console.progress(quiet) as progress, checking(flags, config):
        progress.begin("write", model)
        done = api.write(model, output, settings)
        progress.end(f"{cast(int, done['size_bytes']) / 1e6:.2f} MB")
    if as_json:
        _console.emit("write", {"output": output, **done})
        return 0
    _show(done)
    click.echo(f"wrote     {output}: {cast(int, done['size_bytes']) / 1e6:.2f} MB")
    return 0


def _show(done: Mapping[str, Json]) -> None:
    operators = cast("Mapping[str, int]", done["operators"])
    click.echo("operators " + ", ".join(f"{count} {name}" for name, count in operators.items()))
    computing = cast(int, done["operators_on_integers"]) + cast(int, done["operators_in_float"])
    click.echo(f"integers  {done['operators_on_integers']} of {computing} operators compute on int8")
    for name, shape in cast("Mapping[str, list[int]]", {**done["inputs"], **done["outputs"]}).items():  # type: ignore[dict-item]
        click.echo(_console.printable(f"tensor    {name} {shape}"))
