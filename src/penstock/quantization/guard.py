"""Guard: leave those few layers in float that by themselves make most of the error at the output.

A first convolution whose channels differ by a hundred times, with an activation behind it that nothing can be scaled
through, may cost 12 dB where all others together cost 26: no range and no rounding mends that. Each layer's effect is
measured alone (:mod:`.sensitivity`), on few samples. Where the output is bad, the layers that make most of the error go
back to float, until what is left would do, or one layer in ten has gone.
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
GOOD_DB = 25.0  # an output that is better than this needs no guard
SHARE = 0.05  # of the sum of all layers' errors: a layer that makes less isn't worth its float
FEWEST = 4  # layers: what fewer do to each other is for the user to judge
MOST_LAYERS = 200  # that are measured; a model of more is left as it is
MOST_LEFT = 0.1  # of the layers may go back to float


@dataclass(frozen=True, slots=True)
class Left:
    """A layer that goes back to float: its effect alone, and its share of the sum of all."""

    node: str
    sqnr_db: float
    share: float


def guarded(study: Study, choice: Choice) -> tuple[Choice, list[Left]]:
    """Return the choice with such layers excluded, and which those are."""
    count = len(study.placed(choice).integers)
    if count < FEWEST or count > MOST_LAYERS or choice.only is not None or choice.table.everything:
        return choice, []
    samples = (study.cleaned or study.batches).some(SAMPLES)
    want = sensitivity.outputs(study.model, samples)
    if sensitivity.whole(study, choice, samples, want) >= GOOD_DB:
        return choice, []
    left = worst(sensitivity.layers(study, choice, samples=samples, wanted=want)[0], count)
    return replace(choice, exclude=(*choice.exclude, *(one.node for one in left))), left


def worst(effects: Sequence[LayerEffect], count: int) -> list[Left]:
    """Choose, of effects sorted by the worst first, those to leave in float."""
    noise = [(one, 10 ** (-one.sqnr_db / 10)) for one in effects]
    whole = sum(part for _, part in noise)
    found: list[Left] = []
    for one, part in noise:
        rest = sum(part for _, part in noise[len(found) :])
        if rest <= 10 ** (-GOOD_DB / 10) or part <= SHARE * rest or len(found) >= max(1, int(MOST_LEFT * count)):
            break
        found.append(Left(one.node, one.sqnr_db, part / whole))
    return found
