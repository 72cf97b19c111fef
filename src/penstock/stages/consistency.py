"""Consistency: one golden set on every variant and backend, how far each cell is from the source, and what got worse.

A cell that differs is a breach, and one where something else ran than was asked for. A backend that can't run a model
says why in its cell, and the others go on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from penstock import aside
from penstock.asked import asked_of, fallback, in_float
from penstock.errors import MissingError, PenstockError
from penstock.jsonable import Json, to_json
from penstock.metrics import Difference
from penstock.stages.verify import VerifySettings
from penstock.verifying import verified

if TYPE_CHECKING:
    from penstock.backends import Session
    from penstock.deployment import Deployment
    from penstock.golden import Golden
    from penstock.measures import Runnable
    from penstock.progress import Progress

State = Literal["agrees", "differs", "fell back", "can't run", "not here"]
BREACHES = ("differs", "fell back")
SOURCE = "source"  # the variant that a module is, on the backends that run modules
NOISE = 1e-6  # relative: what a float runtime may move from one version to the next
WORSE = 2.0  # times the difference that it had
WORSE_DB = 1.0  # of signal to noise, of a quantized variant


@dataclass(frozen=True, slots=True)
class Cell:
    """A variant on a backend. The figures are those of the output that is worst; ``flips`` is a share of samples.

    ``outputs`` has all of them; ``asked`` and ``actual`` are what was asked of the deployment and what it says it ran.
    """

    name: str  # as a deployment's
    variant: str
    backend: str  # with its way: openvino+int8-activations
    precision: str
    state: State
    reason: str = ""
    samples: int = 0
    max_abs: float | None = None
    relative: float | None = None
    sqnr_db: float | None = None
    kl: float | None = None
    flips: float | None = None
    mismatches: float | None = None
    worst_output: str = ""
    worst_sample: int | None = None
    outputs: Mapping[str, Difference] = field(default_factory=dict)
    asked: Mapping[str, Json] = field(default_factory=dict)
    actual: Mapping[str, Json] = field(default_factory=dict)
    steps: int | None = None  # from ONNX Runtime's integers, see penstock.verifying
    of_module: bool = False  # the source itself, no file
    note: str = ""  # what is no breach: int8 that was computed in float, or that the runtime fails to tell what ran


@dataclass(frozen=True, slots=True)
class Matrix:
    """All cells, variants in order and in each its backends; ``regressions`` against an earlier one, by cell."""

    computed_by: str
    samples: int
    cells: tuple[Cell, ...]
    regressions: Mapping[str, str] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether nothing differs or fell back, nothing got worse, and each variant could be run somewhere."""
        return not self.regressions and not self.unrun and all(cell.state not in BREACHES for cell in self.cells)

    @property
    def unrun(self) -> tuple[str, ...]:
        """The variants that nothing was shown of: no backend could run them."""
        ran = {cell.variant for cell in self.cells if cell.outputs}
        if not all(cell.of_module for cell in self.cells):  # a build's module needn't be here any more
            ran |= {cell.variant for cell in self.cells if cell.of_module}
        return tuple(dict.fromkeys(cell.variant for cell in self.cells if cell.variant not in ran))

    @property
    def shortened(self) -> dict[str, str]:
        """What ran fewer samples than the others, as the oracle does whose time is limited: how many, by deployment."""
        return {
            cell.name: f"{cell.samples} of the {self.samples} samples"
            for cell in self.cells if 0 < cell.samples < self.samples
        }  # fmt: skip

    def cell(self, variant: str, backend: str) -> Cell | None:
        """Return one cell."""
        return next((one for one in self.cells if (one.variant, one.backend) == (variant, backend)), None)


def cross(
    runnables: Sequence[Runnable], golden: Golden, settings: VerifySettings, progress: Progress, named: bool = False
) -> list[Cell]:
    """Run the golden set on each, aside; what can't be loaded or run, or dies of it, becomes a cell that says so.

    Raises ``MissingError`` where the backends were ``named`` and what one needs turns out to be missing.
    """
    found = []
    progress.begin("verify", f"{len(runnables)} deployments")
    for done, runnable in enumerate(runnables):
        progress.step(done, len(runnables), runnable.deployment.name)
        found.append(_cell(runnable, golden, settings, named))
    progress.end(f"{sum(cell.state == 'agrees' for cell in found)} of {len(found)} agree")
    return found


def absent(deployment: Deployment, why: str, *, of_module: bool = False) -> Cell:
    """Return the cell of a backend that isn't there."""
    return Cell(
        deployment.name, deployment.variant, _backend(deployment), deployment.precision, "not here", why,
        of_module=of_module,
    )  # fmt: skip


def refused(deployment: Deployment, why: str) -> Cell:
    """Return the cell of a model that isn't let near a backend."""
    return Cell(deployment.name, deployment.variant, _backend(deployment), deployment.precision, "can't run", why,
                asked=asked_of(deployment))  # fmt: skip


def _backend(deployment: Deployment) -> str:
    return deployment.name.rpartition("@")[2]


def _cell(runnable: Runnable, golden: Golden, settings: VerifySettings, named: bool) -> Cell:
    asked = runnable.deployment
    start = asked.name, asked.variant, _backend(asked), asked.precision
    module = runnable.model.path is None
    try:
        session = aside.opened(runnable)
    except PenstockError as error:
        if named and isinstance(error, MissingError):
            raise
        why = _line(error) + (f": {error.where}" if module and error.where else "")
        return Cell(*start, "can't run", why, asked=asked_of(asked), of_module=module)
    try:
        seconds = settings.oracle_seconds if asked.role == "oracle" else None
        found = verified(runnable.model, asked, session, golden, settings, seconds=seconds)
        if not found.samples:
            return Cell(*start, "can't run", found.outcome.reason, asked=asked_of(asked), of_module=module)
        told = _actual(session)
    except PenstockError as error:
        return Cell(*start, "can't run", _line(error), asked=asked_of(asked), of_module=module)
    finally:
        session.close()
    fell = fallback(asked, told)
    note = "" if runnable.model.path is None else in_float(asked, told, runnable.model.path)
    if problem := told.get("problem"):
        note = f"what ran isn't known: {problem}"
    state: State = "fell back" if fell and not settings.allow_fallback else "agrees"
    cell = of_outputs(asked, found.outputs, "differs" if found.outcome.reason else state)
    return replace(cell, reason=found.outcome.reason or fell, samples=found.samples, actual=told,
                   steps=found.steps, of_module=module, note=note)  # fmt: skip


def _actual(session: Session) -> dict[str, Json]:
    """Return what ran; where the runtime fails to tell, the numbers are there all the same."""
    try:
        told = to_json(dict(session.actual()))
    except PenstockError as error:
        return {"problem": _line(error)}
    assert isinstance(told, dict)
    return told


def of_outputs(deployment: Deployment, outputs: Mapping[str, Difference], state: State) -> Cell:
    """Return the cell of a deployment whose outputs differ so."""
    name = _worst(outputs)
    worst = outputs[name]
    return Cell(
        deployment.name, deployment.variant, _backend(deployment), deployment.precision, state, "", 0, worst.max_abs,
        worst.relative, worst.sqnr_db, worst.kl, None if worst.top1_agreement is None else 1 - worst.top1_agreement,
        worst.mismatches, name, worst.worst_sample, outputs, asked_of(deployment),
    )  # fmt: skip


def _line(error: PenstockError) -> str:
    return " ".join(error.what.split())


def _worst(outputs: Mapping[str, Difference]) -> str:
    """Return the output that differs most: of another kind, in NaNs, by its largest error, by unequal integers."""

    def key(name: str) -> tuple[bool, int, float, float]:
        one = outputs[name]
        return bool(one.reason), one.nonfinite, one.relative or 0.0, one.mismatches or 0.0

    return max(outputs, key=key)


def regressions(cells: Sequence[Cell], earlier: Mapping[str, Cell]) -> dict[str, str]:
    """Say of each cell that agreed earlier how it got worse: it doesn't agree any more, or differs more than it did."""
    found = {}
    now = {cell.name: cell for cell in cells}
    for name, before in earlier.items():
        if before.state != "agrees":
            continue
        cell = now.get(name)
        if cell is None:
            found[name] = "it isn't among what was run"
        elif cell.state != "agrees":
            found[name] = f"it agreed, and now {_told(cell)}"
        elif why := _worse(before, cell):
            found[name] = why
    return found


def _told(cell: Cell) -> str:
    return f"{'is ' if cell.state == 'not here' else ''}{cell.state}: {cell.reason}"


def _worse(before: Cell, now: Cell) -> str:
    if before.flips is not None and now.flips is not None and now.flips > before.flips:
        return f"of its top answers {now.flips:.2%} differ, they were {before.flips:.2%}"
    if now.precision in ("int8", "int4", "mixed"):
        if before.sqnr_db is not None and now.sqnr_db is not None and now.sqnr_db < before.sqnr_db - WORSE_DB:
            return f"SQNR {now.sqnr_db:.1f} dB, it was {before.sqnr_db:.1f}"
    elif (now.relative or 0.0) > max(WORSE * (before.relative or 0.0), NOISE) and now.relative is not None:
        return f"relative difference {now.relative:.2g}, it was {before.relative:.2g}"
    if before.mismatches is not None and now.relative is None and (now.mismatches or 0.0) > before.mismatches:
        return f"{now.mismatches:.2%} of its values differ, they were {before.mismatches:.2%}"
    return ""
