"""The climb: in which order a search tries its ways, what it takes from each result, and when it stops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from penstock.stages import _search_ways as ways
from penstock.stages.quantize import QuantizeSettings
from penstock.stages.search import Candidate, Measure, Measured, Ranking, Searched, SearchSettings, front

Rung = tuple[Candidate, Measured]
Kind = Literal["float", "int16"]


class Climb:
    """One search: the rungs so far, and how many may still be measured."""

    def __init__(self, settings: SearchSettings, measure: Measure) -> None:
        self.settings, self._measure = settings, measure
        self.rungs: list[Measured] = []
        self.exhausted = False
        self._tried: list[QuantizeSettings] = []
        self._candidates: dict[str, Candidate] = {}
        self._reserved = 0  # evaluations that are kept for the other methods, which come last

    def run(self, base: QuantizeSettings, methods: Sequence[str], ranking: Ranking) -> Searched:
        """Try integers everywhere and their repairs, then layers in float and 16 bits, then the other methods."""
        asked = len(methods) + 3 * (ways.TWO_WAYS in methods)  # two ways of 4 bits, and two of 8
        self._reserved = min(asked, self.settings.evaluations // 3)
        best = self._integers(base)
        if best is not None:
            hopeless = self.slow(best[1])  # whatever is added to it makes it slower still
            for candidate in ways.outputs(best[0], best[1].told):
                self.try_one(candidate)
            wide = self.try_one(ways.all_wide(best[0])) if ways.wide_type(best[0].settings) else None
            if not self.within(best[1]) and not hopeless:
                self._layers(best[0], ranking, wide is not None and self.within(wide))
        self._reserved = 0
        for candidate in ways.methods(base, methods):
            found = self.try_one(candidate)
            if (
                candidate.name == ways.TWO_WAYS
                and base.weight_bits == 4
                and found is not None
                and self._drops(candidate)
            ):
                self.try_one(ways.eight_bits(base))
        return self.result()

    def try_one(self, candidate: Candidate, *, timed: bool = True) -> Measured | None:
        """Measure a candidate, and the other ways to compute it, as far as more may be measured."""
        found = self._try(candidate, timed)
        for way in found.ways if timed and found is not None and not found.same_as else ():
            self._try(ways.computed(candidate, way), timed)
        return found

    def _try(self, candidate: Candidate, timed: bool) -> Measured | None:
        measured = sum(not rung.same_as for rung in self.rungs)
        if measured >= self.settings.evaluations - self._reserved:
            self.exhausted = True
            return None
        self._tried.append(candidate.settings)
        self._candidates[candidate.name] = candidate
        found = replace(self._measure(candidate, timed), changed=candidate.changed)
        self.rungs.append(self._judged(found))
        return self.rungs[-1]

    def _drops(self, candidate: Candidate) -> bool:
        """Whether a candidate drops too much in one of the ways that it was computed in."""
        tried = [rung for rung in self.rungs if rung.name.partition("+")[0] == candidate.name and rung.drop is not None]
        return any(not self.within(rung) for rung in tried)

    def within(self, found: Measured) -> bool:
        """Whether a candidate keeps to the budget."""
        return found.drop is not None and found.drop <= self.settings.max_drop

    def slow(self, found: Measured) -> str:
        """Say that a model is no faster than the float one, where it isn't wanted for its size; else ""."""
        if self.settings.objective == "size" or found.latency is None or found.latency_range is None:
            return ""
        low, high = found.latency_range
        if low > 1 or (found.latency >= 1 and high > 1):
            return f"no faster than the float model: {found.latency:.2f}× ({low:.2f}–{high:.2f}) of its latency"
        return ""

    def _judged(self, found: Measured) -> Measured:
        """Refuse what drops too much, and what isn't faster than the float model."""
        if found.refused:
            return found
        if found.drop is not None and found.drop > self.settings.max_drop:
            told = f"drops {found.drop:.2f} points, the budget is {self.settings.max_drop:g}"
            return replace(found, refused=told)
        told = self.slow(found)
        return replace(found, refused=told) if told else found

    # -- integers everywhere -------------------------------------------------------------------------------------------

    def _integers(self, base: QuantizeSettings) -> Rung | None:
        """Return the best with integers everywhere, timed; ``None`` where there is none."""
        first = ways.start(base)
        found = self.try_one(first)
        if found is None or found.drop is None:
            return None
        best: Rung = first, found
        if self.within(found):
            for candidate in ways.unguarded(first, found.told):
                free = self.try_one(candidate)
                if free is not None and self.within(free) and not free.same_as:
                    best = candidate, free
                    break
        if (self.within(best[1]) and self.settings.objective != "accuracy") or self.slow(best[1]):
            return best  # what is tried next is as fast and as large: it can't be better
        return self._timed(self._mended(best))

    def _mended(self, best: Rung) -> Rung:
        """Change one thing after another at the same speed, and keep what helps, until the budget is kept."""
        for way in ways.repairs():
            if (change := way(best[0].settings, best[1].told)) is None:
                continue
            candidate = ways.changed(best[0], *change)
            if candidate.settings in self._tried:  # back where a step began
                continue
            found = self.try_one(candidate, timed=False)
            if found is None:
                break
            if found.drop is not None and best[1].drop is not None and found.drop < best[1].drop:
                best = candidate, found
            if self.within(found) and self.settings.objective != "accuracy":
                break
        return best

    def _timed(self, best: Rung) -> Rung:
        """Time the best where it wasn't: others of the same speed are only held against its accuracy."""
        if best[1].latency is not None:
            return best
        return best[0], self._time(best[1])

    def _time(self, rung: Measured) -> Measured:
        """Time what was only scored. Where it is slow, so are the others that weren't timed: they differ in values."""
        found = self._judged(replace(self._measure(self._candidates[rung.name], True), changed=rung.changed))
        if found.latency is None and not found.refused:
            found = replace(found, refused="it can't be timed")
        self.rungs[next(place for place, one in enumerate(self.rungs) if one is rung)] = found
        if self.slow(found):
            told = f"as fast as {found.name}, and that one is {self.slow(found)}"
            self.rungs = [
                replace(one, refused=told) if one.latency is None and not one.refused else one for one in self.rungs
            ]
        return found

    # -- layers in float and in 16 bits ------------------------------------------------------------------------------

    def _layers(self, best: Candidate, ranking: Ranking, wide: bool) -> None:
        """Give the layers that the output minds most more bits, by each kind; ``wide``: 16 bits everywhere suffice.

        A layer in float loses nothing, one in 16 bits what rounding its weights does: as many of the one kind as don't
        suffice don't of the other. The kind comes first that is better by the objective: float is faster in ONNX
        Runtime, 16 bits are smaller.
        """
        order = list(ranking(best))
        if self.settings.objective == "size":
            if wide:
                self._relax(best, order, "int16")
            self._relax(best, order, "float")
            return
        count = self._relax(best, order, "float")
        if not wide or not count:
            return
        self._relax(best, order, "int16", count)
        if count > 1:
            half = (count + 1) // 2
            self.try_one(ways.layers(best, order[:half], order[half:count]))

    def _relax(self, best: Candidate, order: Sequence[str], kind: Kind, first: int = 1) -> int:
        """Try twice as many layers at each rung, then as few as suffice; return how many do, 0 where none does."""
        few, many, count, most = first - 1, 0, first, len(order) - 1
        while few < most:
            found = self.try_one(_some(best, order, count, kind))
            if found is None:
                return 0
            if self.within(found):
                many = count
                break
            few, count = count, min(2 * count, most)
        while many and many - few > 1:
            middle = (few + many) // 2
            found = self.try_one(_some(best, order, middle, kind))
            if found is None:
                return many
            if self.within(found):
                many = middle
            else:
                few = middle
        return many

    # -- the result ----------------------------------------------------------------------------------------------------

    def result(self) -> Searched:
        """Choose among those that weren't refused, and none that wasn't timed."""
        chosen = self._best()
        while chosen is not None and chosen.latency is None:
            self._time(chosen)
            chosen = self._best()
        missed = [rung for rung in self.rungs if rung.refused and not rung.same_as]
        nearest = min(missed, key=lambda one: one.drop if one.drop is not None else float("inf"), default=None)
        told = "" if chosen is not None or nearest is None else f"{nearest.name}: {nearest.refused}"
        return Searched(
            chosen.name if chosen else "", tuple(self.rungs), front(self.rungs), told,
            chosen.settings if chosen else {}, self.exhausted, options=chosen.options if chosen else {},
        )  # fmt: skip

    def _best(self) -> Measured | None:
        return min((rung for rung in self.rungs if not rung.refused), key=self._rank, default=None)

    def _rank(self, one: Measured) -> tuple[float, ...]:
        latency = one.latency if one.latency is not None else float("inf")
        drop = one.drop if one.drop is not None else float("inf")
        if self.settings.objective == "size":
            return (one.size_bytes, latency, drop)
        if self.settings.objective == "accuracy":
            return (drop, latency, one.size_bytes)
        return (latency, drop, one.size_bytes)


def _some(best: Candidate, order: Sequence[str], count: int, kind: Kind) -> Candidate:
    """Return the best with its first layers, in the order of a ranking, in float or in 16 bits."""
    some = order[:count]
    return ways.layers(best, some, ()) if kind == "float" else ways.layers(best, (), some)
