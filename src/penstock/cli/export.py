"""penstock export."""

from __future__ import annotations

from typing import Any, cast

import click

from penstock.cli import _console
from penstock.cli._options import FileToWrite, common, config, given, sections
from penstock.cli._settings import checking, one

EPILOG = """\b
Examples:
  penstock export zoo:digits -o digits.onnx
  penstock export net.py:Net --weights net.safetensors --input 'x:float32[batch,3,32,32]' -o net.onnx
  penstock export net.py:Net --exporter torchscript --opset 13 --raw --input 'x:float32[batch,3,32,32]' -o net.onnx
"""


@click.command(epilog=EPILOG)
@click.argument("source", type=click.Path())
@click.option("-o", "--output", type=FileToWrite(), required=True, help="The .onnx file to write.")
@click.option("--weights", default="", help="Weights: .safetensors, or .pt with tensors only.")
@sections("check", "export", "data")
@config
@common
def command(
    source: str, output: str, weights: str, config: str | None, as_json: bool, quiet: bool, verbose: bool, **values: Any
) -> int:
    """Write the ONNX model of SOURCE and compare it with the source at several batch sizes."""
    from penstock import api
    from penstock.data import DataSettings
    from penstock.stages.export import ExportSettings

    flags = given(values)
    settings, data = one("export", ExportSettings, flags, config), one("data", DataSettings, flags, config)
    with _console.progress(quiet) as progress, checking(flags, config):
        progress.begin("export", source)
        done = api.export(source, output, settings, weights=weights, data=data)
        progress.end(output)
    if as_json:
        shown = {"output": output, "signature": done.signature, "facts": done.facts, "measured": done.measured}
        _console.emit("export", shown)
        return 0
    for spec in (*done.signature.inputs, *done.signature.outputs):
        click.echo(("input   " if spec in done.signature.inputs else "output  ") + spec.text())
    click.echo(f"opset   {done.facts.get('opset', 'as it was')}")
    if "not_proved" in done.facts:
        click.echo(f"not compared with the source: {done.facts['not_proved']}")
    differences = done.measured.get("relative_difference", {})
    if isinstance(differences, dict):
        for sizes, figure in differences.items():
            click.echo(f"proved  {sizes}: {figure:.2g} relative difference to the source")
    for note in cast("list[str]", done.facts.get("notes", [])):
        click.echo(_console.printable(f"note    {note}"))
    click.echo(f"wrote   {output}")
    return 0
