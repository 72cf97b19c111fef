"""The ways a search tries: each changes one thing of the best so far, where that can make a difference.

1. At the same speed: bias correction, the rounding of weights, the ranges, what is scaled against what.
2. At another speed: without the guard, with quantized outputs, all activations in 16 bits.
3. By layers: those that the output minds most in float, or with 16-bit activations, or some of each.

A thing that the last model shows to make no difference isn't tried: without a channel that was scaled there is nothing
to leave unscaled, and adaptive rounding corrects biases by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from penstock.jsonable import Json
from penstock.stages.quantize import RANGES, QuantizeSettings
from penstock.stages.search import Candidate

MOST_NAMES = 3  # of layers that a step lists
TWO_WAYS = "weight-only"  # the method whose models a runtime can compute with activations in float or in integers
Told = Mapping[str, Json]  # what making a model told: layers guarded, sites scaled, the ranges that were chosen


def start(base: QuantizeSettings) -> Candidate:
    """Return the first candidate."""
    return Candidate("static", replace(base, method="static"), "the start")


def unguarded(best: Candidate, told: Told) -> Iterator[Candidate]:
    """Yield the way without layers that the guard left in float, where it left some."""
    if best.settings.guard and told.get("guarded"):
        free = _step(best, "no guard", guard=False)
        yield free
        if not _adaptive(free.settings, told):
            yield _step(free, "adaptive rounding", rounding="adaptive")


def repairs() -> tuple[Callable[[QuantizeSettings, Told], tuple[str, Mapping[str, object]] | None], ...]:
    """Return what may be changed at the same speed, the likeliest to help first: each a name and settings, or None."""
    return (
        lambda now, told: _unless(
            now.correct_bias == "empirical" or _adaptive(now, told),
            "bias corrected on samples", correct_bias="empirical",
        ),
        lambda now, told: _unless(_adaptive(now, told), "adaptive rounding", rounding="adaptive"),
        lambda now, told: _unless(not _adaptive(now, told), "rounded to the nearest", rounding="nearest"),
        *(_ranges(name) for name in ("minmax", "mse", "percentile", "entropy", "moving-average") if name in RANGES),
        lambda now, told: _switched(now.equalize, told.get("equalized"), "equalize", "equalized"),
        lambda now, told: _switched(now.smooth, told.get("smoothed"), "smooth", "smoothed"),
        lambda now, told: _unless(
            now.correct_bias == "analytic" or _adaptive(now, told),
            "bias corrected by the weights", correct_bias="analytic",
        ),
        lambda now, told: _unless(
            now.correct_bias == "none" or _adaptive(now, told), "bias not corrected", correct_bias="none"
        ),
    )  # fmt: skip


def _adaptive(now: QuantizeSettings, told: Told) -> bool:
    """Whether the last model's weights were rounded by what the layers read."""
    return (told.get("rounding") if now.rounding == "auto" else now.rounding) == "adaptive"


def _ranges(name: str) -> Callable[[QuantizeSettings, Told], tuple[str, Mapping[str, object]] | None]:
    return lambda now, told: _unless(name in (now.ranges, told.get("ranges")), f"{name} ranges", ranges=name)


def _unless(same: bool, name: str, **changes: object) -> tuple[str, Mapping[str, object]] | None:
    return None if same else (name, changes)


def _switched(on: bool, done: Json, setting: str, name: str) -> tuple[str, Mapping[str, object]] | None:
    """Switch a scaling off where it scaled something (``done`` isn't 0), or on where it was off."""
    if on:
        return None if done == 0 else (f"not {name}", {setting: False})
    return name, {setting: True}


def changed(best: Candidate, name: str, changes: Mapping[str, object]) -> Candidate:
    """Return the best with some settings changed."""
    return _step(best, name, **changes)


def outputs(best: Candidate, told: Told) -> Iterator[Candidate]:
    """Yield the way with quantized outputs, where some are in float."""
    if not best.settings.quantize_outputs and told.get("float_outputs") != 0:
        yield _step(best, "outputs quantized", quantize_outputs=True)


def wide_type(settings: QuantizeSettings) -> str:
    """Return the type that activations of 16 bits would have; "" where the consumer or the format takes none."""
    from penstock.quantization.consumers import CONSUMERS
    from penstock.quantization.wide import TYPES

    table = CONSUMERS[settings.consumer]
    found = TYPES.get(settings.activations or table.activations[0], "")
    return found if found in table.activations and settings.format == "qdq" else ""


def all_wide(best: Candidate) -> Candidate:
    """Return the way with all activations in 16 bits: what single layers of 16 bits can reach at most."""
    dtype = wide_type(best.settings)
    return _step(best, f"{dtype} activations", activations=dtype, int16_layers=())


def layers(best: Candidate, in_float: Sequence[str], in_int16: Sequence[str]) -> Candidate:
    """Return the best with some layers in float, and some with 16-bit activations."""
    now = best.settings
    wide = (*(name for name in now.int16_layers if name not in in_float), *in_int16)
    parts = [f"{_count(some)} in {kind}" for some, kind in ((in_float, "float"), (in_int16, "int16")) if some]
    told = [f"{kind}: {_listed(some)}" for some, kind in ((in_float, "float"), (in_int16, "int16")) if some]
    settings = replace(now, exclude=(*now.exclude, *in_float), int16_layers=wide)
    return Candidate(f"{best.name}, {' and '.join(parts)}", settings, "; ".join(told))


def methods(base: QuantizeSettings, names: Sequence[str]) -> Iterator[Candidate]:
    """Yield the other quantizers."""
    for name in names:
        yield Candidate(name, replace(base, method=name, int16_layers=()), f"method = {name}")


def eight_bits(base: QuantizeSettings) -> Candidate:
    """Return weights alone in 8 bits: twice as large as in 4, and far closer to the float model."""
    settings = replace(base, method=TWO_WAYS, weight_bits=8, int16_layers=())
    return Candidate(f"{TWO_WAYS}, 8 bits", settings, "weight_bits = 8")


def computed(candidate: Candidate, way: str) -> Candidate:
    """Return the same model, computed in another way."""
    return replace(candidate, name=f"{candidate.name}+{way}", changed=f"computed with {way}", way=way)


def _step(best: Candidate, name: str, **changes: object) -> Candidate:
    settings = replace(best.settings, **changes)  # type: ignore[arg-type]  # names and types are this file's own
    told = ", ".join(f"{key} = {_shown(value)}" for key, value in changes.items() if value != ())
    steps = {**dict(best.steps), next(iter(changes)): name}  # a setting that is changed again has its last name alone
    return Candidate(", ".join(("static", *steps.values())), settings, told, tuple(steps.items()))


def _shown(value: object) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def _count(names: Sequence[str]) -> str:
    return "1 layer" if len(names) == 1 else f"{len(names)} layers"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more
