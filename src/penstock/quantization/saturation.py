"""Saturation: what x86 CPUs without VNNI do to products of uint8 and int8, measured by doing it.

Their instruction (vpmaddubsw) adds two neighbouring products in 16 bits and clips the sum at ±32767. Weights within 7
bits keep every such sum below: 2·255·63 = 32130. How often it would clip is counted here on what layers really read,
with neighbours in the order of the weights; a kernel that orders them otherwise clips others, about as often.

The instruction takes one unsigned factor, so runtimes shift int8 activations by 128 to uint8 on such CPUs: ONNX Runtime
on any x86, in the pairs themselves (its QDQS8ToU8Transformer). Its QLinearConv on int8 has a kernel of its own there.
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
    from penstock.quantization.grid import Grid
    from penstock.quantization.study import Quantized, Study

    Array = np.ndarray[Any, np.dtype[Any]]

CPUS = ("host", "vnni", "avx512", "avx2")
SAFE_BITS = 7  # of weights, with which no sum of two products leaves 16 bits
COLUMNS = 64  # of each layer and batch that are looked at
SAMPLES = 32
LIMIT = 32767
SHIFTS = {"uint8": 0, "int8": 128}  # type of activations → what makes them unsigned


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

    ``integers`` (n, k) are within uint8, ``weights`` (outputs, k) of int8.
    """
    if integers.shape[1] % 2:
        integers, weights = np.pad(integers, ((0, 0), (0, 1))), np.pad(weights, ((0, 0), (0, 1)))
    left = integers[:, None, 0::2].astype(np.int32) * weights[None, :, 0::2]
    pairs = left + integers[:, None, 1::2].astype(np.int32) * weights[None, :, 1::2]
    held = np.clip(pairs, -LIMIT - 1, LIMIT)
    return held.sum(axis=2), pairs.sum(axis=2), float((held != pairs).mean()) if pairs.size else 0.0


def measure(study: Study, made: Quantized, samples: Batches) -> list[Saturation]:
    """Emulate every integer layer that reads 8 bits, on some of the columns that it reads; the worst first.

    Layers of which no sum is clipped are among them.
    """
    nodes = {str(node.name): node for node in study.model.graph}
    readers: dict[str, list[tuple[str, Grid]]] = {}
    for name, index in made.placement.weights.items():
        value = nodes[name].inputs[1 - index]
        if index != 1 or value is None:
            continue
        grid = made.grids[made.placement.key(name, str(value.name))]
        if grid.dtype in SHIFTS:
            readers.setdefault(str(value.name), []).append((name, grid))
    sums = {name: [0.0, 0.0, 0.0, 0.0] for held in readers.values() for name, _ in held}

    def visit(tensor: str, array: Array, first: int, count: int) -> None:
        for name, grid in readers[tensor]:
            held = made.weights[name]
            rows = moments.rows(nodes[name], held.whole)
            columns = moments.columns(nodes[name], held.whole, array, COLUMNS, first)
            for group in range(len(rows)):
                unsigned = grid.quantize(columns[group]).astype(np.int32) + SHIFTS[grid.dtype]
                got, want, share = clipped(unsigned, rows[group])
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
    return sorted(found, key=lambda one: one.sqnr_db)


def reads_target(consumer: str, activations: str) -> bool:
    """Tell whether products are those of uint8 and int8 on a CPU: others are summed up in 32 bits, or elsewhere."""
    return consumer in ("ort-cpu", "openvino") and activations not in ("int16", "uint16")


def bits(target: str) -> int:
    """Return of how many bits weights may be for products of uint8 and int8 on the target's CPU."""
    return SAFE_BITS if lacks_vnni(target) else 8


def unmeasured(target: str) -> str:
    """Say in words that weights were kept within 7 bits, where nothing was measured."""
    return (
        f"{_where(target)} has no VNNI: weights are kept within {SAFE_BITS} bits, so that no sum of products is clipped"
    )


def _where(target: str) -> str:
    return "this CPU" if target == "host" else f"a CPU with {target}"


def note(found: Sequence[Saturation], target: str) -> str:
    """Say in words what full weights would do on the target, and that they were kept within 7 bits.

    ``found`` are the layers that were looked at; without any, nothing is said of 8 bits.
    """
    kept = f"{_where(target)} has no VNNI: weights are kept within {SAFE_BITS} bits"
    if not found:
        return unmeasured(target)
    clipping = [one for one in found if one.share > 0]
    if not clipping:
        return f"{kept}; with 8 no sum would have been clipped (layers looked at: {len(found)})"
    worst = clipping[0]
    return (
        f"{kept}; with 8, {len(clipping)} layers would clip sums in silence, {worst.node!r} {worst.share:.2%} of them, "
        f"to {worst.sqnr_db:.1f} dB"
    )
