"""How two outputs differ. With a what was got, b what was wanted, d = a - b, all in float64 over all elements:

- ``max_abs`` = max |d|, ``mean_abs`` = mean |d|
- ``relative`` = max |d| / max |b|; where max |b| is 0: 0 if equal, else infinite
- ``cosine`` = a·b / (|a| |b|); 1 if both are zero, 0 if one is
- ``sqnr_db`` = 10 log10(sum b² / sum d²); infinite if equal
- ``kl`` = mean over samples of sum p_b (log p_b - log p_a), p the softmax over the last axis, in nats
- ``top1_agreement`` = share of samples with the same argmax over the last axis (the first of equals)
- ``mismatches`` = share of elements that aren't equal; NaN equals NaN

NaN and infinities have to stand in the same places. Where they do, those elements count as equal and are left out of
the sums. ``nonfinite`` counts those that don't; one of them makes every bound fail: max_abs, mean_abs, relative and
kl are infinite, sqnr_db is -inf and cosine 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class Difference:
    """How an output differs from the wanted one; the formulas stand at the head of this module.

    ``reason`` says why the two are of different kinds (shape, dtype), else "". Where the shapes differ, nothing is
    computed. A floating dtype of another width is still compared. Integers, bools and texts have only ``mismatches``
    and ``worst_sample``. ``kl`` and ``top1_agreement`` are for logits alone.
    """

    reason: str = ""
    mismatches: float | None = None
    nonfinite: int = 0
    max_abs: float | None = None
    mean_abs: float | None = None
    relative: float | None = None
    cosine: float | None = None
    sqnr_db: float | None = None
    kl: float | None = None
    top1_agreement: float | None = None
    worst_sample: int | None = None  # index on axis 0 of the largest |d|, None where all are equal

    @property
    def equal(self) -> bool:
        """Whether the two are the same in shape, dtype and every value."""
        return not self.reason and self.mismatches == 0


def compare(got: np.ndarray, want: np.ndarray, *, logits: bool) -> Difference:
    """Compare an output with the wanted one, of shape (N, …); ``logits``: the last axis holds class scores."""
    import numpy as np

    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape:
        return Difference(reason=f"the shape is {list(got.shape)}, not {list(want.shape)}")
    kinds = _kind(got.dtype), _kind(want.dtype)
    reason = f"the dtype is {_dtype_name(got.dtype)}, not {_dtype_name(want.dtype)}"
    reason = reason if _dtype_name(got.dtype) != _dtype_name(want.dtype) else ""
    if kinds != ("float", "float"):
        if "string" in kinds and kinds[0] != kinds[1]:
            return Difference(reason=reason)
        unequal = np.asarray(got != want)
        return Difference(reason, _share(unequal), worst_sample=_worst(unequal))
    return _compare_floats(_parts(got), _parts(want), reason, logits and not np.iscomplexobj(want))


def _compare_floats(a: np.ndarray, b: np.ndarray, reason: str, logits: bool) -> Difference:
    import numpy as np

    same = (a == b) | (np.isnan(a) & np.isnan(b))
    finite = np.isfinite(a) & np.isfinite(b)
    nonfinite = int(np.count_nonzero(~same & ~finite))
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.where(same, 0.0, np.where(finite, np.abs(a - b), np.inf))
    kl, agreement = _classes(a, b) if logits and a.ndim and a.size else (None, None)
    max_abs = float(gap.max()) if gap.size else 0.0
    common = {"kl": kl, "top1_agreement": agreement, "worst_sample": _worst(gap)}
    if nonfinite:
        inf = math.inf
        return Difference(reason, _share(~same), nonfinite, inf, inf, inf, 0.0, -inf, **common)  # type: ignore[arg-type]
    a, b, gap = a[finite], b[finite], gap[finite]
    largest = float(np.abs(b).max()) if b.size else 0.0
    with np.errstate(over="ignore"):  # sums of the largest floats: infinite is the answer
        mean_abs = float(gap.mean()) if gap.size else 0.0
        relative = 0.0 if max_abs == 0 else float(np.float64(max_abs) / largest) if largest else math.inf
    return Difference(
        reason, _share(~same), 0, max_abs, mean_abs, relative, _cosine(a, b), _sqnr_db(gap, b), **common  # type: ignore[arg-type]
    )  # fmt: skip


def _classes(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Return the mean KL of the softmax in nats and the share of equal top classes, over the last axis."""
    import numpy as np

    a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
    agreement = float(np.mean(a.argmax(axis=1) == b.argmax(axis=1)))
    equal_rows = np.all((a == b) | (np.isnan(a) & np.isnan(b)), axis=1)
    with np.errstate(all="ignore"):
        log_a, log_b = _log_softmax(a), _log_softmax(b)
        p = np.exp(log_b)
        rows = np.where(p > 0, p * (log_b - log_a), np.where(np.isnan(p), np.nan, 0.0)).sum(axis=1)
    # softmax of NaN or +inf is undefined: equal rows agree, others can't be bounded; rounding may leave -1e-17
    rows = np.where(equal_rows, 0.0, np.where(np.isnan(rows), np.inf, np.maximum(rows, 0.0)))
    return float(rows.mean()), agreement


def _log_softmax(x: np.ndarray) -> np.ndarray:
    import numpy as np

    shifted: np.ndarray = x - x.max(axis=1, keepdims=True)
    logs: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logs


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    import numpy as np

    top_a, top_b = float(np.abs(a).max(initial=0.0)), float(np.abs(b).max(initial=0.0))
    if top_a == 0 or top_b == 0:
        return 1.0 if top_a == top_b else 0.0
    a, b = a / top_a, b / top_b  # squares of very large or small values would leave the range
    return float(np.clip((a * b).sum() / (math.sqrt((a * a).sum()) * math.sqrt((b * b).sum())), -1.0, 1.0))


def _sqnr_db(gap: np.ndarray, b: np.ndarray) -> float:
    import numpy as np

    noise, signal = float(gap.max(initial=0.0)), float(np.abs(b).max(initial=0.0))
    if noise == 0:
        return math.inf
    if signal == 0 or math.isinf(noise):
        return -math.inf
    scaled = 10 * math.log10(((b / signal) ** 2).sum() / ((gap / noise) ** 2).sum())
    return scaled + 20 * (math.log10(signal) - math.log10(noise))


def _kind(dtype: np.dtype) -> str:
    if dtype.kind in "OUS":
        return "string"
    # bfloat16 and the 8-bit floats are of kind V: only their names tell
    return "float" if dtype.name.startswith(("float", "bfloat", "complex")) else "exact"


def _dtype_name(dtype: np.dtype) -> str:
    return "string" if dtype.kind in "OUS" else dtype.name


def _parts(x: np.ndarray) -> np.ndarray:
    """Return the values as float64; a complex number as its two parts on a last axis of their own."""
    import numpy as np

    if np.iscomplexobj(x):
        return np.stack([x.real, x.imag], axis=-1).astype(np.float64)
    return x.astype(np.float64)


def _share(unequal: np.ndarray) -> float:
    return float(unequal.mean()) if unequal.size else 0.0


def _worst(gap: np.ndarray) -> int | None:
    """Return the first index on axis 0 with the largest gap; a single value is sample 0."""
    if not gap.size or not gap.any():
        return None
    return 0 if gap.ndim == 0 else int(gap.reshape(gap.shape[0], -1).max(axis=1).argmax())
