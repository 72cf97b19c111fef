"""penstock explain."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from penstock.cli import _console
from penstock.cli._options import common, config, given, sections
from penstock.cli._settings import checking, one

if TYPE_CHECKING:
    from penstock.opsets.telling import Operator

EPILOG = """\b
Examples:
  penstock explain
  penstock explain baked-in-size
  penstock explain Resize
  penstock explain linked-external-data --json
  penstock explain model.onnx /layer1/bn/BatchNormalization
"""


def _ids(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    from penstock import explanations

    return [id for id in explanations.everything() if id.startswith(incomplete.lower())]


def _operator(found: Operator) -> None:
    versions = ", ".join(str(version.since) for version in found.versions)
    click.echo(f"{found.domain or 'ai.onnx'}::{found.name}, versions {versions}" + (", deprecated" * found.deprecated))
    if found.doc:
        click.echo(textwrap.fill(found.doc, 96, initial_indent="    ", subsequent_indent="    "))
    for version in found.versions:
        click.echo(f"\nopset {version.since}")
        rows = [*version.changes] or ["nothing that shows in its form"]
        for way in ("up", "down"):
            if text := getattr(version, way):
                rows.append(f"converted {way}: {text}")
        for row in rows:
            click.echo(textwrap.fill(row, 96, initial_indent="    ", subsequent_indent="        "))


def _node(model: str, name: str, config: str | None, as_json: bool, quiet: bool, flags: dict[str, Any]) -> int:
    """Tell what optimizing does to a node."""
    from penstock import provenance
    from penstock.stages.optimize import OptimizeSettings

    settings = one("optimize", OptimizeSettings, flags, config)
    with _console.progress(quiet) as progress, checking(flags, config):
        progress.begin("explain", "optimizing in memory")
        found = provenance.fates(Path(model), name, settings)
        progress.end(f"{len(found)} nodes")
    if as_json:
        _console.emit("explain", {"model": model, "node": name, "fates": found})
        return 0
    for fate in found:
        lines = [f"{fate.op} {fate.node}" + (f"  ({fate.line})" if fate.line else "")]
        lines.append(f"    reads {', '.join(fate.inputs) or 'nothing'}; makes {', '.join(fate.outputs)}")
        for step in fate.steps:
            lines.append(f"    {step.rule}: {step.what}")
            lines.append(
                f"        {_few(step.gone)} → {_few(step.came) or 'nothing'}, {-step.saved_bytes:+,} bytes a run"
            )
        if not fate.steps:
            lines.append("    it stays as it is")
        elif fate.now:
            lines.append(f"    in its place stands {_few(fate.now)}")
        else:
            lines.append("    nothing stands in its place: what it made is constant, elsewhere, or read by nobody")
        lines += [f"    not more: {rule}: {reason}" for rule, reason in fate.near_misses]
        if fate.now:
            lines += [f"    not more: {rule} at {node}, below it: {reason}" for rule, node, reason in fate.beside]
        for line in lines:
            click.echo(_console.printable(line, limit=400))
    return 0


def _few(labels: tuple[str, ...]) -> str:
    return ", ".join(labels[:4]) + (f" and {len(labels) - 4} more" if len(labels) > 4 else "")


@click.command(epilog=EPILOG)
@click.argument("code", required=False, shell_complete=_ids)
@click.argument("node", required=False)
@sections("check", "optimize", short={"optimize__opset": "--opset"})
@config
@common
def command(
    code: str | None, node: str | None, config: str | None, as_json: bool, quiet: bool, verbose: bool, **values: Any
) -> int:
    """Explain CODE: an error id, or an operator by its name. Without one, list all error ids.

    The id of an error stands in its --json form, and in the line "more" of its message: it is told what happened, why
    it is refused, what to do. Of an operator it is told what changed in each opset, and what convert makes of that.

    With a model file for CODE, and a NODE (by its name, or a value that it makes): tell what optimizing does to it,
    what stands in its place, and why nothing more was done.
    """
    from penstock import explanations
    from penstock.errors import UsageError
    from penstock.explanations import Explanation

    if code is not None and node is not None:
        meant = None if code.endswith(".onnx") or Path(code).exists() else explanations.everything().get(code.lower())
        if meant is not None:
            what = f"{code!r} is the id of an error, not a model ({meant.what})"
            raise UsageError("bad-usage", what, where=node, do=f"give one at a time: penstock explain {code}")
        return _node(code, node, config, as_json, quiet, given(values))
    if code is not None and code.endswith(".onnx"):
        do = "name one: penstock explain model.onnx NODE; `penstock inspect` lists them"
        raise UsageError("no-node", "a model is given, and no node of it", where=code, do=do)
    if code is None:
        known = explanations.everything()
        if as_json:
            _console.emit("explain", known)
            return 0
        for id, text in known.items():
            click.echo(f"{id:<26}{text.what}")
        return 0
    found = explanations.find(code)
    if not isinstance(found, Explanation):
        if as_json:
            _console.emit("explain", {"id": code, "operator": found})
        else:
            _operator(found)
        return 0
    code = code.lower()
    if as_json:
        _console.emit("explain", {"id": code, "explanation": found})
        return 0
    sections = {"NAME": code, "WHAT": found.what, "WHY": found.why, "CURE": found.cure}
    sections["SEE ALSO"] = ", ".join(found.see)
    for title, told in sections.items():
        click.echo(f"{title}\n{textwrap.fill(told, 78, initial_indent='    ', subsequent_indent='    ')}\n")
    return 0
