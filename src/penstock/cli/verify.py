"""penstock verify."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from penstock.cli import _console
from penstock.cli._options import backend_names, common, config, given, sections
from penstock.cli._settings import checking, one
from penstock.errors import UsageError

if TYPE_CHECKING:
    from penstock.stages.consistency import Matrix
    from penstock.stages.verify import Verification

EPILOG = """\b
Examples:
  penstock verify slim.onnx --against model.onnx
  penstock verify int8.onnx --against zoo:digits --data digits --logits output
  penstock verify int8.onnx --against out/golden --backend openvino --int8-sqnr-db 25
  penstock verify out --backends all
  penstock verify fp32.onnx int8.onnx --against fp32.onnx --backends onnxruntime,openvino,litert
  penstock verify out --backends all --baseline last-release --markdown summary.md
"""


@click.command(epilog=EPILOG)
@click.argument("models", type=click.Path(), nargs=-1, required=True)
@click.option("--against", default="", help="The source: a model, a PyTorch source, or a build's golden folder; "
              "of a build's folder its own golden set.")  # fmt: skip
@click.option("--weights", default="", help="Weights of a PyTorch source.")
@click.option("--backend", default=None, shell_complete=backend_names,
              help="Backend to run one model on (default: onnxruntime).")  # fmt: skip
@click.option("--backends", default=None, shell_complete=backend_names,
              help="Backends to run all models on, comma-separated, or all: those that can run here.")  # fmt: skip
@click.option(
    "--baseline",
    default=None,
    type=click.Path(),
    help="An earlier build, or what an earlier run with --backends and --json printed: what got worse is a breach.",
)
@click.option("--markdown", default=None, type=click.Path(), help="Write a summary in Markdown into this file too.")
@click.option(
    "--threads", default=1, show_default=True, type=click.IntRange(1), help="Threads of each, with --backends."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the data roles and made-up inputs.")
@sections("check", "verify", "data")
@config
@common
def command(
    models: tuple[str, ...], against: str, weights: str, backend: str | None, backends: str | None,
    baseline: str | None, markdown: str | None, threads: int, seed: int, config: str | None,
    as_json: bool, quiet: bool, verbose: bool, **values: Any,
) -> int:  # fmt: skip
    """Hold MODELS' outputs against those of their source. Exit code 1 when one is refused.

    With --backends: every model, or every variant of a build's folder, on every backend, as a matrix.
    """
    from penstock.data import DataSettings
    from penstock.stages.verify import VerifySettings

    flags = given(values)
    settings, data = one("verify", VerifySettings, flags, config), one("data", DataSettings, flags, config)
    if backends is None and len(models) == 1 and not Path(models[0]).is_dir():
        _alone(baseline, markdown, against)
        with _console.progress(quiet) as progress, checking(flags, config):
            from penstock import api

            progress.begin("verify", models[0])
            chosen = backend or "onnxruntime"
            found = api.verify(models[0], against, settings, backend=chosen, data=data, weights=weights, seed=seed)
            progress.end(f"{found.samples} samples")
        return _told(found, as_json)
    from penstock import crossing, store
    from penstock.settings import split

    if backend and backends:
        raise UsageError("bad-setting", "--backend and --backends can't be given together", where="--backend")
    with _console.progress(quiet) as progress, checking(flags, config):
        matrix = crossing.crossed(
            models, against, settings, backends=split(backends or backend or crossing.ALL), data=data, weights=weights,
            seed=seed, threads=threads, baseline=baseline, progress=progress,
        )  # fmt: skip
    if as_json:
        _console.emit("verify", matrix)
    else:
        _show(matrix)
    if markdown:  # last: where it can't be written, what was found is shown
        store.write_bytes(Path(markdown), crossing.markdown(matrix).encode())
    return 0 if matrix.holds else 1


def _alone(baseline: str | None, markdown: str | None, against: str) -> None:
    """Raise ``UsageError`` for what only a matrix has, and where there is no source."""
    asked = {"--baseline": baseline, "--markdown": markdown}
    if wrong := next((flag for flag, value in asked.items() if value), ""):
        raise UsageError("bad-setting", f"{wrong} goes with --backends", where=wrong, do="add --backends onnxruntime")
    if not against:
        raise UsageError("no-reference", "there is nothing to hold the model against", where="--against",
                         do="name the source with --against, or give a build's folder")  # fmt: skip


def _told(found: Verification, as_json: bool) -> int:
    """Print what a model's outputs are like, one by one."""
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
    if found.steps is not None:
        console.print(f"{found.steps} steps of the output's grid from ONNX Runtime's integers at most")
    console.print("passed" if found.outcome.passed else f"refused: {found.outcome.reason}", markup=False)
    return 0 if found.outcome.passed else 1


def _show(matrix: Matrix) -> None:
    """Print the drift matrix, then each cell's figures, then what can't be run, differs, or got worse."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from penstock.crossing import shown

    console = _console.stdout()
    backends = list(dict.fromkeys(cell.backend for cell in matrix.cells if cell.state != "not here"))
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title="largest difference, to the largest value", title_justify="left"
    )
    table.add_column("backend")
    variants = list(dict.fromkeys(cell.variant for cell in matrix.cells))
    for variant in variants:
        table.add_column(Text(variant), justify="right")
    for backend in backends:
        table.add_row(Text(backend), *(Text(shown(matrix.cell(variant, backend))) for variant in variants))
    console.print(table)
    figures = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("deployment", "max abs", "SQNR dB", "KL", "top-1 flips", "worst sample", "of output"):
        figures.add_column(column, justify="left" if column in ("deployment", "of output") else "right")
    for cell in (cell for cell in matrix.cells if cell.outputs):
        figures.add_row(
            Text(cell.name), _shown(cell.max_abs), "–" if cell.sqnr_db is None else f"{cell.sqnr_db:.1f}",
            _shown(cell.kl), "–" if cell.flips is None else f"{cell.flips:.2%}",
            "–" if cell.worst_sample is None else str(cell.worst_sample), Text(cell.worst_output),
        )  # fmt: skip
    if figures.row_count:
        console.print(figures)
    absent: set[str] = set()
    for cell in matrix.cells:
        if cell.reason and (cell.state != "not here" or cell.backend not in absent):  # a backend that isn't here, once
            absent |= {cell.backend} if cell.state == "not here" else set()
            name = cell.backend if cell.state == "not here" else cell.name
            console.print(_console.printable(f"{name}: {cell.state}: {cell.reason}"), markup=False)
    for cell in matrix.cells:
        if cell.note:
            console.print(_console.printable(f"{cell.name}: {cell.note}"), markup=False)
    for name, how_many in matrix.shortened.items():
        console.print(_console.printable(f"{name}: ran {how_many}"), markup=False)
    for name in matrix.unrun:
        console.print(_console.printable(f"{name}: no backend could run it"), markup=False)
    for name, why in matrix.regressions.items():
        console.print(_console.printable(f"{name}: worse than before: {why}"), markup=False)
    told = f"{matrix.samples} samples, held against {matrix.computed_by}"
    console.print(f"{told}: {'consistent' if matrix.holds else 'not consistent'}", markup=False)


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
