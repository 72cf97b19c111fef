"""Probe: run a float model over samples and look at its inner tensors, a chunk of them at a time.

Each chunk is a run over all samples of the model with those tensors as its outputs. What they hold at once is bounded,
so that a graph of thousands of tensors is looked at in several runs rather than in memory that there isn't.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock import custom_domains, graph, machine, store
from penstock.backends import Loadable, Session
from penstock.calibration import Batches, size
from penstock.deployment import Deployment
from penstock.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

    Array = np.ndarray[Any, np.dtype[Any]]
    # called with a tensor's name, a batch of it, the number of the batch's first sample and how many it has
    Visit = Callable[[str, Array, int, int], None]

CHUNK_BYTES = 512 << 20  # of inner tensors that one run may hold at once
MOST_OUTPUTS = 400  # of one run: a session with thousands takes long to make


def observe(
    model: ir.Model, tensors: Sequence[str], batches: Batches, visit: Visit, *, chunk_bytes: int = CHUNK_BYTES,
    done: Callable[[int, int], None] | None = None,
) -> int:  # fmt: skip
    """Show every batch of the named tensors to ``visit``; return in how many runs.

    ``done`` is told after each batch how many samples of how many have passed. Raises ``InputError``.
    """
    known = values(model)
    inputs = {value.name for value in model.graph.inputs}
    given = [name for name in tensors if name in inputs]
    inner = [name for name in tensors if name in known and name not in inputs]
    first = next(iter(batches), None)
    if first is None:
        raise InputError("no-samples", "there are no calibration samples", do="give data with --data")
    chunks = _chunks(model, inner, first, chunk_bytes) if inner else [[]]
    total, passed = batches.count * len(chunks), 0
    for number, chunk in enumerate(chunks):
        with store.scratch() as work:
            session = opened(cut(model, chunk), work) if chunk else None
            try:
                start = 0
                for batch in batches:
                    count = size(batch)
                    for name in given if number == 0 else ():
                        visit(name, np.asarray(batch[name]), start, count)
                    for name, array in zip(chunk, session.run(batch) if session else (), strict=True):
                        visit(name, array, start, count)
                    start, passed = start + count, passed + count
                    if done is not None:
                        done(min(passed, total), total)
            finally:
                if session is not None:
                    session.close()
    return len(chunks)


def values(model: ir.Model) -> dict[str, ir.Value]:
    """Return the tensors of the main graph by name: its inputs, and what its nodes make."""
    found = {str(value.name): value for value in model.graph.inputs}
    for node in model.graph:
        found.update({str(value.name): value for value in node.outputs if value.name})
    return found


def cut(model: ir.Model, tensors: Sequence[str]) -> ir.Model:
    """Return a copy of the model whose outputs are the named tensors."""
    import onnx_ir as ir

    copy = model.clone()
    known = values(copy)
    outputs = [known[name] for name in tensors]
    for value in outputs:
        if value.type is None:
            value.type = ir.TensorType(ir.DataType.FLOAT)
    copy.graph.outputs[:] = outputs
    return copy


def opened(model: ir.Model, work: Path, *, options: dict[str, str] | None = None) -> Session:
    """Write a model into a scratch folder and open it in ONNX Runtime, on all cores allowed without spinning."""
    from penstock.backends import onnxruntime as backend

    path = work / "probe.onnx"
    graph.save(model, path)
    chosen = {"spinning": "off", **(options or {})}
    deployment = Deployment("probe", "probe", "", "fp32", "onnxruntime", threads=machine.threads(), options=chosen)
    return backend.load(Loadable(path, libraries=custom_domains.libraries(path)), deployment)


def _chunks(model: ir.Model, tensors: list[str], batch: Any, most: int) -> list[list[str]]:
    """Cut the tensors into runs by what each holds for a batch, which a run of its first sample tells."""
    sizes = _sizes(model, tensors, batch)
    chunks: list[list[str]] = [[]]
    held = 0
    for name in tensors:
        if chunks[-1] and (held + sizes[name] > most or len(chunks[-1]) >= MOST_OUTPUTS):
            chunks.append([])
            held = 0
        chunks[-1].append(name)
        held += sizes[name]
    return chunks


def _sizes(model: ir.Model, tensors: list[str], batch: Any) -> dict[str, int]:
    """Return the bytes of tensors for a batch, from declared shapes where they are whole, else from a run of parts."""
    count = size(batch)
    found: dict[str, int] = {}
    known = values(model)
    for name in tensors:
        shape = known[name].shape
        dims = [] if shape is None else [dim if isinstance(dim, int) else 0 for dim in shape]
        if dims and all(dims[1:]):
            found[name] = 4 * math.prod(dims[1:]) * (dims[0] or count)
    unknown = [name for name in tensors if name not in found]
    for start in range(0, len(unknown), MOST_OUTPUTS):
        part = unknown[start : start + MOST_OUTPUTS]
        with store.scratch() as work:
            session = opened(cut(model, part), work)
            try:
                arrays, times = _of_one(session, model, batch)
            finally:
                session.close()
        found.update({name: array.nbytes * times for name, array in zip(part, arrays, strict=True)})
    return found


def _of_one(session: Session, model: ir.Model, batch: Any) -> tuple[list[Array], int]:
    """Run the first sample, and say how many of it the batch has; the batch itself where one can't be run alone.

    All tensors of a batch at once are what chunks are there to avoid.
    """
    count = size(batch)
    open_axes = [value.shape is None or not isinstance(value.shape[0], int) for value in model.graph.inputs if
                 value.shape is None or len(value.shape)]  # fmt: skip
    if count > 1 and all(open_axes):
        alone = {name: array[:1] if np.ndim(array) and len(array) == count else array for name, array in batch.items()}
        try:
            return session.run(alone), count
        except InputError:  # sizes that belong together
            pass
    return session.run(batch), 1
