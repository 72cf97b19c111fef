"""penstock build."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from penstock.cli import _console, _tables
from penstock.cli._options import backend_names, common, config, given, sections

if TYPE_CHECKING:
    from penstock.plan import Plan

EPILOG = """\b
Examples:
  penstock build model.onnx -o out
  penstock build zoo:cifar10 --data cifar-10-batches-bin -o out --max-drop 0.5
  penstock build net.py:Net --weights net.safetensors --input 'x:float32[batch,3,32,32]' -o out --json
  penstock build out/penstock.lock.toml -o again
  penstock build model.onnx -o out --dry-run
  penstock build model.onnx --seed 3 --print-python > build.py
"""


@click.command(epilog=EPILOG)
@click.argument("source", required=False, type=click.Path())
@click.option("-o", "--output", type=click.Path(file_okay=False), default="penstock-out", show_default=True,
              help="Folder of the build; an interrupted one goes on there.")  # fmt: skip
@click.option("--weights", default=None, help="Weights of a PyTorch source: .safetensors, or .pt with tensors only.")
@click.option(
    "--backends",
    default=None,
    shell_complete=backend_names,
    help="Backends to deploy on, comma-separated (default: all that can run).",
)
@click.option("--seed", type=int, default=None, help="Seed of the data roles and of made-up inputs (default: 0).")
@click.option("--cache", type=click.Path(file_okay=False), default=None, help="Cache folder (default: PENSTOCK_CACHE).")
@click.option("--dry-run", is_flag=True, help="Print what would be done, from the cache and anew, and build nothing.")
@click.option("--print-python", is_flag=True, help="Print a script that makes the same build, and build nothing.")
@sections("check", "data", "export", "optimize", "quantize", "verify", "evaluate", "bench", "select")
@config
@common
def command(
    source: str | None, output: str, weights: str | None, backends: str | None, seed: int | None, cache: str | None,
    dry_run: bool, print_python: bool, config: str | None, as_json: bool, quiet: bool, verbose: bool, **values: Any,
) -> int:  # fmt: skip
    """From a source to a verified, measured, chosen deployment.

    SOURCE is model.onnx, file.py:Class, package.module:factory, program.pt2, zoo:NAME, or the penstock.lock.toml of
    an earlier build, which is built again. Settings come from flags,
    the environment (PENSTOCK_SECTION_FIELD), penstock.toml, and defaults, in this order.
    """
    from penstock import registry, reproduction, settings
    from penstock.build_settings import resolve
    from penstock.pipeline import build
    from penstock.plan import estimate
    from penstock.plan import plan as make_plan

    lock = None
    if source and source.endswith(reproduction.SUFFIX):
        lock, config, source = reproduction.read_lock(Path(source)), source, None
    top: dict[str, Any] = {"source": source, "weights": weights, "seed": seed}
    top["backends"] = tuple(settings.split(backends)) if backends else None
    flags = given(values) | {"": {key: value for key, value in top.items() if value is not None}}
    file = Path(config) if config else settings.find_file(Path.cwd())
    resolved = resolve(flags, file=file)
    if print_python:
        click.echo(reproduction.as_python(resolved, output), nl=False)
        return 0
    folder, kept = Path(output).resolve() if lock else Path(output), Path(cache).resolve() if cache else None
    home = contextlib.chdir(lock.base) if lock and lock.base.is_dir() else contextlib.nullcontext()
    with home, _console.progress(quiet) as progress:
        if dry_run:
            return _show_plan(make_plan(resolved, folder, cache=kept), as_json)
        if (seconds := estimate(resolved, kept)) is not None:
            progress.begin("time")
            progress.end(f"all steps took {_seconds(seconds)} the last time they ran")
        result = build(resolved, folder, cache=kept, progress=progress)
    notes = [*result.notes]
    if lock:
        notes += [f"since the lock was written, {told}" for told in reproduction.other_tools(lock)]
        notes += [
            f"the inputs differ from the lock's: {told}" for told in reproduction.changed_files(lock, result.reads)
        ]
    if as_json:
        shown = {
            "folder": str(result.folder), "chosen": result.chosen, "nearest_miss": result.nearest_miss,
            "deployments": _tables.result_json(result.rows, result.chosen), "ladder": result.ladder,
            "notes": notes, "resumed": result.resumed,
        }  # fmt: skip
        _console.emit("build", shown)
    else:
        console = _console.stdout()
        _tables.show_rows(console, result.rows, result.chosen)
        _tables.show_ladder(console, result.ladder)
        for note in notes:
            console.print(f"note      {note}")
        if result.chosen:
            chosen = next(r.deployment for r in result.rows if r.deployment.name == result.chosen)
            folder = result.folder / "models" / chosen.variant
            console.print(f"chosen    {result.chosen}: {folder}")
            if suffix := getattr(registry.load("backends", chosen.backend), "SHIPS", ""):
                model = next(iter(sorted(folder.glob("*.onnx"))), folder)
                console.print(f"to ship   penstock write {model} -o {chosen.variant}{suffix}", markup=False)
        else:
            console.print(f"none fits; the nearest miss is {result.nearest_miss}")
        console.print(f"look at   {result.folder}/ledger.jsonl (all that was measured), {result.folder}/golden, "
                      f"{result.folder}/penstock.lock.toml (build it again)")  # fmt: skip
    return 0 if result.chosen else 1


def _show_plan(plan: Plan, as_json: bool) -> int:
    if as_json:
        _console.emit("build", {"plan": plan})
        return 0
    for step in plan.steps:
        took = f"{_seconds(step.seconds)} last time" if step.state == "will run" and step.seconds is not None else ""
        click.echo(f"{step.name:<10}{step.state:<10}{took}".rstrip())
    if plan.changed:
        click.echo(f"changed    {', '.join(plan.changed)}")
    if all(step.state == "done" for step in plan.steps):
        click.echo("time       nothing to do")
    else:
        click.echo(f"time       {'about ' + _seconds(plan.seconds) if plan.seconds is not None else 'no estimate yet'}")
    return 0


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    if seconds < 0.1:
        return "less than 0.1 s"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
