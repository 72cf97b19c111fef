"""Bisect: the first node, in topological order, where two ways to compute a model part beyond a bound.

A *cut* behind a node is all tensors that are made up to it and read after it, or handed out. Of n nodes about log2(n)
cuts are run on both sides, so that no more is held at once than one cut. Between a cut that agrees and the next one,
which doesn't, stands the node. Two things are done about differences that hide (in a Relu, an ArgMax) or build up:

- the find is confirmed: that node alone is run on both sides, on the same inputs;
- where it isn't, the search begins anew with a bound of a tenth.

A runtime fuses nodes, and a cut takes fusions apart: a difference that only a fusion makes is told as not confirmed.
Where a runtime can't end at a cut, such as LiteRT between a QuantizeLinear and its DequantizeLinear, the next one is
taken; nodes that can't be told apart so are found together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from penstock import store
from penstock.errors import InputError
from penstock.metrics import Difference, compare
from penstock.stages._bisect_cuts import Pair, Side, reads

if TYPE_CHECKING:
    import numpy as np

    from penstock.progress import Progress

    Arrays = Mapping[str, np.ndarray]

BOUNDS = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 8e-2}  # relative, by precision; of others:
QUANTIZED = 2e-2  # two steps of 8 bits
LEAST = 1e-8  # a bound below what float32 resolves finds nothing but rounding
TIGHTER = 10.0
MOST_TRIED = 24  # cuts beside one that a runtime can't end at, and as many all over


@dataclass(frozen=True, slots=True)
class Tensor:
    """What a tensor holds on one side: extremes, mean, standard deviation, share of zeros, NaNs and infinities."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    low: float | None
    high: float | None
    mean: float | None
    std: float | None
    zeros: float
    nonfinite: int


@dataclass(frozen=True, slots=True)
class Found:
    """The node where both part.

    ``confirmed``: run alone on the same inputs, its results part too, and ``alone`` says how far, by output;
    ``difference`` is that in the model. ``bound`` is the one that it was found with, ``probes`` counts the cuts.
    """

    node: str
    op: str
    position: int  # from 1, in topological order
    nodes: int
    bound: float
    probes: int
    confirmed: bool
    difference: Mapping[str, Difference]
    alone: Mapping[str, Difference]
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[tuple[Tensor, Tensor], ...] = ()  # of each side, on the same inputs
    files: tuple[str, ...] = ()
    among: tuple[str, ...] = ()  # the nodes up to this one that can't be cut apart, where there are several


def bisect(
    one: Side, other: Side, feeds: Arrays, progress: Progress, *, bound: float | None = None, into: Path | None = None
) -> Found | None:
    """Find the node; ``None`` where all outputs agree within ``bound`` (relative, by the precision where not given).

    ``feeds`` is one batch. With ``into``, what reproduces the difference is written there. Raises ``InputError`` where
    a side can't run a cut.
    """
    pair = Pair(one, other, feeds)
    limits = [BOUNDS.get(side.deployment.computed_in, QUANTIZED) for side in (one, other)]
    limit = bound if bound is not None else max(limits)
    progress.begin("bisect", f"{len(pair.nodes)} nodes")
    first: Found | None = None
    while limit >= LEAST:
        found = _search(pair, limit, progress)
        if found is None:
            break
        if found.confirmed or not found.alone:
            first = found
            break
        first = first or found
        limit /= TIGHTER
    progress.end("they agree" if first is None else f"{first.op} {first.node!r}, {pair.probes} cuts")
    if first is None:
        return None
    return first if into is None else _written(pair, first, into)


def _search(pair: Pair, limit: float, progress: Progress) -> Found | None:
    before: dict[str, np.ndarray] = {}  # what the other side has at the last cut that agrees
    low, high = 0, len(pair.nodes)
    differs, _, _ = _cut(pair, high, limit)
    if not differs:
        return None
    steps = math.ceil(math.log2(max(high, 2)))
    gap = differs
    while high - low > 1:
        progress.step(steps - math.ceil(math.log2(max(high - low, 2))), steps, f"cut behind node {(low + high) // 2}")
        if (step := _between(pair, low, high, limit)) is None:
            break
        place, differs, theirs = step
        if differs:
            high, gap = place, differs
        else:
            low, before = place, theirs
    return _confirmed(pair, low, high, limit, gap, before)


def _between(
    pair: Pair, low: int, high: int, limit: float
) -> tuple[int, dict[str, Difference], dict[str, np.ndarray]] | None:
    """Cut in the middle, or where both sides can be cut beside it; ``None`` where that wasn't found.

    Places near the middle are tried, and then some all over. Raises ``InputError`` where that is so of the whole model.
    """
    middle, refused = (low + high) // 2, None
    places = sorted(range(low + 1, high), key=lambda place: (abs(place - middle), place))
    near, far = places[:MOST_TRIED], places[MOST_TRIED:]
    for place in [*near, *far[:: max(1, len(far) // MOST_TRIED)]]:
        try:
            differs, _, theirs = _cut(pair, place, limit)
        except InputError as error:
            if error.id != "cannot-cut":
                raise
            refused = error
        else:
            return place, differs, theirs
    if refused is not None and low == 0 and high == len(pair.nodes):
        raise refused
    return None


def _cut(
    pair: Pair, place: int, limit: float
) -> tuple[dict[str, Difference], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Compare the cut behind so many nodes; return what differs, and what each side gave."""
    ours, theirs = pair.results(place)
    pair.probes += 1
    return _differing(ours, theirs, limit), ours, theirs


def _confirmed(
    pair: Pair, low: int, high: int, limit: float, gap: dict[str, Difference], before: dict[str, np.ndarray]
) -> Found:
    """Run the node alone on both sides, or those that can't be cut apart, on what the other side has before them."""
    nodes, node = pair.nodes[low:high], pair.nodes[high - 1]
    known = {**pair.feeds, **before}
    made = {str(value.name) for one in nodes for value in one.outputs}
    wanted = [str(v.name) for one in nodes for v in reads(one) if v.const_value is None or v.is_graph_input()]
    given = {name: known[name] for name in dict.fromkeys(wanted) if name in known and name not in made}
    try:
        ours, theirs = pair.apart(nodes, given)
    except InputError as error:
        if error.id != "cannot-cut":
            raise
        ours, theirs = {}, {}  # a runtime that fuses may not take them without their neighbours
    alone = {name: _difference(ours[name], theirs[name]) for name in ours if name in theirs}
    shown = {name: one for name, one in gap.items() if name in made} or gap
    return Found(
        str(node.name or ""), node.op_type, high, len(pair.nodes), limit, pair.probes,
        any(_parts(one, limit) for one in alone.values()), shown, alone,
        tuple(_tensor(name, array) for name, array in given.items()),
        tuple((_tensor(name, ours[name]), _tensor(name, theirs[name])) for name in ours if name in theirs),
        among=tuple(str(one.name or one.op_type) for one in nodes) if len(nodes) > 1 else (),
    )  # fmt: skip


def _differing(ours: Arrays, theirs: Arrays, limit: float) -> dict[str, Difference]:
    found = {name: _difference(array, theirs[name]) for name, array in ours.items() if name in theirs}
    return {name: one for name, one in found.items() if _parts(one, limit)}


def _difference(got: np.ndarray, want: np.ndarray) -> Difference:
    """Compare two tensors; narrow integers by their size, since a step of a grid isn't another answer."""
    import numpy as np

    if got.dtype == want.dtype and got.dtype.itemsize <= 2 and got.dtype.kind in "iu":
        return compare(got.astype(np.float32), want.astype(np.float32), logits=False)
    return compare(got, want, logits=False)


def _parts(one: Difference, limit: float) -> bool:
    if one.nonfinite or (one.reason and one.max_abs is None and one.mismatches is None):
        return True
    return one.relative > limit if one.relative is not None else bool(one.mismatches)


def _tensor(name: str, array: np.ndarray) -> Tensor:
    import numpy as np

    values = (array if array.dtype.kind in "fiub" else np.zeros(0)).astype(np.float64).reshape(-1)
    finite = values[np.isfinite(values)]
    low, high, mean, std = (float(f(finite)) if finite.size else None for f in (np.min, np.max, np.mean, np.std))
    zeros = float(np.mean(values == 0)) if values.size else 0.0
    bad = int(values.size - finite.size)
    return Tensor(name, array.dtype.name, tuple(array.shape), low, high, mean, std, zeros, bad)


def _written(pair: Pair, found: Found, into: Path) -> Found:
    """Write the node alone of each side, or the nodes that can't be cut apart, its inputs, and what each side gave."""
    from dataclasses import replace

    from penstock.golden import pack
    from penstock.rewriting.extract import extract

    start = found.position - max(len(found.among), 1)
    nodes = pair.nodes[start : found.position]
    _, _, before = _cut(pair, start, found.bound) if start else ({}, {}, {})
    known = {**pair.feeds, **before}
    given = {one.name: known[one.name] for one in found.inputs}
    ours, theirs = pair.apart(nodes, given) if found.outputs else ({}, {})
    twin, shown = pair.like(nodes, given)
    fed = pair.given(given) | given
    shapes = {name: array.shape for name, array in fed.items()}
    models = {"one.onnx": extract(pair.one.model, pair.one.needed(nodes), shapes=shapes)}
    if found.outputs and (other := extract(pair.other.model, twin, shown, shapes)) != models["one.onnx"]:
        models["other.onnx"] = other
    files = {**models, "inputs.npz": pack(fed), "one.npz": pack(ours), "other.npz": pack(theirs)}
    for name, data in files.items():
        store.write_bytes(into / name, data)
    return replace(found, files=tuple(str(into / name) for name in files))
