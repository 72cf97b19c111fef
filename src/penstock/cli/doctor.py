"""penstock doctor."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import click

from penstock.cli import _console
from penstock.cli._options import backend_names, common, config

EPILOG = """\b
Examples:
  penstock doctor
  penstock doctor --config penstock.toml
  penstock doctor net.py:Net --backends onnxruntime,openvino --json

Exit code 3: the given settings can't run here; each reason has the exit code that a build would end with in --json.
"""


@click.command(epilog=EPILOG)
@click.argument("source", required=False, type=click.Path())
@click.option(
    "--backends", default=None, shell_complete=backend_names, help="Backends that must run here, comma-separated."
)
@click.option("--data", default=None, help="The data set that must open here.")
@config
@common
def command(
    source: str | None, backends: str | None, data: str | None, config: str | None, as_json: bool, quiet: bool,
    verbose: bool,
) -> int:  # fmt: skip
    """Tell what this machine has for the work: CPU, limits, runtimes, clashes, and the lines that mend them.

    With SOURCE, --backends, --data or a settings file: tell what of these can't run here.
    """
    from penstock import doctor, reproduction, settings
    from penstock.build_settings import resolve
    from penstock.errors import MissingError

    lock = None
    if source and source.endswith(reproduction.SUFFIX):
        lock, config, source = reproduction.read_lock(Path(source)), source, None
    file = Path(config) if config else settings.find_file(Path.cwd())
    top = {"source": source, "backends": tuple(settings.split(backends)) if backends else None}
    flags: dict[str, dict[str, Any]] = {"": {key: value for key, value in top.items() if value is not None}}
    flags["data"] = {"data": data} if data else {}
    held = resolve(flags, file=file, need_source=False)
    with _console.progress(quiet) as progress:
        progress.begin("doctor", "each runtime in a process of its own")
        report = doctor.examine()
        progress.end(f"{len(report.runtimes)} runtimes")
    with contextlib.chdir(lock.base) if lock and lock.base.is_dir() else contextlib.nullcontext():
        blocked = doctor.check_settings(held, report.runtimes)
    code = MissingError.exit_code if blocked else 0
    if as_json:
        _console.emit("doctor", {"report": report, "python": doctor.python(), "blocked": blocked})
        return code
    click.echo(f"{'python':<20}{doctor.python()}")
    for name, value in report.host.items():
        if name == "python":
            continue
        click.echo(f"{name.replace('_', ' '):<20}{_shown(name, value)}")
    click.echo("cpu features")
    for feature in report.features:
        click.echo(f"  {feature.name:<10}{'yes' if feature.present else 'no':<5}{feature.good_for}")
    click.echo("free space")
    for place, free in report.space.items():
        click.echo(f"  {_shown('bytes', free):<12}{place}")
    wide = max(14, *(len(runtime.name) + 2 for runtime in report.runtimes))
    long = max(12, *(len(runtime.version) + 2 for runtime in report.runtimes))
    click.echo(f"{'runtimes':<{wide + 2}}{'version':<{long}}{'opset up to':<13}IR up to")
    for runtime in report.runtimes:
        told = ", ".join(f"{key}: {_plain(value)}" for key, value in runtime.detail.items())
        figures = f"{runtime.version or '–':<{long}}{runtime.opset or '–':<13}{runtime.ir or '–'}"
        click.echo(f"  {runtime.name:<{wide}}{runtime.problem or figures}")
        if told:
            click.echo(f"  {'':<{wide}}{told}")
    click.echo("telemetry")
    for name, state in report.telemetry.items():
        click.echo(f"  {name:<14}{state}")
    for trouble in report.troubles:
        click.echo(f"{trouble.level:<9}{trouble.what}\n         do: {trouble.do}")
    for one in blocked:
        click.echo(_console.printable(f"blocked  {one.what}" + (f"\n         where: {one.where}" if one.where else "")
                                      + (f"\n         do: {one.do}" if one.do else ""), "\n"))  # fmt: skip
    if not report.troubles and not blocked:
        click.echo("nothing clashes, nothing is missing")
    if blocked:
        click.echo("these settings can't run here")
    return code


def _shown(name: str, value: object) -> str:
    if name.endswith("bytes") and isinstance(value, int):
        return f"{value / 1e9:.1f} GB"
    return "unknown" if value is None else str(value)


def _plain(value: object) -> str:
    return ", ".join(str(item) for item in value) if isinstance(value, list) else str(value)
