"""Search: the fastest quantized model within an accuracy budget, found by measuring both, in a bounded number of steps.

1. The float model is scored on the select split and timed; everything is held against it.
2. Cheap choices first: integers everywhere, with the ranges and repairs that cost nothing at run time. Of those the
   most accurate is kept; they are all equally fast, so that one is timed.
3. Where it drops too much, the layers that the output minds most go back to float, twice as many at each rung.
4. Other methods (dynamic, 16 bits, weights alone) are tried beside it.
5. The best by the objective among those within the budget is the result. A variant that isn't faster than the float
   model is refused where speed is wanted, with the figures.

Every evaluation is kept in the cache, so that a search that was interrupted goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from penstock.errors import InputError
from penstock.jsonable import Json
from penstock.settings import option
from penstock.stages.quantize import QuantizeSettings


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """What is wanted, and how much may be tried."""

    max_drop: float = option(0.5, "accuracy budget: largest drop to the float model, in percentage points", minimum=0.0)
    objective: str = option("latency", "what the best is best at", choices=("latency", "size", "accuracy"))
    evaluations: int = option(24, "models that are made and measured at most", minimum=1)
    fresh: bool = option(False, "measure anew what an earlier search of the same model and data measured")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One thing to try: what it is called, and the settings that make it."""

    name: str
    settings: QuantizeSettings


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured of one candidate; ``refused`` says why it isn't taken, ``reused`` that it was measured before.

    ``drop`` in points of the score, with its 95 % interval, on the select split. ``latency`` is the ratio to the float
    model, with its interval; ``None`` where it wasn't timed.
    """

    name: str
    score: float | None
    drop: float | None
    drop_range: tuple[float, float] | None
    latency: float | None
    latency_range: tuple[float, float] | None
    size_bytes: int
    refused: str
    reused: bool = False
    settings: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Searched:
    """The result: the chosen candidate ("" where none fits), each rung in order, and those that no other one beats."""

    chosen: str
    rungs: tuple[Measured, ...]
    front: tuple[str, ...]
    nearest_miss: str
    settings: Mapping[str, Json]
    exhausted: bool  # the evaluations were used up before everything was tried


# measures a candidate: with its latency or without
Measure = Callable[[Candidate, bool], Measured]
# the weighted layers of a candidate that compute on integers, the one that the output minds most first
Ranking = Callable[[Candidate], Sequence[str]]


def climb(
    base: QuantizeSettings, settings: SearchSettings, methods: Sequence[str], measure: Measure, ranking: Ranking
) -> Searched:
    """Climb the ladder; ``methods`` are the other quantizers that can run here."""
    way = _Climb(settings, measure)
    best = way.most_accurate(_static(base))
    if best is not None and not way.within(best[1]):
        way.relax(best[0], ranking)
    for candidate in _others(base, methods):
        way.try_one(candidate)
    return way.result()


def _static(base: QuantizeSettings) -> Iterator[Candidate]:
    """Yield the ways to choose integers for the same placement, the likeliest first."""
    plain = replace(base, method="static")
    yield Candidate("static", plain)
    yield Candidate("static, bias corrected on samples", replace(plain, correct_bias="empirical"))
    yield Candidate("static, adaptive rounding", replace(plain, rounding="adaptive"))
    yield Candidate("static, minmax, adaptive rounding", replace(plain, ranges="minmax", rounding="adaptive"))
    for ranges in ("minmax", "mse", "entropy", "percentile", "moving-average"):
        yield Candidate(f"static, {ranges}", replace(plain, ranges=ranges))
    yield Candidate("static, not balanced", replace(plain, equalize=False, smooth=False))


def _others(base: QuantizeSettings, methods: Sequence[str]) -> Iterator[Candidate]:
    from penstock.quantization.consumers import CONSUMERS

    if not base.quantize_outputs:
        yield Candidate("static, outputs quantized", replace(base, method="static", quantize_outputs=True))
    if not base.activations and "int16" in CONSUMERS[base.consumer].activations:
        yield Candidate("static, int16 activations", replace(base, method="static", activations="int16"))
    for method in methods:
        yield Candidate(method, replace(base, method=method))


class _Climb:
    def __init__(self, settings: SearchSettings, measure: Measure) -> None:
        self.settings, self._measure = settings, measure
        self.rungs: list[Measured] = []
        self.exhausted = False

    def try_one(self, candidate: Candidate, *, timed: bool = True) -> Measured | None:
        """Measure a candidate, if one more may be measured."""
        if len(self.rungs) >= self.settings.evaluations:
            self.exhausted = True
            return None
        found = self._measure(candidate, timed)
        self.rungs.append(self._judged(found))
        return self.rungs[-1]

    def _judged(self, found: Measured) -> Measured:
        """Refuse what drops too much, and what isn't faster where speed is wanted."""
        if found.refused:
            return found
        if found.drop is not None and found.drop > self.settings.max_drop:
            told = f"drops {found.drop:.2f} points, the budget is {self.settings.max_drop:g}"
            return replace(found, refused=told)
        if self.settings.objective == "latency" and found.latency is not None and found.latency_range is not None:
            low, high = found.latency_range
            if low > 1 or (found.latency >= 1 and high > 1):
                told = f"no faster than the float model: {found.latency:.2f}× ({low:.2f}–{high:.2f}) of its latency"
                return replace(found, refused=told)
        return found

    def within(self, found: Measured) -> bool:
        """Whether a candidate keeps to the budget."""
        return found.drop is not None and found.drop <= self.settings.max_drop

    def most_accurate(self, candidates: Iterator[Candidate]) -> tuple[Candidate, Measured] | None:
        """Try candidates of equal speed until one keeps to the budget; return the best, timed once."""
        best: tuple[Candidate, Measured] | None = None
        for candidate in candidates:
            found = self.try_one(candidate, timed=best is None)
            if found is None:
                break
            if found.drop is not None and (best is None or best[1].drop is None or found.drop < best[1].drop):
                best = (candidate, found)
            if self.within(found) and self.settings.objective != "accuracy":
                break
        if best is not None and best[1].latency is None:
            timed = next((rung for rung in self.rungs if rung.latency is not None), None)
            if timed is not None:
                like = replace(best[1], latency=timed.latency, latency_range=timed.latency_range, refused="")
                place = self.rungs.index(best[1])
                self.rungs[place] = self._judged(like)
                best = (best[0], self.rungs[place])
        return best

    def relax(self, best: Candidate, ranking: Ranking) -> None:
        """Leave the layers in float that the output minds most, twice as many at each rung, then as few as suffice."""
        order = list(ranking(best))
        few, many, count = 0, 0, 1
        while count < len(order):
            found = self.try_one(self._left(best, order, count))
            if found is None:
                return
            if self.within(found):
                many = count
                break
            few, count = count, count * 2
        while many and many - few > 1:
            middle = (few + many) // 2
            found = self.try_one(self._left(best, order, middle))
            if found is None:
                return
            if self.within(found):
                many = middle
            else:
                few = middle

    def _left(self, best: Candidate, order: Sequence[str], count: int) -> Candidate:
        left = (*best.settings.exclude, *order[:count])
        layers = "1 layer" if count == 1 else f"{count} layers"
        return Candidate(f"{best.name}, {layers} in float", replace(best.settings, exclude=left))

    def result(self) -> Searched:
        """Choose among those that weren't refused."""
        fitting = [rung for rung in self.rungs if not rung.refused]
        chosen = min(fitting, key=self._rank, default=None)
        missed = [rung for rung in self.rungs if rung.refused]
        nearest = min(missed, key=lambda one: one.drop if one.drop is not None else float("inf"), default=None)
        told = "" if chosen is not None or nearest is None else f"{nearest.name}: {nearest.refused}"
        return Searched(
            chosen.name if chosen else "", tuple(self.rungs), front(self.rungs), told,
            chosen.settings if chosen else {}, self.exhausted,
        )  # fmt: skip

    def _rank(self, one: Measured) -> tuple[float, ...]:
        latency = one.latency if one.latency is not None else float("inf")
        drop = one.drop if one.drop is not None else float("inf")
        if self.settings.objective == "size":
            return (one.size_bytes, latency, drop)
        if self.settings.objective == "accuracy":
            return (drop, latency, one.size_bytes)
        return (latency, drop, one.size_bytes)


def front(rungs: Sequence[Measured]) -> tuple[str, ...]:
    """Return the names of those that no other one beats in size, latency and accuracy together (Pareto)."""
    held = [rung for rung in rungs if rung.latency is not None and rung.drop is not None]

    def figures(one: Measured) -> tuple[float, float, float]:
        assert one.latency is not None and one.drop is not None
        return (one.size_bytes, one.latency, one.drop)

    def beaten(one: Measured) -> bool:
        mine = figures(one)
        return any(
            all(theirs <= own for theirs, own in zip(figures(other), mine, strict=True)) and figures(other) != mine
            for other in held
        )

    return tuple(one.name for one in held if not beaten(one))


def plain(settings: QuantizeSettings) -> dict[str, Any]:
    """Return what differs from the defaults, as a settings file would hold it."""
    base = asdict(QuantizeSettings())
    return {name: value for name, value in asdict(settings).items() if value != base[name]}


def unusable(error: InputError, name: str) -> Measured:
    """Return what is told of a candidate that couldn't be made."""
    return Measured(name, None, None, None, None, None, 0, f"can't be made: {error.what}")
