"""Beside: quantized models held against the float one, batch by batch, so that no output of all samples is held.

What is compared are the outputs. Where one holds integers, as an ArgMax makes them, it is the floats that they were
made from: whether an answer turns is too coarse to choose by.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock import metrics, store
from penstock.calibration import Batches
from penstock.quantization import probe
from penstock.rewriting.knowledge import Knowledge

if TYPE_CHECKING:
    import onnx_ir as ir

    from penstock.backends import Session

    Array = np.ndarray[Any, np.dtype[Any]]

KEPT_BYTES = 256 << 20  # of the float model's results that are kept for the next comparison; others are computed again


@dataclass(frozen=True, slots=True)
class Effect:
    """How far results are from the float model's; the worst of several. ``kl`` in nats, ``levels`` in dB by result."""

    sqnr_db: float
    cosine: float
    kl: float | None
    top1_agreement: float | None
    levels: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class End:
    """Where results are taken: an output of the model by its position, or what a node reads at an index."""

    position: int = -1
    node: str = ""
    index: int = -1


def ends(model: ir.Model) -> list[End]:
    """Return the outputs that hold floats, and for the others the floats that they were made from."""
    known = Knowledge(model)
    known.learn(model.graph)
    for node in model.graph:
        known.visit(node)
    found: dict[End, None] = {}
    for position, value in enumerate(model.graph.outputs):
        if _is_float(value):
            found[End(position)] = None
        else:
            found |= dict.fromkeys(_behind(value))
    return [*found]


def _behind(value: ir.Value) -> Iterator[End]:
    """Yield where floats go into what a value of integers is made from."""
    waiting, seen = [value], {id(value)}
    while waiting:
        node = waiting.pop().producer()
        for index, read in enumerate(node.inputs if node is not None else ()):
            if read is None or read.is_initializer() or read.producer() is None or id(read) in seen:
                continue
            if _is_float(read):
                yield End(node=str(node.name), index=index)  # type: ignore[union-attr]  # it has inputs
            else:
                seen.add(id(read))
                waiting.append(read)


def _is_float(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()


@dataclass(slots=True)
class _Sums:
    """Sums over batches of one result, in float64."""

    signal: float = 0.0
    noise: float = 0.0
    product: float = 0.0
    got: float = 0.0
    rows: int = 0
    kl: float = 0.0
    agreeing: float = 0.0

    def add(self, got: Array, want: Array) -> None:
        if got.shape != want.shape:
            self.noise = float("inf")
            return
        if want.ndim == 2 and want.shape[1] > 1 and len(want):
            found = metrics.compare(got, want, logits=True)
            self.rows += len(want)
            self.kl += (found.kl or 0.0) * len(want)
            self.agreeing += (found.top1_agreement or 0.0) * len(want)
        a, b = got.reshape(-1).astype(np.float64), want.reshape(-1).astype(np.float64)
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            alike = (a == b) | (np.isnan(a) & np.isnan(b))
            finite = np.isfinite(a) & np.isfinite(b)
            self.noise = float("inf") if (~alike & ~finite).any() else self.noise
            a, b = a[finite], b[finite]
        self.signal += float(b @ b)
        self.product += float(a @ b)
        self.got += float(a @ a)
        a -= b
        self.noise += float(a @ a)

    @property
    def level(self) -> float:
        """Signal to noise in dB."""
        if self.noise == 0:
            return float("inf")
        if self.signal == 0 or np.isinf(self.noise):
            return -float("inf")
        return 10 * float(np.log10(self.signal) - np.log10(self.noise))

    @property
    def cosine(self) -> float:
        if self.signal == 0 or self.got == 0:
            return 1.0 if self.signal == self.got else 0.0
        return min(1.0, max(-1.0, self.product / float(np.sqrt(self.signal) * np.sqrt(self.got))))


@dataclass(slots=True)
class Beside:
    """The float model, open, and the samples that others are held against it on. See :func:`opened`."""

    places: list[End]
    session: Session
    samples: Batches
    kept: list[list[Array]] = field(default_factory=list)
    held_bytes: int = 0

    def effect(self, made: ir.Model) -> Effect:
        """Run a quantized model on all samples and return how far it is from the float one."""
        sums = [_Sums() for _ in self.places]
        with store.scratch() as work:
            session = probe.opened(_with_ends(made, self.places), work)
            try:
                for number, batch in enumerate(self.samples):
                    for one, got, want in zip(sums, session.run(batch), self._wanted(number, batch), strict=bool(sums)):
                        one.add(got, want)
            finally:
                session.close()
        told = [one for one in sums if one.rows]
        return Effect(
            min((one.level for one in sums), default=float("inf")), min((one.cosine for one in sums), default=1.0),
            max((one.kl / one.rows for one in told), default=None),
            min((one.agreeing / one.rows for one in told), default=None), tuple(one.level for one in sums),
        )  # fmt: skip

    def _wanted(self, number: int, batch: Mapping[str, Array]) -> list[Array]:
        if number < len(self.kept):
            return self.kept[number]
        found = self.session.run(batch)
        size = sum(array.nbytes for array in found)
        if number == len(self.kept) and self.held_bytes + size <= KEPT_BYTES:
            self.kept.append(found)
            self.held_bytes += size
        return found


@contextlib.contextmanager
def opened(model: ir.Model, samples: Batches) -> Iterator[Beside]:
    """Open a float model, to hold quantized ones against it on these samples.

    Where nothing of the model's outputs was made from floats, every effect is none: infinitely many dB.
    """
    places = ends(model)
    with store.scratch() as work:
        session = probe.opened(_with_ends(model, places), work)
        try:
            yield Beside(places, session, samples)
        finally:
            session.close()


def _with_ends(model: ir.Model, places: list[End]) -> ir.Model:
    """Return a copy of a model whose outputs are the places, found by the names of the float model's nodes."""
    import onnx_ir as ir

    copy = model.clone()
    nodes = {str(node.name): node for node in copy.graph}
    outputs = []
    for place in places:
        value = copy.graph.outputs[place.position] if place.position >= 0 else nodes[place.node].inputs[place.index]
        assert value is not None
        if value.type is None:
            value.type = ir.TensorType(ir.DataType.FLOAT)
        outputs.append(value)
    copy.graph.outputs[:] = outputs or copy.graph.outputs
    return copy
