"""What a choice leaves open: the ranges, and how weights are rounded.

Ranges are chosen the way that is best at the model's own output, measured on some samples.

No way is best for all models: clipping hurts where averages follow, wide ranges where small values matter. What was
seen of the tensors serves all ways, so trying one costs a run over some samples and no calibration.

Weights are rounded by what the layers read (:mod:`.rounding`) where that was seen on data: inputs that are made up are
nothing to fit integers to, and neither are a handful.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from penstock.quantization import beside, sensitivity

if TYPE_CHECKING:
    from penstock.quantization.study import Choice, Study

AUTO = "auto"
WAYS = ("mse", "minmax", "entropy")
SAMPLES = 512  # one sample in a hundred that a range clips hard can cost what the others gain: few don't show it
ENOUGH = 32  # samples, to round weights by what layers read on them
GOOD_DB = 25.0  # an output that is better than this has little to gain
# by which another way than the first has to be better: less is these samples alone, as often as not
MARGIN_DB, MARGIN_WHERE_BAD_DB = 4.0, 1.0


def resolved(study: Study, choice: Choice) -> tuple[Choice, dict[str, float]]:
    """Return the choice with the best way in place of each ``auto``, and the dB that each way to choose ranges gave."""
    if choice.rounding == AUTO:
        data = study.batches.description.get("kind") != "seeded" and study.batches.count >= ENOUGH
        choice = replace(choice, rounding="adaptive" if data else "nearest")
    if choice.ranges != AUTO:
        return choice, {}
    samples = (study.cleaned or study.batches).some(SAMPLES)
    with beside.opened(study.model, samples) as held:
        found = {way: sensitivity.whole(study, replace(choice, ranges=way), held) for way in WAYS}
    margin = MARGIN_DB if found[WAYS[0]] >= GOOD_DB else MARGIN_WHERE_BAD_DB
    best = max(WAYS, key=lambda way: found[way] + (margin if way == WAYS[0] else 0.0))
    return replace(choice, ranges=best), found
