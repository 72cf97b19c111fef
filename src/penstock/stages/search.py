"""Search: the fastest quantized model within an accuracy budget, found by measuring both, in a bounded number of steps.

1. The float model is scored on the select split and timed; everything is held against it.
2. Integers everywhere come first. Where that drops too much, one thing after another is changed that costs nothing at
   run time (bias correction, rounding, ranges, scaling of channels), and kept where it helps.
3. Where the budget isn't kept yet, the layers that the output minds most go to float, or get 16-bit activations: twice
   as many at each rung, then as few as suffice, then half of each.
4. Other methods (dynamic, 16-bit floats, weights alone) are tried beside it; evaluations are kept for them.
5. The best by the objective among those within the budget is the result, and it was timed. A variant that isn't faster
   than the float model is refused with the figures, but where a small one is wanted: the float model is more accurate
   than any. One that is the same file as another is neither measured again nor chosen.

Every evaluation is kept in the cache, so that a search that was interrupted goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from penstock import settings as declared
from penstock.errors import InputError, UsageError
from penstock.jsonable import Json
from penstock.settings import option
from penstock.stages.quantize import QuantizeSettings

if TYPE_CHECKING:
    from penstock.stages.bench import BenchSettings


BACKENDS = {"ort-cpu": "onnxruntime", "openvino": "openvino"}  # what measures for a consumer
# settings of other sections that a search doesn't read, each with the reason
_TIMED_ALONE = "a search measures the latency of single samples"
UNREAD: dict[str, dict[str, str]] = {
    "quantize": {
        "quantize": "a search makes quantized models, and nothing else",
        "method": "a search begins with static and tries the other methods after it",
        "also_methods": "a search begins with static and tries the other methods after it",
        "calibration": "a search calibrates on the data that it needs anyway",
        "sensitivity": "a search measures by itself which layers the output minds most, and tells no more of it",
    },
    "bench": {
        "baseline": "a search holds every model against the float one",
        "throughput_batch": _TIMED_ALONE,
        "footprint": _TIMED_ALONE,
        "footprint_timeout_s": _TIMED_ALONE,
    },
}


def need_read(values: QuantizeSettings | BenchSettings, section: str, asked: Collection[str] | None = None) -> None:
    """Raise ``UsageError`` where a setting is asked for that a search doesn't read.

    ``asked`` names those that were asked for (default: all that differ from their defaults).
    """
    for one in declared.fields(section):
        value = getattr(values, one.name)
        if one.name not in UNREAD[section] or (value == one.default if asked is None else one.name not in asked):
            continue
        on, _, off = one.flag.partition("/")
        flag = (off or f"--no-{on[2:]}") if value is False else on
        do = "leave it out"
        if "method" in one.name:
            do += "; `penstock quantize --method NAME` makes a model by one method"
        what = f"{flag} has no effect in a search: {UNREAD[section][one.name]}"
        raise UsageError("cannot-serve", what, where=flag, do=do)


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """What is wanted, and how much may be tried."""

    max_drop: float = option(0.5, "accuracy budget: largest drop to the float model, in percentage points", minimum=0.0)
    objective: str = option("latency", "what the best is best at", choices=("latency", "size", "accuracy"))
    evaluations: int = option(24, "models that are made and measured at most", minimum=1)
    fresh: bool = option(False, "measure anew what an earlier search of the same model and data measured")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One thing to try: what it is called, the settings that make it, and what this step changes."""

    name: str
    settings: QuantizeSettings
    changed: str = ""  # against the candidate that it was made from
    steps: tuple[tuple[str, str], ...] = ()  # what it is called after: a setting and what was chosen for it, in words
    way: str = ""  # how the backend computes it, as its ``ways`` name it; "" is the plain way


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured of one candidate; ``refused`` says why it isn't taken, ``reused`` that it was measured before.

    ``drop`` in points of the score, with its 95 % interval, on the select split. ``latency`` is the ratio to the float
    model, with its interval; ``None`` where it wasn't timed. ``changed``: what this step changed; ``told``: what making
    the model told, by which the next steps are chosen. ``options``: what the runtime has to be given to compute it as
    it was measured, as the runtime names them. ``same_as`` names the rung that is the same file and has its figures.
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
    changed: str = ""
    told: Mapping[str, Json] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    ways: tuple[str, ...] = ()  # the other ways in which the backend can compute it
    digest: str = ""  # of the model's files
    same_as: str = ""


@dataclass(frozen=True, slots=True)
class Searched:
    """The result: the chosen candidate ("" where none fits), each rung in order, and those that no other one beats.

    ``backend`` is where all was measured; ``options`` are what it has to be given to run the chosen one so.
    """

    chosen: str
    rungs: tuple[Measured, ...]
    front: tuple[str, ...]
    nearest_miss: str
    settings: Mapping[str, Json]
    exhausted: bool  # the evaluations were used up before everything was tried
    backend: str = ""
    options: Mapping[str, str] = field(default_factory=dict)


# measures a candidate: with its latency or without
Measure = Callable[[Candidate, bool], Measured]
# the weighted layers of a candidate that compute on integers, the one that the output minds most first
Ranking = Callable[[Candidate], Sequence[str]]


def climb(
    base: QuantizeSettings, settings: SearchSettings, methods: Sequence[str], measure: Measure, ranking: Ranking
) -> Searched:
    """Climb the ladder; ``methods`` are the other quantizers that can run here."""
    from penstock.stages._search_climb import Climb

    return Climb(settings, measure).run(base, methods, ranking)


def front(rungs: Sequence[Measured]) -> tuple[str, ...]:
    """Return the names of those that no other one beats in size, latency and accuracy together (Pareto)."""
    held = [rung for rung in rungs if rung.latency is not None and rung.drop is not None and not rung.same_as]

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


def same(candidate: Candidate, other: Measured) -> Measured:
    """Return the figures of another rung for a candidate that is the same file; it is never chosen before that one."""
    refused = f"the same file as {other.name}"
    return replace(other, name=candidate.name, refused=refused, settings=plain(candidate.settings), same_as=other.name)


def told(facts: Mapping[str, Json]) -> dict[str, Json]:
    """Return what a quantizer's facts say of which changes can make a difference."""
    if facts.get("method") != "static":
        return {}
    scaled = cast("list[dict[str, Json]]", facts.get("balanced") or [])
    return {
        "guarded": len(cast("list[Json]", facts.get("guarded") or [])), "ranges": facts.get("ranges"),
        "rounding": facts.get("rounding"),
        "smoothed": sum(one.get("by") == "smooth" for one in scaled),
        "equalized": sum(one.get("by") == "equalize" for one in scaled),
        "float_outputs": len(cast("list[Json]", facts.get("outputs_left_in_float") or [])),
    }  # fmt: skip


def unusable(error: InputError | UsageError, name: str) -> Measured:
    """Return what is told of a candidate that couldn't be made."""
    return Measured(name, None, None, None, None, None, 0, f"can't be made: {error.what}")
