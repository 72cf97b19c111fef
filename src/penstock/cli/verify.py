"""penstock verify."""

from __future__ import annotations

from typing import Any

import click

from penstock.cli import _console
from penstock.cli._options import backend_names, common, config, given, sections
from penstock.cli._settings import checking, one

EPILOG = """\b
Examples:
  penstock verify slim.onnx --against model.onnx
  penstock verify int8.onnx --against zoo:digits --data digits --logits output
  penstock verify int8.onnx --against out/golden --backend openvino --int8-sqnr-db 25
"""


@click.command(epilog=EPILOG)
@click.argument("model", type=click.Path())
@click.option("--against", required=True, help="The source: a model, a PyTorch source, or a build's golden folder.")
@click.option("--weights", default="", help="Weights of a PyTorch source.")
@click.option("--backend", default="onnxruntime", show_default=True, shell_complete=backend_names,
              help="Backend to run MODEL on.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the data roles and made-up inputs.")
@sections("check", "verify", "data")
@config
@common
def command(
    model: str, against: str, weights: str, backend: str, seed: int, config: str | None, as_json: bool, quiet: bool,
    verbose: bool, **values: Any,
) -> int:  # fmt: skip
    """Hold MODEL's outputs against those of its source. Exit code 1 when it is refused."""
    from penstock import api
    from penstock.data import DataSettings
    from penstock.stages.verify import VerifySettings

    flags = given(values)
    settings, data = one("verify", VerifySettings, flags, config), one("data", DataSettings, flags, config)
    with _console.progress(quiet) as progress, checking(flags, config):
        progress.begin("verify", model)
        found = api.verify(model, against, settings, backend=backend, data=data, weights=weights, seed=seed)
        progress.end(f"{found.samples} samples")
    if as_json:
        _console.emit("verify", found)
        return 0 if found.outcome.passed else 1
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    columns = ("output", "max abs", "mean abs", "relative", "cosine", "SQNR dB", "KL", "top-1 agrees", "worst sample")
    for column in columns:
        table.add_column(column, justify="left" if column == "output" else "right")
    for name, d in found.outputs.items():
        table.add_row(
            name, _shown(d.max_abs), _shown(d.mean_abs), _shown(d.relative),
            "–" if d.cosine is None else f"{d.cosine:.6f}", "–" if d.sqnr_db is None else f"{d.sqnr_db:.1f}",
            _shown(d.kl), "–" if d.top1_agreement is None else f"{d.top1_agreement:.2%}",
            "–" if d.worst_sample is None else str(d.worst_sample),
        )  # fmt: skip
    console = _console.stdout()
    if found.outputs:
        console.print(table)
    made_up = " (inputs made from the signature)" if found.inputs.get("kind") == "seeded" else ""
    console.print(f"{found.samples} samples{made_up}")
    console.print("passed" if found.outcome.passed else f"refused: {found.outcome.reason}", markup=False)
    return 0 if found.outcome.passed else 1


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
