"""What optimizing is made of: the passes that are asked for, the model as it is loaded, run, and written."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from penstock import graph, precheck, registry
from penstock.errors import InputError, MissingError
from penstock.opsets.whole import MOST_EXPANDED, Restated, in_opset
from penstock.passes import Declined, Pass, Rule
from penstock.passes._library import expanded_size
from penstock.passes._order import in_order
from penstock.passes._soundness import refusal_of
from penstock.rehearsal import rehearse_passes
from penstock.rewriting.knowledge import Knowledge, to_ir
from penstock.rewriting.run import Rewritten, count, rewrite
from penstock.rewriting.walk import graphs_of, nodes_in

if TYPE_CHECKING:
    import onnx_ir as ir

    from penstock.stages.optimize import OptimizeSettings


@dataclass(frozen=True, slots=True)
class Extent:
    """How large a model is, all of its graphs together."""

    nodes: int  # without Constants
    weights: int  # their number
    bodies: int  # of If, Loop and Scan

    @classmethod
    def of(cls, model: ir.Model) -> Extent:
        """Measure a model."""
        graphs = graphs_of(model)
        return cls(count(model), sum(len(one.initializers) for one in graphs), len(graphs) - 1 - len(model.functions))


def load_passes(settings: OptimizeSettings) -> tuple[list[tuple[str, Pass | Rule]], tuple[Declined, ...]]:
    """Return the passes that are asked for, in their order, and the plug-ins that don't load.

    Raises ``UsageError`` for a name that there isn't, ``MissingError`` for a plug-in that is asked for by its name.
    """
    wanted = settings.passes or registry.names("passes")
    asked = {*settings.passes, *settings.also}
    for name in (*settings.skip, *settings.also):
        if name not in registry.names("passes"):
            registry.load("passes", name)  # raises, with the nearest name
    loaded: dict[str, Pass | Rule] = {}
    broken: list[Declined] = []
    for name in wanted:
        if name in settings.skip:
            continue
        try:
            found = cast("Pass | Rule", registry.load("passes", name))
            if name in asked or not getattr(found, "OPTIONAL", False):
                loaded[name] = found
        except MissingError as error:
            if settings.passes:
                raise
            broken.append(Declined(name, error.what))
    return in_order(loaded), tuple(broken)


def without_ending(
    path: Path, passes: list[tuple[str, Pass | Rule]]
) -> tuple[list[tuple[str, Pass | Rule]], tuple[Declined, ...]]:
    """Leave out third parties' passes that end the process on this model, or never end."""
    foreign = [name for name, _ in passes if name in _foreign()]
    bad = rehearse_passes(path, foreign) if foreign else {}
    return [one for one in passes if one[0] not in bad], tuple(Declined(name, why) for name, why in bad.items())


def _foreign() -> frozenset[str]:
    return frozenset(registry.origins("passes"))


def opened(path: Path, settings: OptimizeSettings) -> tuple[ir.Model, Restated | None]:
    """Load the model, and say it in the opset that is wished.

    Raises ``InputError`` for functions that stand for too many nodes, ``GateError`` where it loses its meaning there.
    """
    model = graph.load(path, weights=False)  # passes read few of them, and what isn't touched is never read
    limit = MOST_EXPANDED + len(graph.all_nodes(model)) if model.functions else 0
    if model.functions and expanded_size(model, limit) >= limit:
        what = f"its functions stand for {MOST_EXPANDED:,} nodes or more, or call each other too deeply"
        raise InputError("too-many-nodes", what, where=str(path), do="export the model without nested functions")
    if settings.opset is None:
        return model, None
    model, restated = in_opset(model, settings.opset, str(path))
    return model, restated if restated.opset_before != restated.opset_after else None


def run(
    model: ir.Model, passes: Sequence[tuple[str, Pass | Rule]], settings: OptimizeSettings, *,
    stop_after: int | None = None, after: Callable[[str, ir.Model], None] | None = None,
) -> Rewritten:  # fmt: skip
    """Rewrite a model within the bounds of the settings, see :func:`penstock.rewriting.run.rewrite`."""
    return rewrite(
        model, passes, max_rounds=settings.max_rounds, max_work=settings.max_work, foreign=_foreign(),
        stop_after=stop_after, after=after,
    )  # fmt: skip


def write(model: ir.Model, source: Path, path: Path, data: str, beside: bool) -> str:
    """Save the model with the shapes that are known now; return what onnx.checker has against it, and only it."""
    graph.tidy(model)
    declare(model)
    try:
        graph.save(model, path, data=data, beside=beside)
    except (ValueError, TypeError) as error:
        what = f"the model can't be written: {graph.first_line(error)}"
        raise InputError("unwritable-model", what, where=str(source), do="check it with onnx.checker") from error
    complaint = refusal_of(path)
    return complaint if complaint and not refusal_of(source) else ""


def declare(model: ir.Model) -> None:
    """Note on every inner value the shape that follows from the graph, and no other.

    What an earlier exporter declared may be wrong, or no longer true. Values of other domains' operators keep theirs.
    A size that the pre-check refuses isn't written: the model is to be opened again.
    """
    most = precheck.settings().max_tensor_bytes
    known = Knowledge(model)
    outputs = set(model.graph.outputs)
    for node in graph.all_nodes(model):
        for value in node.outputs:
            if node.domain == "" and value not in outputs:
                value.shape = None
    known.learn(model.graph)
    for node in nodes_in(model.graph):
        for value in node.outputs:
            shape = known.shapes.get(value)
            large = shape is not None and math.prod(size for size in shape if isinstance(size, int)) > most
            if value not in outputs and shape is not None and value.type is not None and not large:
                value.shape = to_ir(shape)
