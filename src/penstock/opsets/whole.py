"""Say a whole model in another opset, in memory: a copy of it, or the reasons why its meaning would be lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock import graph
from penstock.errors import GateError, InputError, UsageError
from penstock.opsets import Change, Refused, history

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

    from penstock.opsets.steps import Converted

SHOWN = 5  # refused nodes that an error spells out
MOST_EXPANDED = 50_000  # nodes that functions may stand for: what stands for more isn't looked into


@dataclass(frozen=True, slots=True)
class Restated:
    """How a model was said in another opset; ``inlined`` says why functions were replaced by their bodies."""

    opset_before: int
    opset_after: int
    changes: tuple[Change, ...]
    inlined: str


class NotConvertibleError(GateError):
    """Some nodes can't be said in the opset with the same meaning: ``nodes`` tells which, and why."""

    def __init__(self, nodes: tuple[Refused, ...], opset: int, where: str) -> None:
        self.nodes = nodes
        shown = "; ".join(
            f"{one.op} {one.node!r}{f' in the function {one.function}' if one.function else ''}: {one.reason}"
            for one in nodes[:SHOWN]
        )
        more = f"; and {len(nodes) - SHOWN} more" if len(nodes) > SHOWN else ""
        things = "1 node loses its meaning" if len(nodes) == 1 else f"{len(nodes)} nodes lose their meaning"
        do = "choose another opset (--opset lowest finds the lowest), or change these nodes in the source"
        super().__init__("meaning-lost", f"{things} in opset {opset}: {shown}{more}", where=where, do=do)


def lowest(model: ir.Model) -> tuple[int, tuple[Refused, ...]]:
    """Find the lowest opset that every node can be said in, and the nodes that can't be said in the one below."""
    from penstock.opsets.steps import convert as convert_all

    found: tuple[int, tuple[Refused, ...]] | None = None
    for inline in (False, True):
        tried = model.clone()
        if inline and not _inline(tried):
            break
        refused = convert_all(tried, history.LOWEST, stop=True).refused
        reached = max((one.opset for one in refused), default=history.LOWEST)
        if found is None or reached < found[0]:
            found = reached, tuple(one for one in refused if one.opset == reached)
        if not any(one.function for one in refused):
            break
    assert found is not None
    return found


def ready(model: ir.Model, where: str) -> None:
    """Get a loaded model ready to be converted: nodes in order.

    Raises ``InputError`` for an opset that isn't known here.
    """
    from penstock.passes import sort_nodes

    newest = max([model.opset_imports.get("", 0), *(f.opset_imports.get("", 0) for f in model.functions.values())])
    if newest > history.newest():
        what = f"the model is of opset {newest}, and the newest that is known here is {history.newest()}"
        raise InputError("unknown-opset", what, where=where, do="install a newer onnx")
    sort_nodes.run(model)


def known(opset: int) -> int:
    """Return an opset that can be converted to; raise ``UsageError`` for another."""
    if history.LOWEST <= opset <= history.newest():
        return opset
    do = f"choose {history.LOWEST} to {history.newest()}, or lowest"
    raise UsageError("unknown-opset", f"nothing is converted to opset {opset}", do=do)


def converted(source: ir.Model, target: int) -> tuple[ir.Model, Converted, str]:
    """Convert a copy; where a function stands in the way, a copy with all functions inlined."""
    from penstock.opsets.steps import convert as convert_all

    model = source.clone()
    done = convert_all(model, target)
    first = next((one for one in done.refused if one.function), None)
    if first is not None:
        flat = source.clone()
        if _inline(flat):
            again = convert_all(flat, target)
            if len(again.refused) < len(done.refused):
                why = f"{first.op} {first.node!r} in the function {first.function}: {first.reason}"
                return flat, again, why
    return model, done, ""


def _inline(model: ir.Model) -> bool:
    """Inline all functions where they are of the model's own opset, and stand for few enough nodes."""
    from penstock.passes._library import expanded_size, quiet

    if graph.mixed_opsets(model) or expanded_size(model, MOST_EXPANDED) >= MOST_EXPANDED:
        return False
    with quiet():
        return graph.inline(model)


def changed_meaning(source: Path, what: str) -> GateError:
    """Return the error for a result that computes something else, with the reason where the model itself has one."""
    do = "report it with the model"
    if reason := graph.mixed_opsets(graph.load(source, weights=False)):
        what = f"{what}; {reason}, and runtimes read the operators in such a function in the one way or the other"
        do = "say the model and its functions in one opset where they are made"
    return GateError("conversion-differs", what, where=str(source), do=do)


def in_opset(model: ir.Model, opset: int, where: str) -> tuple[ir.Model, Restated]:
    """Say a loaded model in another opset: a copy, or the model itself where it is of that opset.

    Raises :class:`NotConvertibleError` with every node whose meaning would be lost, ``UsageError`` for an opset that
    there isn't, ``InputError`` for a model of an opset that isn't known here.
    """
    from penstock.opsets import ir_version

    target, own = known(opset), model.opset_imports.get("", 0)
    if own == target:
        return model, Restated(own, own, (), "")
    ready(model, where)
    own = model.opset_imports.get("", 0)
    made, done, inlined = converted(model, target)
    if done.refused:
        raise NotConvertibleError(done.refused, target, where)
    made.ir_version = ir_version.fitting(made, own, target)
    return made, Restated(own, target, done.changes, inlined)
