"""penstock bench."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from penstock.cli import _console
from penstock.cli._options import backend_names, common, config, given, sections
from penstock.cli._settings import checking, one

if TYPE_CHECKING:
    from rich.table import Table

    from penstock.timing.figures import Timing

EPILOG = """\b
Examples:
  penstock bench fp32.onnx int8.onnx
  penstock bench model.onnx --backends onnxruntime,openvino --bench-seconds 5
  penstock bench model.onnx --backends onnxruntime,onnxruntime:optimization=basic --nodes 5
  penstock bench fp32.onnx int8.onnx --threads 2 --io-binding --json
"""


@click.command(epilog=EPILOG)
@click.argument("models", nargs=-1, required=True, type=click.Path())
@click.option("--backends", default="onnxruntime", show_default=True, shell_complete=backend_names,
              help="Backends, comma-separated.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the data roles and made-up inputs.")
@sections("check", "bench", "data")
@config
@common
def command(
    models: tuple[str, ...],
    backends: str,
    seed: int,
    config: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **values: Any,
) -> int:
    """Time MODELS on the backends in interleaved rounds; ratios are to the first, with a 95 % interval."""
    import numpy as np

    from penstock import api, settings
    from penstock.data import DataSettings
    from penstock.stages.bench import BenchSettings

    flags = given(values)
    asked, data = one("bench", BenchSettings, flags, config), one("data", DataSettings, flags, config)
    with _console.progress(quiet) as progress, checking(flags, config):
        found = api.bench(models, asked, backends=settings.split(backends), data=data, progress=progress, seed=seed)
    if as_json:
        bare = tuple(replace(timing, samples_ns=np.zeros(0)) for timing in found.timings)
        _console.emit("bench", replace(found, timings=bare))
        return 0 if found.timings else 1
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    headers = ("deployment", "p50 ms", "p95 ms", "p99 ms", "min ms", "load ms", "first ms", "peak MB", "per s", "ratio")
    for header in headers:
        table.add_column(header, justify="left" if header == "deployment" else "right", no_wrap=header == "deployment")
    for t in found.timings:
        peak, speed = t.memory.peak_mb, t.throughput.samples_per_s
        ratio = "baseline" if t.name == found.baseline else t.to_baseline.text() if t.to_baseline else "–"
        table.add_row(
            t.name, f"{t.p50_ms:.3f}", f"{t.p95_ms:.3f}", f"{t.p99_ms:.3f}", f"{t.min_ms:.3f}", f"{t.load_ms:.1f}",
            f"{t.first_run_ms:.2f}", "–" if peak is None else f"{peak:.0f}",
            "–" if speed is None else f"{speed:,.0f}", ratio,
        )  # fmt: skip
    console = _console.stdout()
    console.print(table)
    cpus = f"pinned to CPU {', '.join(map(str, found.pinned_cpus))}" if found.pinned_cpus else "not pinned"
    console.print(f"{found.rounds} rounds, {asked.threads} thread{'s' if asked.threads > 1 else ''}, {cpus}")
    for t in found.timings:
        counted = t.actual.get("computes_in")
        if isinstance(counted, dict) and not {"fp16", "bf16"}.isdisjoint(counted):
            layers = ", ".join(f"{count} layers in {name}" for name, count in counted.items())
            console.print(f"{t.name} computes {layers}, with {t.actual.get('casts', 0)} Casts", markup=False)
    for t in found.timings if asked.nodes else ():
        if t.nodes:
            console.print(_nodes(t, asked.nodes))
    for failure in found.failures:
        console.print(f"not measured: {failure.name}: {failure.reason}", markup=False)
    for reason in found.noise:
        console.print(f"noisy machine: {reason}", markup=False)
    for caution in found.cautions:
        console.print(f"caution: {caution}", markup=False)
    return 0 if found.timings else 1


def _nodes(timing: Timing, most: int) -> Table:
    """Return a table of a deployment's slowest nodes."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    total = sum(node.ms for node in timing.nodes)
    title = Text(f"slowest of {len(timing.nodes)} nodes of {timing.name}, {total:.3f} ms together")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left", title=title)
    for header in ("node", "operator", "run by", "ms", "share"):
        table.add_column(header, justify="right" if header in ("ms", "share") else "left")
    for node in sorted(timing.nodes, key=lambda node: -node.ms)[:most]:
        share = f"{node.ms / total:.0%}" if total else "–"
        words = (_console.printable(text) for text in (node.name, node.operator, node.kernel))
        table.add_row(*map(Text, words), f"{node.ms:.4f}", share)
    return table
