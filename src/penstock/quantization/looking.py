"""Looking: how far samples are from what a model's BatchNormalizations remember, and what the outputs make of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock import store
from penstock.quantization import probe
from penstock.quantization.normalizations import Normalizations, Remembered

if TYPE_CHECKING:
    from penstock.backends import Session

    Array = np.ndarray[Any, np.dtype[Any]]
    Rows = Callable[[int, int], Mapping[str, Array]]  # samples [start, stop) in the model's form

HELD_BYTES = 128 << 20  # of tensors that one run may return
LEAST_DEVIATION = 1e-6  # of the remembered one: what doesn't vary at all
MOST_LOG = 14.0


@dataclass(slots=True)
class Met:
    """Sums over what one BatchNormalization reads, less its mean and by its deviation, for each channel ``(C,)``."""

    known: Remembered
    total: Array
    square: Array
    count: int = 0

    def add(self, array: Array) -> None:
        """Take in a batch."""
        flat = array.reshape(*array.shape[:2], -1).astype(np.float32, copy=False)
        apart = flat - self.known.mean.astype(np.float32)[:, None]
        # each sample by itself in float32, which is fast, and their sums in float64
        self.total += apart.sum(axis=2).sum(axis=0, dtype=np.float64) / self.known.deviation
        squares = np.einsum("ncs,ncs->nc", apart, apart)
        self.square += squares.sum(axis=0, dtype=np.float64) / self.known.deviation**2
        self.count += flat.shape[0] * flat.shape[2]

    @property
    def shift(self) -> Array:
        """How far the means are off, in remembered deviations, for the channels that live."""
        found: Array = (self.total / max(self.count, 1))[self.known.live]
        return found

    @property
    def spread(self) -> Array:
        """The deviations, in remembered ones, for the channels that live."""
        mean = self.total / max(self.count, 1)
        found: Array = np.sqrt(np.maximum(self.square / max(self.count, 1) - mean**2, 0.0))[self.known.live]
        return found


@dataclass(frozen=True, slots=True)
class Distance:
    """How far samples are from the statistics: of each BatchNormalization, shifts and spreads by channel."""

    met: tuple[Met, ...]

    @property
    def finite(self) -> bool:
        """Whether the model computed numbers at all."""
        return all(bool(np.isfinite(one.total).all() and np.isfinite(one.square).all()) for one in self.met)

    @property
    def residuals(self) -> Array:
        """Return what a fit makes small, ``(2·ΣC,)``; each BatchNormalization counts the same."""
        found = []
        for one in self.met:
            spread = np.log(np.maximum(one.spread, LEAST_DEVIATION)).clip(-MOST_LOG, MOST_LOG)
            found += [part / np.sqrt(part.size * len(self.met)) for part in (np.arcsinh(one.shift), spread)]
        return np.concatenate(found)

    @property
    def shift(self) -> float:
        """The mean distance of a channel's mean, in remembered deviations."""
        return float(np.mean([np.abs(one.shift).mean() for one in self.met]))

    @property
    def spread(self) -> float:
        """The mean factor between a channel's deviation and the remembered one, less 1, whichever is larger."""
        logs = [np.abs(np.log(np.maximum(one.spread, LEAST_DEVIATION))).mean() for one in self.met]
        return float(np.exp(np.mean(logs)) - 1)

    @property
    def deep_spread(self) -> float:
        """The deviation, in remembered ones, of the usual channel in the last quarter of the model."""
        last = self.met[-max(1, len(self.met) // 4) :]
        return float(np.mean([np.median(one.spread) for one in last]))


@dataclass(slots=True)
class Outputs:
    """How far each sample's outputs stand out from the others', in their deviations."""

    usual: list[tuple[Array, Array]] = field(default_factory=list)  # mean and deviation of each output

    def settle(self, outputs: list[Array]) -> None:
        """Take what these samples give for usual."""
        self.usual = [(array.mean(axis=0), array.std(axis=0)) for array in outputs]

    def energy(self, outputs: list[Array]) -> Array:
        """Return one number for each sample, ``(N,)``."""
        found = np.zeros(len(outputs[0]))
        for array, (mean, deviation) in zip(outputs, self.usual, strict=True):
            apart = (array - mean) / np.maximum(deviation, 1e-9 + 1e-6 * np.abs(mean))
            found += np.square(apart).reshape(len(array), -1).mean(axis=1)
        return found


class Look:
    """A session that gives what the BatchNormalizations read and what the model answers."""

    def __init__(self, found: Normalizations, session: Session, batch: int | None) -> None:
        self.found = found
        self.session = session
        self.batch = batch  # where the model fixes it
        self.size = 1  # of a run, where it doesn't
        self.held = 0  # bytes that a sample makes it return
        self.tensors = [*dict.fromkeys(one.tensor for one in found.remembered)]

    def measure(self, rows: Rows, first: int) -> None:
        """Find out from a run of one sample (or the fixed batch) what it holds, and how many may run at once."""
        self.held = sum(array.nbytes for array in self.session.run(rows(0, 1))) // (self.batch or 1)
        self.size = int(max(1, min(first, HELD_BYTES // max(self.held, 1))))

    def at(self, rows: Rows, count: int) -> tuple[Distance, list[Array]]:
        """Run ``count`` samples; return their distance, and the outputs that go by samples, float64 ``(N, …)`` each."""
        met = tuple(Met(one, np.zeros(one.mean.size), np.zeros(one.mean.size)) for one in self.found.remembered)
        gathered: list[list[Array]] = []
        size = self.batch or self.size
        for start in range(0, count, size):
            made = self.session.run(rows(start, min(start + size, count)))
            for one in met:
                array = np.asarray(made[self.tensors.index(one.known.tensor)])
                if array.ndim < 2 or array.shape[1] != one.known.mean.size:
                    continue
                one.add(array)
            part = min(size, count - start)
            answers = made[len(self.tensors) :]
            gathered.append([array[:part].astype(np.float64) for array in answers if _by_sample(array, part, size)])
        whole = [np.concatenate(arrays) for arrays in zip(*gathered, strict=False)]
        return Distance(met), [array for array in whole if len(array) == count]


def _by_sample(array: Array, part: int, size: int) -> bool:
    return array.dtype.kind == "f" and array.ndim > 0 and len(array) in (part, size) and array.size > 0


@contextmanager
def looking(found: Normalizations, batch: int | None) -> Iterator[Look]:
    """Open a look at a model."""
    tensors = [*dict.fromkeys(one.tensor for one in found.remembered)]
    outputs = [str(value.name) for value in found.model.graph.outputs if value.name not in tensors]
    known = probe.values(found.model)
    with store.scratch() as work:
        session = probe.opened(probe.cut(found.model, [*tensors, *(name for name in outputs if name in known)]), work)
        try:
            yield Look(found, session, batch)
        finally:
            session.close()
