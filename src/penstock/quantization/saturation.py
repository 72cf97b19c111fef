"""Saturation: what x86 CPUs without VNNI do to products of uint8 and int8, measured by doing it.

Their instruction (vpmaddubsw) adds two neighbouring products in 16 bits and clips the sum at ±32767. Weights within 7
bits keep every such sum below: 2·255·63 = 32130. How often it would clip is counted here on what layers really read,
with neighbours in the order of the weights; a kernel that orders them otherwise clips others, about as often.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock import machine
from penstock.quantization import moments, probe

if TYPE_CHECKING:
    from penstock.calibration import Batches
    from penstock.quantization.study import Quantized, Study

    Array = np.ndarray[Any, np.dtype[Any]]

CPUS = ("host", "vnni", "avx512", "avx2")
SAFE_BITS = 7  # of weights, with which no sum of two products leaves 16 bits
COLUMNS = 64  # of each layer and batch that are looked at
SAMPLES = 32
LIMIT = 32767


@dataclass(frozen=True, slots=True)
class Saturation:
    """Of one layer: the share of sums of two products that would be clipped, and the result's error for it in dB."""

    node: str
    share: float
    sqnr_db: float


def lacks_vnni(target: str, flags: Sequence[str] | None = None) -> bool:
    """Tell whether the target's CPU adds products in 16 bits; ``host`` is this machine's."""
    if target != "host":
        return target in ("avx2", "avx512")
    held = {*(machine.all_flags() if flags is None else flags)}
    return "avx2" in held and not held & {"avx512_vnni", "avx_vnni"}


def clipped(integers: Array, weights: Array) -> tuple[Array, Array, float]:
    """Return the results (n, outputs) with and without clipping, and the share of clipped sums of two.

    ``integers`` (n, k) are of uint8, ``weights`` (outputs, k) of int8.
    """
    if integers.shape[1] % 2:
        integers, weights = np.pad(integers, ((0, 0), (0, 1))), np.pad(weights, ((0, 0), (0, 1)))
    left = integers[:, None, 0::2].astype(np.int32) * weights[None, :, 0::2]
    pairs = left + integers[:, None, 1::2].astype(np.int32) * weights[None, :, 1::2]
    held = np.clip(pairs, -LIMIT - 1, LIMIT)
    return held.sum(axis=2), pairs.sum(axis=2), float((held != pairs).mean()) if pairs.size else 0.0


def measure(study: Study, made: Quantized, samples: Batches) -> list[Saturation]:
    """Emulate every integer layer that reads uint8, on some of the columns that it reads; the worst first."""
    nodes = {str(node.name): node for node in study.model.graph}
    readers: dict[str, list[str]] = {}
    for name, index in made.placement.weights.items():
        value = nodes[name].inputs[1 - index]
        if index == 1 and value is not None and made.grids[str(value.name)].dtype == "uint8":
            readers.setdefault(str(value.name), []).append(name)
    sums: dict[str, list[float]] = {name: [0.0, 0.0, 0.0, 0.0] for names in readers.values() for name in names}

    def visit(tensor: str, array: Array, first: int, count: int) -> None:
        grid = made.grids[tensor]
        for name in readers[tensor]:
            held = made.weights[name]
            rows = moments.rows(nodes[name], held.whole)
            columns = moments.columns(nodes[name], held.whole, array, COLUMNS, first)
            for group in range(len(rows)):
                got, want, share = clipped(grid.quantize(columns[group]), rows[group])
                mine = sums[name]
                mine[0] += share
                mine[1] += 1
                mine[2] += float(np.square(got - want, dtype=np.float64).sum())
                mine[3] += float(np.square(want, dtype=np.float64).sum())

    if readers:
        probe.observe(study.model, [*readers], samples.some(SAMPLES), visit)
    found = [
        Saturation(name, share / max(number, 1), 10 * float(np.log10(signal / noise)) if noise and signal else np.inf)
        for name, (share, number, noise, signal) in sums.items()
    ]
    return sorted((one for one in found if one.share > 0), key=lambda one: one.sqnr_db)


def reads_target(consumer: str, activations: str) -> bool:
    """Tell whether products are those of uint8 and int8 on a CPU: others are summed up in 32 bits, or elsewhere."""
    return consumer in ("ort-cpu", "openvino") and activations not in ("int16", "uint16")


def bits(target: str) -> int:
    """Return of how many bits weights may be for products of uint8 and int8 on the target's CPU."""
    return SAFE_BITS if lacks_vnni(target) else 8


def unmeasured(target: str) -> str:
    """Say in words that weights were kept within 7 bits, where there are no samples to measure on."""
    return (
        f"{_where(target)} has no VNNI: weights are kept within {SAFE_BITS} bits, so that no sum of products is clipped"
    )


def _where(target: str) -> str:
    return "this CPU" if target == "host" else f"a CPU with {target}"


def note(found: Sequence[Saturation], target: str) -> str:
    """Say in words what full weights would do on the target, and that they were kept within 7 bits."""
    where = _where(target)
    if not found:
        return f"{where} has no VNNI: weights are kept within {SAFE_BITS} bits; with 8 no sum would have been clipped"
    worst = found[0]
    return (
        f"{where} has no VNNI: weights are kept within {SAFE_BITS} bits; with 8, {len(found)} layers would clip sums "
        f"in silence, {worst.node!r} {worst.share:.2%} of them, to {worst.sqnr_db:.1f} dB"
    )
