"""penstock quantize."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import click

from penstock.cli import _console, _layers
from penstock.cli._options import FileToWrite, common, config, given, sections
from penstock.cli._settings import checking, one

if TYPE_CHECKING:
    from penstock.jsonable import Json

EPILOG = """\b
Examples:
  penstock quantize model.onnx --data digits -o int8.onnx
  penstock quantize model.onnx --data samples.npz --calibrate-samples 256 -o int8.onnx
  penstock quantize model.onnx --data new.npz --golden build/golden -o int8.onnx
  penstock quantize model.onnx --data images/ --exclude /head/Conv --per-tensor -o int8.onnx
"""


@click.command(epilog=EPILOG)
@click.argument("model", type=click.Path())
@click.option("-o", "--output", type=FileToWrite(), required=True, help="The .onnx file to write.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the data roles and made-up inputs.")
@click.option(
    "--golden", type=click.Path(), metavar="FOLDER",
    help="An earlier build's golden folder, which the samples' scale is held against.",
)  # fmt: skip
@click.option("--explain", is_flag=True, help="Tell of each layer what was done, its range, and why any is in float.")
@sections("check", "quantize", "data")
@config
@common
def command(
    model: str, output: str, seed: int, golden: str | None, explain: bool, config: str | None, as_json: bool,
    quiet: bool, verbose: bool, **values: Any,
) -> int:  # fmt: skip
    """Make a quantized MODEL: int8 by default, its ranges from the calibration samples."""
    from penstock import api
    from penstock.data import DataSettings
    from penstock.errors import UsageError
    from penstock.stages.quantize import QuantizeSettings

    flags = given(values)
    asked = flags.get("quantize", {})
    for flag, is_given in (
        ("--no-quantize", asked.get("quantize") is False),
        ("--also-methods", "also_methods" in asked),
    ):
        if is_given:
            what = f"{flag} says what a build makes, and this command makes one quantized model"
            raise UsageError("bad-setting", what, where=flag, do="leave it out; --method names the method")
    settings, data = one("quantize", QuantizeSettings, flags, config), one("data", DataSettings, flags, config)
    with _console.progress(quiet) as progress, checking(flags, config):
        progress.begin("quantize", model)
        # what a settings file says for the other methods of a build is nothing that was asked for here
        done = api.quantize(model, output, settings, data=data, seed=seed, asked=asked, golden=golden)
        progress.end(output)
    if as_json:
        _console.emit("quantize", done)
        return 0
    facts = done.facts
    for note in cast("list[str]", facts.get("notes") or []):
        click.echo(f"note: {note}")
    if facts.get("calibration_samples"):
        in_batches = f", in batches of {facts['calibration_batch']}" if "calibration_batch" in facts else ""
        made = f": {facts['calibration']}" if facts.get("calibration", "data") != "data" else ""
        others = _others(done.calibrated_on)
        click.echo(f"calibrated on {facts['calibration_samples']} samples{in_batches}{others}{made}")
    if explain:
        _layers.show_statistics(facts)
        _layers.show(facts)
    left = facts.get("operators_left_in_float")
    if isinstance(left, list) and left:
        click.echo(f"left in float: {', '.join(map(str, left))}")
    click.echo(f"wrote {output}: {done.size_bytes / 1e6:.2f} MB")
    return 0


def _others(calibrated_on: Mapping[str, Json]) -> str:
    """Say how many samples the data has that don't calibrate."""
    whole, used = calibrated_on.get("of"), calibrated_on.get("samples")
    if not isinstance(whole, int) or not isinstance(used, int) or whole == used:
        return ""
    return f"; the rest of the {whole:,} is left for other roles"
