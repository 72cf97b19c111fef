"""Round one matrix of weights after the other; for GPTQ with the second moments of what it is multiplied with.

The moments of as many layers are taken in one run over the samples as memory is set aside for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.calibration import Batches
from penstock.quantization import blocks, probe
from penstock.quantization.block_grids import half_quadratic, least_squares
from penstock.quantization.block_layers import Matrix
from penstock.quantization.blocks import Blocked, Form
from penstock.quantization.gptq import Moments, gptq, output_sqnr_db
from penstock.quantization.statistics import Statistics

if TYPE_CHECKING:
    import onnx_ir as ir

    from penstock.jsonable import Json

    Array = np.ndarray[Any, np.dtype[Any]]
    Wanted = tuple[Matrix, Form]
    Rounded = tuple[Matrix, Blocked, dict[str, Json]]

MOMENT_BYTES = 512 << 20  # of second moments that are held at once
MOST_INPUTS = 16384  # of a layer whose second moments are taken: they grow with the square


def to_nearest(wanted: Iterable[Wanted], *, half: bool = False) -> Iterator[Rounded]:
    """Yield every matrix rounded to the nearest, and what to tell of it; ``half``: on half-quadratic grids.

    Raises ``InputError`` for weights that aren't finite.
    """
    for matrix, form in wanted:
        real = matrix.array()
        held = blocks.nearest(real, form, *blocks.grids(real, form, half_quadratic if half else least_squares))
        yield matrix, held, _told(matrix, real, held, "hqq" if half else "rtn")


def by_gptq(model: ir.Model, wanted: Sequence[Wanted], batches: Batches) -> Iterator[Rounded]:
    """Yield every matrix rounded by GPTQ, and what to tell of it. The caller may change ``model`` in between.

    What can't be looked at is rounded to the nearest. Raises ``InputError`` for weights or activations that aren't
    finite.
    """
    known = probe.values(model)
    looked = [(matrix, form, _unseen(matrix, known)) for matrix, form in wanted]
    source = model.clone()  # float throughout
    for part in _parts(looked):
        widths = {str(v.name): m.shape[0] for m, _, reason in part if not reason for v in m.inputs}
        moments = _moments(source, widths, batches)
        for matrix, form, reason in part:
            real = matrix.array()
            grid = blocks.grids(real, form, half_quadratic if form.zero == "float" else least_squares)
            if not reason:
                total = reduce(np.add, (moments[str(value.name)] for value in matrix.inputs))
                try:
                    held = gptq(real, total, form, *grid)
                except np.linalg.LinAlgError:
                    reason = "rounded to the nearest: the second moments of its inputs can't be inverted"
                else:
                    yield matrix, held, _told(matrix, real, held, "gptq", output_sqnr_db(real, held, total))
                    continue
            held = blocks.nearest(real, form, *grid)
            yield matrix, held, _told(matrix, real, held, "rtn", reason=reason)


def _unseen(matrix: Matrix, known: Mapping[str, ir.Value]) -> str:
    """Say why the inputs of a layer aren't looked at; nothing where they are."""
    if matrix.layout == "table":
        return "rounded to the nearest: a row of a table is read alone"
    if any(node.op_type == "Gemm" and node.attributes.get_int("transA", 0) for node in matrix.nodes):
        return "rounded to the nearest: its first factor is transposed"
    if any(known.get(str(value.name)) is not value for value in matrix.inputs):
        return "rounded to the nearest: what goes on in a body isn't looked at"
    if matrix.shape[0] > MOST_INPUTS:
        return f"rounded to the nearest: the second moments of {matrix.shape[0]} inputs are too many to hold"
    return ""


def _parts(looked: Iterable[tuple[Matrix, Form, str]]) -> Iterator[list[tuple[Matrix, Form, str]]]:
    """Cut the layers into parts whose second moments fit into memory."""
    part: list[tuple[Matrix, Form, str]] = []
    held: dict[str, int] = {}
    for matrix, form, reason in looked:
        more = {} if reason else {str(value.name): 8 * matrix.shape[0] ** 2 for value in matrix.inputs}
        if part and sum((held | more).values()) > MOMENT_BYTES:
            yield part
            part, held = [], {}
        part.append((matrix, form, reason))
        held |= more
    if part:
        yield part


def _moments(source: ir.Model, widths: Mapping[str, int], batches: Batches) -> dict[str, Array]:
    """Return the second moments of named tensors over all samples."""
    if not widths:
        return {}
    found = {name: Moments(width) for name, width in widths.items()}
    seen = {name: Statistics(name, histogram=False, numbers=batches.numbers) for name in widths}

    def visit(name: str, array: Array, first: int, count: int) -> None:
        seen[name].add(array, first, count)  # which refuses NaN and infinity, with the sample
        found[name].add(array)

    probe.observe(source, [*widths], batches, visit)
    return {name: one.total for name, one in found.items()}


def _told(
    matrix: Matrix, real: Array, held: Blocked, rounding: str, output_db: float | None = None, *, reason: str = ""
) -> dict[str, Json]:
    """Return what the record says of a layer; SQNR in dB, of the weights and of the output on the samples."""
    error = float(np.square(real - held.real(), dtype=np.float64).sum())
    signal = float(np.square(real, dtype=np.float64).sum())
    exact = error <= 0 or signal <= 0
    return {"reason": reason, "weights": {
        "name": str(matrix.weights.name), "dtype": f"{'int' if held.form.zero == 'none' else 'uint'}{held.form.bits}",
        "shape": [*matrix.shape], "scales": held.scale.size, "block_size": held.form.size, "bytes": held.nbytes,
        "rounding": rounding, "sqnr_db": None if exact else round(float(10 * np.log10(signal / error)), 2),
        "output_sqnr_db": None if output_db is None else round(output_db, 2),
    }}  # fmt: skip
