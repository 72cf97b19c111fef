"""Attempt: place and emit a 16-bit model, and again with more in fp32 where the runtime it is for doesn't run it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from penstock import graph
from penstock.errors import InputError
from penstock.jsonable import Json
from penstock.quantization.half import placing, running
from penstock.quantization.half.binding import is_float32
from penstock.quantization.half.emitting import Emitted, Plan, emit
from penstock.quantization.half.operators import COMPUTING
from penstock.quantization.half.reasons import Reason, Reasons
from penstock.quantizers import FLOAT
from penstock.rewriting.walk import graphs_of

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir


class Attempt:
    """A prepared float model with the reasons found so far, and the samples on which results are compared.

    ``path`` is the user's file, for messages; ``work`` a scratch folder; ``wanted`` what the float model makes of
    ``feeds``. What the runtimes say of the model emitted last stands in ``told``.
    """

    def __init__(
        self, model: ir.Model, found: Reasons, path: Path, consumer: str, work: Path,
        feeds: Sequence[Mapping[str, np.ndarray]], wanted: Sequence[Sequence[np.ndarray]],
    ) -> None:  # fmt: skip
        self.model, self.found, self.path, self.consumer, self.work = model, found, path, consumer, work
        self.feeds, self.wanted = feeds, wanted
        self.told: dict[str, Json] = {}

    def settle(self) -> tuple[Emitted, frozenset[str]]:
        """Emit until it runs, or until nothing helps. Raises ``InputError`` where nothing can be in 16 bits.

        1. Operators that the runtime has no kernel for stay in fp32.
        2. Where that isn't it, one of the runtime's rewrites breaks the model: one kind of operator after the other is
           left in fp32, the light ones first.
        """
        made, chosen = self._emitted()
        if self._runs(made) or not self._float_runs():
            return made, chosen
        kernelless = running.kernelless(made.model, self.model, self.found.half, self.consumer, sorted(chosen))
        if kernelless:
            self._without_kernels(kernelless, chosen)
            made, chosen = self._emitted()
            if self._runs(made):
                return made, chosen
        return self._without_one(made, chosen)

    def _emitted(self, also: Collection[str] = ()) -> tuple[Emitted, frozenset[str]]:
        """Place and emit with the reasons so far, into a copy."""
        model, found = self.model, self.found
        chosen = placing.place(model, found.bindings, {*found.found, *also}, found.seen)
        copy = model.clone()
        same = dict(zip(_constants(model), _constants(copy), strict=True))
        storable = frozenset(same[value] for value in _storable(model, found))
        made = emit(copy, Plan(found.half, chosen, found.bindings, storable))
        if not chosen and not made.half_bytes:
            counted = Counter(reason.text for reason in found.found.values()).most_common(3)
            told = "; ".join(f"{text} ({count} node{'s' * (count > 1)})" for text, count in counted)
            told = told or "Casts would cost more than it gains"
            what = f"nothing of the model can be in {found.half.name}, and it has no large weights to store so: {told}"
            raise InputError("nothing-to-quantize", what, where=str(self.path), do=f"{FLOAT}, or try another --method")
        graph.tidy(made.model)
        return made, chosen

    def _runs(self, made: Emitted) -> bool:
        """Whether the consumer's runtime runs a model; so it is where that runtime isn't here to be asked."""
        path = self.work / "half.onnx"
        graph.save(made.model, path)
        names = [str(value.name) for value in made.model.graph.outputs]
        self.told = running.runs_on(path, self.found.half, self.feeds, self.wanted, names)
        return self._told().get("runs", True) is not False

    def _told(self) -> dict[str, Json]:
        return cast("dict[str, Json]", self.told.get(running.RUNS.get(self.consumer, ""), {}))

    def _float_runs(self) -> bool:
        """Whether the runtime runs the float model: else 16 bits aren't to blame."""
        path = self.work / "float.onnx"
        graph.save(self.model.clone(), path)
        if running.runs(path, self.found.half, self.consumer, self.feeds):
            return True
        self._told()["reason"] = f"it doesn't run the float model either: {self._told()['reason']}"
        return False

    def _without_kernels(self, kernelless: Mapping[str, str], chosen: Collection[str]) -> None:
        """Keep nodes in fp32 that the runtime can't compute otherwise; where no weighty one is left, all of them."""
        found = self.found
        for name, text in kernelless.items():
            found.add(found.nodes[name], Reason(text, "store"))
        weighty = [name for name in chosen if found.nodes[name].op_type in COMPUTING]
        if weighty and all(name in kernelless for name in weighty):
            text = f"the runtime computes no layer with weights in {found.half.name}, so nothing would be gained"
            for name in chosen:
                found.add(found.nodes[name], Reason(text, "store"))

    def _without_one(self, made: Emitted, chosen: frozenset[str]) -> tuple[Emitted, frozenset[str]]:
        """Find an operator without which the runtime runs the model, as one of its rewrites may break it."""
        found = self.found
        told, why = self.told, self._told()["reason"]
        label = running.LABELS[running.RUNS[self.consumer]]
        counts = Counter(found.nodes[name].op_type for name in chosen)
        for op, _ in sorted(counts.items(), key=lambda item: (item[0] in COMPUTING, item[1], item[0])):
            names = [name for name in chosen if found.nodes[name].op_type == op]
            tried, fewer = self._emitted(names)
            if self._runs(tried):
                for name in names:
                    text = f"with {op} in {found.half.name} {label} doesn't run the model: {why}"
                    found.add(found.nodes[name], Reason(text, "store"))
                return tried, fewer
        self.told = told
        return made, chosen


def _constants(model: ir.Model) -> list[ir.Value]:
    return [value for one in graphs_of(model) for value in one.initializers.values()]


def _storable(model: ir.Model, found: Reasons) -> list[ir.Value]:
    """Return the constants that lose nothing to speak of in 16 bits, and whose readers don't mind."""
    kept = {name for name, reason in found.found.items() if reason.kind == "keep"}
    storable = []
    for value in _constants(model):
        if not is_float32(value) or value.const_value is None or value.is_graph_input() or value.is_graph_output():
            continue
        if any(use.node.name in kept and use.node.graph is model.graph for use in value.uses()):
            continue
        lost = found.constant(value)
        if lost.reach <= found.half.largest and not lost.counts and lost.sqnr_db >= found.half.least_db:
            storable.append(value)
    return storable
