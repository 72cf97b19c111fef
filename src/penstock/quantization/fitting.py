"""Fitting: a few parameters of made-up inputs, so that what the normalizations read is what they remember.

There is no gradient to be had from a runtime, and none is needed: with the random parts of the samples held fast, means
and deviations are smooth in the parameters, and finite differences serve Levenberg and Marquardt's method (Marquardt,
1963). It begins from the best of the usual forms of an image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    Array = np.ndarray[Any, np.dtype[Any]]
    Residuals = Callable[[Array], Array]

FORMS = ((1.0, 0.0), (0.25, 0.5), (64.0, 117.0), (0.5, 0.0))  # deviation and mean: normal, 0 to 1, 0 to 255, -1 to 1
STEP = 0.01  # of the finite differences; parameters are logarithms and deviations
FARTHEST = 2.0  # that a parameter goes in one step
TRIES = 4  # at a step, before it gives up
ENOUGH = 1e-3  # of the cost: a step that gains less is the last


@dataclass(slots=True)
class Fit:
    """Where the fit stands: parameters, their residuals, and the cost with what holds weak parameters in place."""

    parameters: Array
    residuals: Array
    cost: float


def fit(residuals: Residuals, starts: list[Array], weak: Array, steps: int) -> Array:
    """Return the parameters with the least squared residuals that ``steps`` steps find.

    ``weak`` holds for each parameter how strongly it is held where the best start has it.
    """

    def at(parameters: Array, home: Array) -> Fit:
        found = residuals(parameters)
        held = float(found @ found + np.square(weak * (parameters - home)).sum())
        return Fit(parameters, found, held if np.isfinite(held) else np.inf)

    now = min((at(start, start) for start in starts), key=lambda one: one.cost)
    home, damping = now.parameters, 0.1
    for _ in range(steps):
        if not np.isfinite(now.cost):
            break
        slopes = np.stack([(residuals(now.parameters + step) - now.residuals) / STEP
                           for step in STEP * np.eye(len(home))], axis=1)  # fmt: skip
        if not np.isfinite(slopes).all():
            break
        square = slopes.T @ slopes + np.diag(weak**2)
        downhill = -(slopes.T @ now.residuals + weak**2 * (now.parameters - home))
        before = now.cost
        for _ in range(TRIES):
            move = np.linalg.solve(square + damping * np.diag(np.diag(square) + 1e-6), downhill)
            other = at(now.parameters + move.clip(-FARTHEST, FARTHEST), home)
            if other.cost < now.cost:
                now, damping = other, damping / 3
                break
            damping *= 4
        if now.cost > before * (1 - ENOUGH):
            break
    return now.parameters
