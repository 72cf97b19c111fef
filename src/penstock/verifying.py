"""Verifying a deployment: its gates, and one more where a runtime rounds integers in its own way.

TensorFlow Lite for Microcontrollers isn't bit-exact with other runtimes by nature. A quantized model on it is held
against ONNX Runtime's run of the same integers too: in steps of the outputs' grids, and by the top answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from penstock import graph, registry
from penstock.backends import Loadable
from penstock.errors import PenstockError
from penstock.stages.verify import Verification, VerifySettings, real, verify
from penstock.verdict import Outcome

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from penstock.backends import Session
    from penstock.deployment import Deployment
    from penstock.golden import Golden

REFERENCE = "onnxruntime"


def verified(
    model: Loadable, deployment: Deployment, session: Session, golden: Golden, settings: VerifySettings, *,
    seconds: float | None = None,
) -> Verification:  # fmt: skip
    """Hold an open session against the golden set, and by steps where its backend has ``ROUNDS_ITS_OWN_WAY``.

    ``seconds`` as in :func:`penstock.stages.verify.verify`.
    """
    kept: list[Sequence[np.ndarray]] = []
    found = verify(session, golden, deployment.computed_in, settings, seconds=seconds, seen=kept.append)
    backend = registry.load("backends", deployment.backend)
    counted = deployment.precision == "int8" and getattr(backend, "ROUNDS_ITS_OWN_WAY", False)
    if not counted or not found.samples or model.path is None:
        return found
    try:
        steps, flips = _apart(model.path, deployment, golden, kept)
    except PenstockError as error:
        what = f"it can't be held against {REFERENCE}'s integers: {error.what}"
        return replace(found, outcome=found.outcome if found.outcome.reason else Outcome(False, what))
    reason = found.outcome.reason
    if not reason and steps is not None and steps > settings.micro_steps:
        reason = f"it is {steps} steps of the output's grid from {REFERENCE}'s integers, the limit is "
        reason += str(settings.micro_steps)
    if not reason and flips is not None and flips > settings.micro_flips:
        reason = f"{flips:.2%} of the top answers aren't those of {REFERENCE}'s integers, the limit is "
        reason += f"{settings.micro_flips:.2%}"
    return replace(found, steps=steps, step_flips=flips, outcome=Outcome(not reason, reason))


def _apart(
    path: Path, deployment: Deployment, golden: Golden, kept: Sequence[Sequence[np.ndarray]]
) -> tuple[int | None, float | None]:
    """Return the largest difference in steps, and the share of top answers that differ; ``None`` where there are none.

    Outputs that no grid makes have no steps, outputs that aren't ``(n, classes)`` no top answers.
    """
    import numpy as np

    from penstock import aside
    from penstock.measures import Runnable

    grids = _grids(path)
    reference = aside.opened(Runnable(replace(deployment, backend=REFERENCE, options={}), Loadable(path), True))
    steps: list[int] = []
    flips, answers = 0, 0
    try:
        for run, (feeds, ours) in enumerate(zip(golden.feeds, kept, strict=False)):
            for name, *both in zip(golden.output_names, ours, reference.run(feeds), strict=True):
                mine, theirs = (real(one, golden, run) for one in both)
                if name in grids and mine.size:
                    apart = np.abs(mine.astype(np.float64) - theirs.astype(np.float64)) / grids[name]
                    steps.append(int(np.rint(apart.max())))
                if mine.ndim == 2 and mine.shape[1] > 1 and mine.dtype.kind == "f":
                    flips += int((mine.argmax(1) != theirs.argmax(1)).sum())
                    answers += len(mine)
    finally:
        reference.close()
    return max(steps, default=None), flips / answers if answers else None


def _grids(path: Path) -> Mapping[str, float]:
    """Return the scale of each output that a DequantizeLinear of one scale makes."""
    found = {}
    for value in graph.load(path).graph.outputs:
        maker = value.producer()
        scale = maker.inputs[1] if maker is not None and maker.op_type == "DequantizeLinear" else None
        tensor = scale.const_value if scale is not None else None
        if tensor is not None and tensor.size == 1:
            found[str(value.name)] = float(tensor.numpy().reshape(-1)[0])
    return found
