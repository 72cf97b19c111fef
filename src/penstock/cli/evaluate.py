"""penstock evaluate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from penstock.cli import _console
from penstock.cli._options import backend_names, common, config, given, sections
from penstock.cli._settings import checking, one

EPILOG = """\b
Examples:
  penstock evaluate model.onnx --data digits
  penstock evaluate fp32.onnx int8.onnx --data cifar-10-batches-bin
  penstock evaluate model.onnx --data samples.npz --metric scores:mean_iou --backend openvino --json
"""


@click.command(epilog=EPILOG)
@click.argument("models", nargs=-1, required=True, type=click.Path())
@click.option("--backend", default="onnxruntime", show_default=True, shell_complete=backend_names,
              help="Backend to run the models on.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the data roles.")
@sections("check", "evaluate", "data")
@config
@common
def command(
    models: tuple[str, ...], backend: str, seed: int, config: str | None, as_json: bool, quiet: bool, verbose: bool,
    **values: Any,
) -> int:  # fmt: skip
    """Score MODELS on the evaluate role of the data; each after the first is also compared with the first."""
    import numpy as np

    from penstock import api
    from penstock.data import DataSettings
    from penstock.stages.evaluate import EvaluateSettings

    flags = given(values)
    settings, data = one("evaluate", EvaluateSettings, flags, config), one("data", DataSettings, flags, config)
    with _console.progress(quiet) as progress, checking(flags, config):
        found = api.evaluate(models, data, settings, backend=backend, seed=seed, progress=progress)
    if as_json:
        shown = [replace(item, evaluation=replace(item.evaluation, scores=np.zeros(0))) for item in found]
        _console.emit("evaluate", shown)
        return 0
    for item in found:
        score, gap = item.evaluation, item.difference
        line = f"{item.deployment}: {score.metric} {100 * score.score:.2f} % of {score.samples:,} samples"
        line += f" (95 % interval {100 * score.low:.2f}–{100 * score.high:.2f})"
        if gap is not None:
            line += f", {100 * gap.difference:+.2f} points to {found[0].deployment}"
            line += f" ({100 * gap.low:+.2f} to {100 * gap.high:+.2f})"
        click.echo(line)
        if item.caution:
            click.echo(_console.printable(f"caution: {item.deployment}: {item.caution}"))
    return 0
