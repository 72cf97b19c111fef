"""What was done to each layer of a quantized model, as a table; and which layers the output minds most."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import click

from penstock import calibration
from penstock.cli import _console

if TYPE_CHECKING:
    from penstock.jsonable import Json

STATES = {"integer": "integers", "moved": "integers, moved", "absorbed": "left out", "float": "float",
          "weights": "float, weights in integers"}  # fmt: skip
FIGURES = ("SQNR", "cosine", "KL", "same top-1", "clipped")


def show(facts: Mapping[str, Json]) -> None:
    """Print what a quantizer's facts say of the layers."""
    layers = cast("list[dict[str, Json]]", facts.get("layers") or [])
    if not layers:
        click.echo("this method doesn't tell what it did to each layer")
        return
    rows = [[str(layer["op"]), str(layer["node"]), _state(layer),
             _range(layer, "reads"), _range(layer, "makes"), _weights(layer), str(layer.get("reason") or "")]
            for layer in layers]  # fmt: skip
    _table(["operator", "node", "computes on", "reads", "makes", "weights", "why"], rows)
    _sensitivity(facts)


def _state(layer: Mapping[str, Json]) -> str:
    told = STATES.get(str(layer["state"]), str(layer["state"]))
    return f"{told} of 16 bits" if layer.get("bits") == 16 else told


def show_statistics(facts: Mapping[str, Json]) -> None:
    """Print how made-up samples came to be, and what they don't meet."""
    if not isinstance(statistics := facts.get("statistics"), dict):
        return
    named = ", ".join(map(str, cast("list[str]", statistics["fitted_inputs"])))
    click.echo(
        f"made up: {statistics['parameters']} parameters of {named} fitted on {statistics['fitted_on']} samples to "
        f"{calibration.met(statistics)}, then bred for {statistics['generations']} generations"
    )
    for reason in cast("list[str]", statistics["left_out"]):
        click.echo(f"statistics not used: {_console.printable(reason)}")


def _sensitivity(facts: Mapping[str, Json]) -> None:
    ranked = cast("list[dict[str, Json]]", facts.get("sensitivity") or [])
    if not ranked:
        return
    click.echo("")
    click.echo(f"the output when one layer alone is quantized, on {ranked[0]['samples']} samples, the worst first:")
    rows = [[str(one["node"]), str(one["op"]), _figure(one["sqnr_db"], "{:.1f} dB"), _figure(one["cosine"], "{:.6f}"),
             _figure(one["kl"], "{:.2g}"), _figure(one["top1_agreement"], "{:.1%}")] for one in ranked]  # fmt: skip
    _table(["layer", "operator", "SQNR", "cosine", "KL", "same top-1"], rows)
    if left := cast("list[str]", facts.get("sensitivity_not_reached") or []):
        click.echo(f"not reached in time: {len(left)} layers; raise --sensitivity")
    errors = cast("list[dict[str, Json]]", facts.get("tensor_errors") or [])
    if not errors:
        return
    click.echo("")
    click.echo("what rounding and clipping do to each tensor, over all values that were seen, the worst first:")
    rows = [[str(one["tensor"]), _figure(one["sqnr_db"], "{:.1f} dB"), _figure(one["cosine"], "{:.6f}"),
             _figure(one["clipped"], "{:.2%}")] for one in errors]  # fmt: skip
    _table(["tensor", "SQNR", "cosine", "clipped"], rows)


def _figure(value: Json, form: str) -> str:
    return form.format(value) if isinstance(value, (int, float)) else "-"


def _range(layer: Mapping[str, Json], key: str) -> str:
    found = []
    for one in cast("list[dict[str, Json]]", layer.get(key) or []):
        if "low" not in one:
            continue
        share = one.get("clipped")
        clipped = f", {share:.2%} clipped" if isinstance(share, float) and share >= 5e-5 else ""
        wide = f", {one['dtype']}" if str(one.get("dtype")).endswith("16") else ""
        found.append(f"{_short(one['low'])} to {_short(one['high'])}{wide}{clipped}")
    return "; ".join(found)


def _short(value: Json) -> str:
    return f"{value:.3g}" if isinstance(value, (int, float)) else str(value)


def _weights(layer: Mapping[str, Json]) -> str:
    held = layer.get("weights")
    if not isinstance(held, dict):
        return ""
    noise = held.get("sqnr_db")
    return f"{held['dtype']}, {held['scales']} scales" + (f", {noise:.1f} dB" if isinstance(noise, float) else "")


def _table(heads: list[str], rows: list[list[str]]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in heads:
        table.add_column(head, overflow="fold", justify="right" if head in FIGURES else "left")
    for row in rows:
        table.add_row(*(_console.printable(cell) for cell in row))
    _console.stdout().print(table)
