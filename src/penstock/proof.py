"""Hold a rewritten model against the one it came from: several seeds, several sizes of every dynamic axis.

Both run with the runtime's own optimizations off, in a process that can be stopped. Outputs of whole numbers, texts and
truth values have to be equal, floats within a bound of their type. What can't be proved is told with the reason.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from penstock import custom_domains, graph, store, worker
from penstock.errors import InputError, PenstockError
from penstock.jsonable import Json, from_json, to_json

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from penstock.backends import Session
    from penstock.metrics import Difference
    from penstock.signature import Signature

BOUNDS = {"float64": 1e-9, "float32": 1e-4, "float16": 1e-2, "bfloat16": 1e-2}  # largest relative difference
SIZES = (64, 8, 512, 1, 16, 128, 256, 4)  # tried in this order for dynamic axes, until the model runs
MOST_TRIES = 400
BATCHES = (2, 1, 3)
BATCH = "batch of the first axes"  # its key among sizes
ORACLES = ("onnxruntime", "reference")
LAST = ORACLES[-1]
STARTUP_SECONDS = 60.0  # for the process to begin and to load both models
State = Literal["proved", "partial", "skipped", "failed"]


@dataclass(frozen=True, slots=True)
class Proof:
    """What was found. ``runs`` counts inputs on which both ran; ``worst`` is the largest relative difference.

    ``state`` is *proved* where all inputs agreed, *partial* where some could not be run or compared, *skipped* where
    nothing was run, *failed* where an output differs; ``reason`` says why it isn't *proved*.
    """

    state: State
    reason: str
    oracle: str
    runs: int
    worst: float
    sizes: tuple[Mapping[str, int], ...]


def skipped(reason: str) -> Proof:
    """Return the proof of nothing."""
    return Proof("skipped", reason, "", 0, 0.0, ())


def prove(
    before: Path, after: Path, *, seeds: int, seconds: float, memory_bytes: int, other_opset: bool = False
) -> Proof:
    """Run both models on the same made-up inputs and compare.

    ``seconds`` bounds all runs together, ``memory_bytes`` the resident memory of the process that runs them. With
    ``other_opset`` an oracle that doesn't know the result's opset is passed over, and nothing is held against it.
    """
    argument: dict[str, Json] = {"before": str(before.resolve()), "after": str(after.resolve()), "seeds": seeds}
    argument["other_opset"] = other_opset
    argument["libraries"] = list(custom_domains.libraries(before))
    argument["seconds"] = seconds
    try:
        answer = worker.call(
            "penstock.proof:serve", argument, timeout_s=STARTUP_SECONDS + seconds, memory_bytes=memory_bytes
        )
    except worker.WorkerMemory:
        return skipped(f"a run takes more than {memory_bytes:,} bytes of memory; allow more with --proof-memory-bytes")
    except worker.WorkerTimeout:
        return skipped(f"one run takes more than {seconds:g} s; allow more with --proof-seconds")
    except PenstockError as error:
        return skipped(f"it can't be run here: {error.what}")
    return from_json(Proof, answer)


def serve(argument: Json) -> Json:
    """Do the runs: the worker's side of :func:`prove`."""
    import threading

    asked = cast("dict[str, Json]", argument)
    seconds = float(cast(float, asked["seconds"]))
    found: list[Json] = []
    work = threading.Thread(target=lambda: found.append(_serve(asked)), daemon=True)
    work.start()
    work.join(seconds)
    if found:
        return found[0]
    return to_json(skipped(f"one run takes more than {seconds:g} s; allow more with --proof-seconds"))


def _serve(asked: dict[str, Json]) -> Json:
    try:
        before, after = Path(str(asked["before"])), Path(str(asked["after"]))
        libraries = tuple(cast("list[str]", asked["libraries"]))
        return to_json(
            compare(
                before, after, int(cast(int, asked["seeds"])), libraries, other_opset=bool(asked.get("other_opset"))
            )
        )
    except PenstockError as error:
        return to_json(skipped(error.what))


def compare(
    before: Path, after: Path, seeds: int, libraries: tuple[str, ...] = (), *, other_opset: bool = False
) -> Proof:
    """Run both models in this process and compare."""
    from penstock import inputs

    model = graph.parse(before)  # whoever asks for the proof has loaded it, behind the pre-check
    signature, modes, bounds = graph.signature(model), compared_numbers(model), inputs.integer_bounds(model)
    del model
    try:
        oracle, first = _open(before, libraries)
    except InputError as error:
        return _without_unknown(before, after, seeds, other_opset=other_opset) or skipped(
            f"no oracle runs the model as it came: {error.what}"
        )
    try:
        _, second = _open(after, libraries, oracle)
    except InputError as error:
        if not other_opset:
            return Proof("failed", f"the result can't be loaded: {error.what}", oracle, 0, math.inf, ())
        try:
            (oracle, first), (_, second) = _open(before, libraries, LAST), _open(after, libraries, LAST)
        except InputError:
            return skipped(f"no oracle runs the model in both opsets: {error.what}")
    tried: list[Mapping[str, int]] = []
    reasons: list[str] = []
    runs, worst = 0, 0.0
    for shown, feeds in _inputs(signature, modes, bounds, first, seeds, reasons):
        try:
            wanted, again = first.run(feeds), first.run(feeds)
        except InputError:
            continue  # other numbers of the same shapes, and the model doesn't run on them
        try:
            got = second.run(feeds)
        except InputError as error:
            return Proof(
                "failed", f"the result doesn't run with {shown}: {error.what}", oracle, runs, math.inf, (shown,)
            )
        for spec, ours, theirs, repeated in zip(signature.outputs, got, wanted, again, strict=True):
            if not _same(repeated, theirs):
                reasons.append(f"the model's own output {spec.name!r} changes from run to run")
                continue
            gap, problem = _judged(spec.name, ours, theirs)
            if problem:
                return Proof("failed", f"with {shown}: {problem}", oracle, runs, gap, (shown,))
            worst = max(worst, gap)
        runs += 1
        if shown not in tried:
            tried.append(shown)
    if not runs:
        only = "; ONNX Runtime can't load it, and onnx's own evaluator ran none" if oracle != ORACLES[0] else ""
        return skipped(f"no made-up input suits the model{only}")
    reasons = list(dict.fromkeys(reasons))
    return Proof("partial" if reasons else "proved", "; ".join(reasons[:3]), oracle, runs, worst, tuple(tried))


def _without_unknown(before: Path, after: Path, seeds: int, *, other_opset: bool) -> Proof | None:
    """Prove what lies between operators that no oracle knows; ``None`` where that can't be done."""
    from penstock.proof_cut import cut

    with store.scratch() as work:
        try:
            unknown = cut(before, work / "before.onnx")
            if cut(after, work / "after.onnx") != unknown:
                return None
        except (InputError, ValueError):
            return None
        shapes = [graph.signature(graph.parse(work / name)) for name in ("before.onnx", "after.onnx")]
        names = [[spec.name for spec in (*shape.inputs, *shape.outputs)] for shape in shapes]
        if names[0] != names[1]:
            return None
        done = compare(work / "before.onnx", work / "after.onnx", seeds, other_opset=other_opset)
    if done.state not in ("proved", "partial"):
        return done if done.state == "failed" else None
    told = f"all but {', '.join(unknown)}, which no oracle here knows"
    return replace(done, state="partial", reason="; ".join(filter(None, (told, done.reason))))


def _dynamic(signature: Signature) -> bool:
    return any(not isinstance(dim, int) for spec in signature.inputs for dim in spec.shape or ())


def _open(path: Path, libraries: tuple[str, ...], only: str = "") -> tuple[str, Session]:
    """Open a model in the first oracle that takes it: ONNX Runtime without optimizations, the reference evaluator."""
    from penstock import registry
    from penstock.backends import Backend, Loadable
    from penstock.deployment import Deployment

    problem: InputError | None = None
    for name in ORACLES:
        if only and name != only:
            continue
        plain = Deployment(
            "proof", "", "", "fp32", name, options={"optimization": "disabled"} if name != "reference" else {}
        )
        try:
            return name, cast(Backend, registry.load("backends", name)).load(Loadable(path, libraries=libraries), plain)
        except InputError as error:
            problem = problem or error
    assert problem is not None
    raise problem


def _inputs(
    signature: Signature,
    numbers: Mapping[str, Sequence[int]],
    bounds: Mapping[str, int],
    session: Session,
    seeds: int,
    missed: list[str],
) -> Iterator[tuple[dict[str, int], dict[str, np.ndarray]]]:
    """Yield (sizes, feeds) that the model runs with: a set of sizes for all seeds, another set, and each other mode.

    A mode is a number that the graph compares an input with: another branch may be taken for it. What can't be run is
    added to ``missed``.
    """
    modes: list[dict[str, int]] = [{}]
    modes += [{name: number} for name, known in numbers.items() for number in known]
    for mode in modes:
        found: list[dict[str, int]] = []
        for sizes in _sizes(signature):
            if any(sizes[axis] == other[axis] for other in found for axis in sizes if len(sizes) == 1 or axis != BATCH):
                continue
            try:
                session.run(_seeded(signature, sizes, bounds, mode, 0))
            except InputError:
                continue
            for seed in range(seeds if not found else 1):
                yield sizes | mode, _seeded(signature, sizes, bounds, mode, seed)
            found.append(sizes)
            if len(found) == 2 or mode or not _dynamic(signature):
                break
        if not found and mode:
            missed += [f"no made-up input suits the model with {name} = {number}" for name, number in mode.items()]
        elif len(found) == 1 and not mode and _dynamic(signature):
            missed.append("one set of sizes is all that the model runs with")


def _sizes(signature: Signature) -> Iterator[dict[str, int]]:
    """Yield sizes of all dynamic axes; one name has one size, the first axes have that of the batch."""
    from penstock import inputs

    first = {spec.shape[0] for spec in signature.inputs if spec.shape and isinstance(spec.shape[0], str)}
    axes = [axis for axis in inputs.free_axes(signature) if axis not in first]
    batches = BATCHES if signature.fixed_batch is None else (signature.fixed_batch,)
    tries = ((batch, *sizes) for batch in batches
             for sizes in itertools.product(dict.fromkeys((*SIZES, batch)), repeat=len(axes)))  # fmt: skip
    for batch, *chosen in itertools.islice(tries, MOST_TRIES):
        yield dict(zip(axes, chosen, strict=True)) | dict.fromkeys(first, batch) | {BATCH: batch}


def _seeded(
    signature: Signature, sizes: Mapping[str, int], bounds: Mapping[str, int], mode: Mapping[str, int], seed: int
) -> dict[str, np.ndarray]:
    import numpy as np

    from penstock import inputs

    feeds = inputs.seeded(signature, batch=sizes[BATCH], seed=seed, sizes=sizes, bounds=bounds)
    return feeds | {name: np.full_like(feeds[name], number) for name, number in mode.items()}


def compared_numbers(model: ir.Model) -> dict[str, tuple[int, ...]]:
    """Find, for every input of whole numbers, the constants that it is compared with, like a mode or a sample rate."""
    from penstock.rewriting.knowledge import constant

    found = {}
    for value in model.graph.inputs:
        if value.dtype is None or not value.dtype.name.startswith(("INT", "UINT")):
            continue
        known = []
        for use in value.uses():
            if use.node.op_type == "Equal" and len(use.node.inputs) == 2:
                other = use.node.inputs[1 - use.idx]
                tensor = None if other is None else constant(other)
                if tensor is not None and tensor.size == 1:
                    known.append(int(tensor.numpy().reshape(-1)[0]))
        if known:
            found[value.name or ""] = tuple(dict.fromkeys(known))
    return found


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    from penstock.metrics import compare as difference

    return difference(a, b, logits=False).equal


def _judged(name: str, got: np.ndarray, want: np.ndarray) -> tuple[float, str]:
    """Return the relative difference of an output, and what is wrong with it."""
    import numpy as np

    from penstock.metrics import compare as difference

    found: Difference = difference(np.asarray(got), np.asarray(want), logits=False)
    if found.reason:
        return math.inf, f"{found.reason} of the output {name!r}"
    if found.relative is None:
        return (
            (0.0, "") if not found.mismatches else (math.inf, f"{found.mismatches:.2%} of the output {name!r} differ")
        )
    bound = BOUNDS.get(np.asarray(want).dtype.name, 0.0)
    if found.nonfinite or found.relative > bound:
        return found.relative, f"the output {name!r} differs by {found.relative:.2g} relative, {bound:g} is allowed"
    return found.relative, ""
