"""Guard: leave those few layers in float that by themselves make most of the error at the output.

A first convolution whose channels differ by a hundred times, with an activation behind it that nothing can be scaled
through, may cost 12 dB where all others together cost 26: no range and no rounding mends that. Each layer's effect is
measured alone (:mod:`.sensitivity`), on few samples; a layer that makes more than half of the sum of all errors goes
back to float, then the next, as long as that holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from penstock.quantization import sensitivity

if TYPE_CHECKING:
    from penstock.quantization.sensitivity import LayerEffect
    from penstock.quantization.study import Choice, Study

SAMPLES = 16
SHARE = 0.5  # of the sum of all layers' errors, that one layer alone may make
FEWEST = 4  # layers: of fewer, one will make more than half
MOST_LAYERS = 150  # that are measured; a model of more is left as it is
MOST_LEFT = 0.1  # of the layers may go back to float
GOOD_DB = 40.0  # an output that is better than this with all layers needs no guard


@dataclass(frozen=True, slots=True)
class Left:
    """A layer that goes back to float: its effect alone, and its share of the sum of all."""

    node: str
    sqnr_db: float
    share: float


def guarded(study: Study, choice: Choice) -> tuple[Choice, list[Left]]:
    """Return the choice with such layers excluded, and which those are."""
    placed = study.placed(choice)
    count = len(placed.integers)
    if count < FEWEST or count > MOST_LAYERS or choice.only is not None or choice.table.everything:
        return choice, []
    samples = (study.cleaned or study.batches).some(SAMPLES)
    plain = replace(choice, correct_bias="none", rounding="nearest")
    want = sensitivity.outputs(study.model, samples)
    whole = sensitivity.effect("", "", sensitivity.outputs(study.quantized(plain).model, samples), want, samples.count)
    if whole.sqnr_db >= GOOD_DB:
        return choice, []
    left = worst(sensitivity.layers(study, choice, samples=samples, wanted=want)[0], count)
    return replace(choice, exclude=(*choice.exclude, *(one.node for one in left))), left


def worst(effects: Sequence[LayerEffect], count: int) -> list[Left]:
    """Choose, of effects sorted by the worst first, those that make more than their share of what remains."""
    noise = [(one, 10 ** (-one.sqnr_db / 10)) for one in effects]
    found: list[Left] = []
    while noise and len(found) < max(1, int(MOST_LEFT * count)):
        total = sum(part for _, part in noise)
        one, part = noise[0]
        if total <= 0 or part <= SHARE * total:
            break
        found.append(Left(one.node, one.sqnr_db, part / total))
        noise.pop(0)
    return found
