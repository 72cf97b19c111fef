"""penstock build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from penstock.cli import _console, _tables
from penstock.cli._options import common, config, given, sections

EPILOG = """\b
Examples:
  penstock build model.onnx -o out
  penstock build zoo:cifar10 --data cifar-10-batches-bin -o out --max-drop 0.5
  penstock build net.py:Net --weights net.safetensors --input 'x:float32[batch,3,32,32]' -o out --json
"""


@click.command(epilog=EPILOG)
@click.argument("source", required=False)
@click.option("-o", "--output", type=click.Path(file_okay=False), default="penstock-out", show_default=True,
              help="Folder of the build; an interrupted one goes on there.")  # fmt: skip
@click.option("--weights", default=None, help="Weights of a PyTorch source: .safetensors, or .pt with tensors only.")
@click.option("--backends", default=None, help="Backends to deploy on, comma-separated (default: all that can run).")
@click.option("--seed", type=int, default=None, help="Seed of the data roles and of made-up inputs (default: 0).")
@click.option("--cache", type=click.Path(file_okay=False), default=None, help="Cache folder (default: PENSTOCK_CACHE).")
@sections("check", "data", "export", "optimize", "quantize", "verify", "evaluate", "bench", "select")
@config
@common
def command(
    source: str | None, output: str, weights: str | None, backends: str | None, seed: int | None, cache: str | None,
    config: str | None, as_json: bool, quiet: bool, verbose: bool, **values: Any,
) -> int:  # fmt: skip
    """From a source to a verified, measured, chosen deployment.

    SOURCE is model.onnx, file.py:Class, package.module:factory, program.pt2 or zoo:NAME. Settings come from flags,
    the environment (PENSTOCK_SECTION_FIELD), penstock.toml, and defaults, in this order.
    """
    from penstock import settings
    from penstock.build_settings import resolve
    from penstock.pipeline import build

    top: dict[str, Any] = {"source": source, "weights": weights, "seed": seed}
    top["backends"] = tuple(settings.split(backends)) if backends else None
    flags = given(values) | {"": {key: value for key, value in top.items() if value is not None}}
    file = Path(config) if config else settings.find_file(Path.cwd())
    resolved = resolve(flags, file=file)
    with _console.progress(quiet) as progress:
        result = build(resolved, Path(output), cache=Path(cache) if cache else None, progress=progress)
    if as_json:
        shown = {
            "folder": str(result.folder), "chosen": result.chosen, "nearest_miss": result.nearest_miss,
            "deployments": _tables.result_json(result.rows, result.chosen), "ladder": result.ladder,
            "notes": result.notes, "resumed": result.resumed,
        }  # fmt: skip
        _console.emit("build", shown)
    else:
        console = _console.stdout()
        _tables.show_rows(console, result.rows, result.chosen)
        _tables.show_ladder(console, result.ladder)
        for note in result.notes:
            console.print(f"note      {note}")
        if result.chosen:
            variant = next(r.deployment.variant for r in result.rows if r.deployment.name == result.chosen)
            console.print(f"chosen    {result.chosen}: {result.folder / 'models' / variant}")
        else:
            console.print(f"none fits; the nearest miss is {result.nearest_miss}")
        console.print(f"look at   {result.folder}/ledger.jsonl (all that was measured), {result.folder}/golden, "
                      f"{result.folder}/penstock.lock.toml (build it again)")  # fmt: skip
    return 0 if result.chosen else 1
