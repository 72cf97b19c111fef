"""penstock qat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from penstock.cli import _console
from penstock.cli._options import FileToWrite, common, config, given, of_class, sections
from penstock.cli._settings import checking, one

if TYPE_CHECKING:
    from penstock.qat import Result

EPILOG = """\b
Examples:
  penstock qat zoo:cifar10 --data cifar-10-batches-bin --epochs 2 --flip --crop 4 -o int8.onnx
  penstock qat net.py:Net --weights net.safetensors --data train.npz --exclude node_conv2d -o int8.onnx
  penstock qat model.onnx --data images/ --checkpoint run.checkpoint --float-output trained.onnx -o int8.onnx
  penstock qat model.onnx --data samples.npz --epochs 0 --json -o int8.onnx

A module of your own with a loop of your own: see penstock.qat in Python.
"""


@click.command(epilog=EPILOG)
@click.argument("source", type=click.Path())
@click.option("-o", "--output", type=FileToWrite(), required=True, help="The int8 .onnx file to write.")
@click.option("--float-output", type=FileToWrite(), default=None,
              help="A float .onnx file to write the trained weights to as well.")  # fmt: skip
@click.option("--checkpoint", type=FileToWrite(), default=None,
              help="A file that keeps the run after each epoch; the same command goes on from it.")  # fmt: skip
@click.option("--weights", default="", help="Weights of a PyTorch source: .safetensors, or .pt with tensors only.")
@click.option("--threads", type=click.IntRange(min=0), default=0, show_default=True,
              help="Threads of torch (0: its own choice).")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the data roles and of the training.")
@of_class("training", "penstock.qat.settings:Recipe")
@of_class("qat", "penstock.qat.settings:QatSettings")
@sections("check", "export", "data")
@config
@common
def command(
    source: str, output: str, float_output: str | None, checkpoint: str | None, weights: str, threads: int, seed: int,
    config: str | None, as_json: bool, quiet: bool, verbose: bool, **values: Any,
) -> int:  # fmt: skip
    """Train SOURCE on the grids of its int8 model, and write that model.

    The training samples of the data are trained on, but for those that the golden set, the select role and the evaluate
    role hold. The best epoch by the select role is kept; no training at all is one of those compared.
    """
    from penstock import qat
    from penstock.data import DataSettings
    from penstock.stages.export import ExportSettings

    flags = given(values)
    recipe, settings = one("training", qat.Recipe, flags, config), one("qat", qat.QatSettings, flags, config)
    export, data = one("export", ExportSettings, flags, config), one("data", DataSettings, flags, config)
    with _console.progress(quiet) as progress, checking(flags, config):
        done = qat.run(
            source, output, data, settings, recipe, export=export, weights=weights, seed=seed, threads=threads,
            float_output=float_output, checkpoint=checkpoint, progress=progress,
        )  # fmt: skip
    if as_json:
        _console.emit("qat", done)
        return 0
    _show(done)
    return 0


def _show(done: Result) -> None:
    samples, same = f"{done.select_samples:,} select samples", done.agreement
    for epoch in done.fitted.epochs:
        kept = ", kept" if epoch.index == done.fitted.chosen else ""
        when = "before" if epoch.index == 0 else f"epoch {epoch.index}"
        click.echo(f"{when:<9} {_percent(epoch.accuracy)} right, {_percent(epoch.agreement)} as the float model{kept}")
    low, high = done.interval
    gain = 100 * (done.accuracy - done.float_accuracy)
    told = f"95 % interval {100 * low:.2f}–{100 * high:.2f}"
    click.echo(f"int8      {_percent(done.accuracy)} of {samples} right ({told}), {gain:+.2f} points to the float one")
    click.echo(f"agreement {_percent(same.top1)} of the int8 model's answers in ONNX Runtime are the trained module's")
    for note in done.notes:
        click.echo(_console.printable(f"note      {note}"))
    if done.converted.float_output:
        click.echo(f"wrote     {done.converted.float_output}")
    click.echo(f"wrote     {done.converted.output}: {done.converted.size_bytes / 1e6:.2f} MB")


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.2f} %"
