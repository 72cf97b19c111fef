"""Show an inspection as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from penstock.cli._console import printable
from penstock.stages.inspect import ChannelsLast, Inspection, Layer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

MOST_LAYERS = 60  # a longer model shows its costliest layers only, in the file's order
MOST_OPERATORS = 200  # the most frequent ones
MOST_UNKNOWN = 8
MOST_TEXT = 400  # characters of a cell
Place = Literal["input", "inside", "output"]
PLACES: dict[Place, str] = {"input": "at inputs", "inside": "inside", "output": "at outputs"}


def show(inspection: Inspection, console: Console) -> None:
    """Print summary, operators, layers, and what isn't known."""
    for table in (_summary(inspection), _operators(inspection), _layers(inspection)):
        console.print(table)
        console.print()
    for entry in inspection.unknown[:MOST_UNKNOWN]:
        console.print(_cell(f"unknown cost: {entry.op} {entry.node}: {entry.reason}"), markup=False, highlight=False)
    if len(inspection.unknown) > MOST_UNKNOWN:
        console.print(f"… {len(inspection.unknown) - MOST_UNKNOWN} more of unknown cost")
    for note in inspection.notes:
        console.print(_cell(f"note: {note}"), markup=False, highlight=False)


def count(number: int | None) -> str:
    """Write a count with thousands, millions or billions as people say them, or ``?``."""
    if number is None:
        return "?"
    for limit, unit in ((10**9, "G"), (10**6, "M")):
        if number >= limit:
            return f"{number / limit:.2f} {unit}"
    return f"{number:,}"


def size(number: int | None) -> str:
    """Write a size in bytes with a decimal unit, or ``?``."""
    if number is None:
        return "?"
    for limit, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if number >= limit:
            return f"{number / limit:.2f} {unit}"
    return f"{number} B"


def _cell(text: str) -> str:
    """Return a text from the file fit for a table: on one line, and short."""
    return printable(text, limit=MOST_TEXT)


def _table(title: str, *columns: tuple[str, bool]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name, right in columns:
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    return table


def _summary(inspection: Inspection) -> Table:
    table = _table(_cell(inspection.file), ("", False), ("", False))
    table.show_header = False
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in inspection.opsets.items())
    signature = inspection.signature
    at_least = "at least " if inspection.unknown else ""
    rows = [
        ("opset", opsets),
        ("IR version", str(inspection.ir_version)),
        ("producer", inspection.producer or "not said"),
        ("inputs", "  ".join(spec.text() for spec in signature.inputs) or "none"),
        ("outputs", "  ".join(spec.text() for spec in signature.outputs)),
        ("file size", size(inspection.size_bytes)),
        ("nodes", f"{inspection.nodes:,}" + (f", {inspection.subgraphs} bodies" if inspection.subgraphs else "")),
        ("initializers", f"{inspection.initializers:,}"),
        ("parameters", f"{inspection.parameters:,}"),
        ("MACs, FLOPs", f"{at_least}{count(inspection.macs)}, {at_least}{count(inspection.flops)}"),
        ("peak activations", _peak(inspection)),
        ("all activations", size(inspection.activation_bytes)),
    ]
    if inspection.statistics:
        rows.insert(9, ("running statistics", f"{inspection.statistics:,} (not in the parameters)"))
    rows += [
        (f"weights, {entry.dtype}", f"{size(entry.bytes)} in {entry.tensors} tensors") for entry in inspection.weights
    ]
    if inspection.dynamic:
        dims = ", ".join(f"{dim.name} = {dim.size}" for dim in inspection.dynamic)
        rows.append(("dynamic", f"{dims} (for these figures)"))
    if inspection.channels_last is not None:
        rows.append(("channels-last", _turned(inspection.channels_last)))
    if inspection.custom_domains:
        rows.append(("custom domains", ", ".join(inspection.custom_domains)))
    for use in inspection.custom:
        library = f"{use.library}, sha256 {use.sha256}" if use.library else "no library is named for it"
        rows.append((f"  {use.domain}", f"{', '.join(use.operators[:5])}: {library}"))
    if inspection.functions:
        rows.append(("functions", f"{len(inspection.functions)}: {', '.join(inspection.functions[:5])}"))
    if inspection.overridable_inputs:
        rows.append(("inputs with default", f"{len(inspection.overridable_inputs)} initializers are inputs as well"))
    for name, text in rows:
        table.add_row(name, _cell(text))
    return table


def _turned(found: ChannelsLast) -> str:
    """Say what a target with channels-last images has to transpose."""
    if not found.placed:
        return f"no telling: the ranks of all {found.images} operators of images are unknown"
    places = [turn.place for turn in found.transposes]
    inside = list(dict.fromkeys(turn.why for turn in found.transposes if turn.place == "inside"))
    counts = (f"{places.count(place)} {named}" for place, named in PLACES.items() if place in places)
    told = "for a target of that layout: Transposes " + (", ".join(counts) if places else "nowhere")
    told += f" ({'; '.join(inside[:3])}{', …' if len(inside) > 3 else ''})" if inside else ""
    if (left := found.images - found.placed) > 0:
        told += f"; {left} of {found.images} operators of images are of unknown rank"
    return told


def _peak(inspection: Inspection) -> str:
    peak = inspection.peak
    left_out = f"; {peak.unknown_values} values of unknown size left out" if peak.unknown_values else ""
    return f"{size(peak.bytes)} at {peak.node or 'the inputs'}{left_out}"


def _operators(inspection: Inspection) -> Table:
    table = _table("Operators", ("operator", False), ("domain", False), ("nodes", True), ("since opset", True))
    for use in inspection.operators[:MOST_OPERATORS]:
        table.add_row(_cell(use.op), _cell(use.domain), f"{use.count:,}", str(use.since_version or "?"))
    if (left := len(inspection.operators) - MOST_OPERATORS) > 0:
        table.add_row(f"… {left:,} more", "", "", "")
    return table


def _layers(inspection: Inspection) -> Table:
    table = _table(
        "Layers", ("name", False), ("operator", False), ("output", False), ("parameters", True), ("MACs", True),
        ("activations", True),
    )  # fmt: skip
    shown, left = _costliest(inspection.layers)
    for layer in shown:
        shape = "?" if layer.shape is None else "×".join(map(str, layer.shape)) or "scalar"
        parameters = f"{layer.parameters:,}" if layer.parameters else ""
        macs = "" if layer.macs == 0 else count(layer.macs)
        table.add_row(_cell(layer.name), _cell(layer.op), shape, parameters, macs, size(layer.activation_bytes))
    if left:
        table.add_row(f"… {left} more", "", "", "", "", "")
    return table


def _costliest(layers: tuple[Layer, ...]) -> tuple[list[Layer], int]:
    if len(layers) <= MOST_LAYERS:
        return list(layers), 0
    by_cost = sorted(range(len(layers)), key=lambda i: (-(layers[i].macs or 0), -(layers[i].activation_bytes or 0), i))
    kept = sorted(by_cost[:MOST_LAYERS])
    return [layers[index] for index in kept], len(layers) - len(kept)
