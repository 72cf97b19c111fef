"""penstock search."""

from __future__ import annotations

from typing import Any

import click

from penstock.cli import _console
from penstock.cli._options import FileToWrite, common, config, given, sections
from penstock.cli._settings import checking, one
from penstock.stages.search import UNREAD

EPILOG = """\b
Examples:
  penstock search model.onnx --data digits -o best.onnx
  penstock search model.onnx --data images/ --max-drop 0.2 --evaluations 12 -o best.onnx
  penstock search model.onnx --data samples.npz --objective size -o small.onnx
"""


@click.command(epilog=EPILOG)
@click.argument("model", type=click.Path())
@click.option("-o", "--output", type=FileToWrite(), required=True, help="The .onnx file to write.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the data roles.")
@sections("check", "search", "quantize", "data", "evaluate", "bench", hidden=UNREAD)
@config
@common
def command(
    model: str, output: str, seed: int, config: str | None, as_json: bool, quiet: bool, verbose: bool, **values: Any
) -> int:
    """Find the fastest quantized MODEL within an accuracy budget, by measuring accuracy and latency.

    Ends with 1, and writes nothing, where no model fits. A search that was interrupted goes on when it is run again.
    """
    from penstock import searching
    from penstock.data import DataSettings
    from penstock.stages.bench import BenchSettings
    from penstock.stages.evaluate import EvaluateSettings
    from penstock.stages.quantize import QuantizeSettings
    from penstock.stages.search import SearchSettings

    flags = given(values)
    settings, data = one("search", SearchSettings, flags, config), one("data", DataSettings, flags, config)
    base = one("quantize", QuantizeSettings, flags, config)
    evaluating, timing = one("evaluate", EvaluateSettings, flags, config), one("bench", BenchSettings, flags, config)
    with _console.progress(quiet) as progress, checking(flags, config):
        found = searching.search(
            model, output, data, settings, quantize=base, evaluate=evaluating, bench=timing, seed=seed,
            progress=progress, asked=flags,
        )  # fmt: skip
    if as_json:
        _console.emit("search", found)
        return 0 if found.chosen else 1
    from penstock.cli import _search

    _search.show(found, settings, output)
    return 0 if found.chosen else 1
