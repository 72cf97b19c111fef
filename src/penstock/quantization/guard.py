"""Guard: leave those few layers in float that by themselves make most of the error at the output.

A first convolution whose channels differ by a hundred times, with an activation behind it that nothing can be scaled
through, may cost 12 dB where all others together cost 26: no range and no rounding mends that. Each layer's effect is
measured alone (:mod:`.sensitivity`), on few samples. Where the output is bad, the layers that make most of the error go
back to float, until what is left would do, or one layer in ten has gone (of few layers, one).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from penstock.quantization import beside, sensitivity

if TYPE_CHECKING:
    from penstock.quantization.sensitivity import LayerEffect
    from penstock.quantization.study import Choice, Study

SAMPLES = 64  # fewer don't show what is rare and large
GOOD_DB = 25.0  # an output that is better than this needs no guard
SHARE = 0.05  # of the sum of all layers' errors: a layer that makes less isn't worth its float
FEWEST = 4  # layers: what fewer do to each other is for the user to judge
MOST_LAYERS = 200  # that are measured; a model of more is left as it is
MOST_LEFT = 0.1  # of the layers may go back to float


@dataclass(frozen=True, slots=True)
class Left:
    """A layer that goes back to float: its effect alone at the output that is worst, and its share of all effects."""

    node: str
    sqnr_db: float
    share: float


def guarded(study: Study, choice: Choice) -> tuple[Choice, list[Left]]:
    """Return the choice with such layers excluded, and which those are."""
    count = len(study.placed(choice).integers)
    if count < FEWEST or count > MOST_LAYERS or choice.only is not None or choice.table.everything:
        return choice, []
    samples = (study.cleaned or study.batches).some(SAMPLES)
    with beside.opened(study.model, samples) as held:
        if sensitivity.whole(study, choice, held) >= GOOD_DB:
            return choice, []
        left = worst(sensitivity.layers(study, choice, held=held)[0], count)
    return replace(choice, exclude=(*choice.exclude, *(one.node for one in left))), left


def worst(effects: Sequence[LayerEffect], count: int) -> list[Left]:
    """Choose layers to leave in float: the one that makes most of the error of the output that is worst, and again."""
    noise = np.array([[10 ** (-level / 10) for level in one.outputs_db] for one in effects])
    if not noise.size:
        return []
    whole = noise.sum(axis=0)
    found: list[Left] = []
    while len(found) < max(1, int(MOST_LEFT * count)):
        rest = noise.sum(axis=0)
        output = int(rest.argmax())
        layer = int(noise[:, output].argmax())
        if rest[output] <= 10 ** (-GOOD_DB / 10) or noise[layer, output] <= SHARE * rest[output]:
            break
        found.append(
            Left(effects[layer].node, effects[layer].outputs_db[output], float(noise[layer, output] / whole[output]))
        )
        noise[layer] = 0.0
    return found
