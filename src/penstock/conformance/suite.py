"""The node tests that the ``onnx`` package generates, and the judgement of one of them on a backend.

A test is a small model, mostly of one node, with inputs and expected outputs and the bounds within which they hold.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from penstock import store
from penstock.errors import PenstockError
from penstock.worker import WorkerCrash, WorkerTimeout

if TYPE_CHECKING:
    import onnx

    from penstock.backends import Session

Kind = Literal["passed", "wrong", "refused", "failed", "crashed", "hung"]
KINDS: dict[Kind, str] = {
    "passed": "the outputs are those of the test, within its bounds",
    "wrong": "a session was made, and an output is another",
    "refused": "no session can be made of the model: by name of what is missing",
    "failed": "a session was made, and a run of it ends in an error",
    "crashed": "the process of the runtime died",
    "hung": "it took longer than a test may",
}
RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
DRAWS = "test_training_dropout"  # how names of tests of a Dropout in training mode begin
EXPANDED = "_expanded"  # in the name of a test whose operator is written out as its function
LONGEST = 200  # characters of a reason


@dataclass(frozen=True, slots=True)
class Case:
    """One test: its model, and for each of its data sets the inputs and the expected outputs, by position."""

    name: str
    operator: str  # as an operator is written: "Conv", "ai.onnx.ml.Binarizer"
    model: onnx.ModelProto
    data: Sequence[tuple[Sequence[Any], Sequence[Any]]]
    rtol: float
    atol: float
    draws: bool = False  # at random: of what comes out the types and shapes alone are prescribed


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one test; ``reason`` says it of those that didn't pass."""

    kind: Kind
    reason: str = ""


def version() -> str:
    """Return which suite this is."""
    from importlib.metadata import version

    return f"onnx {version('onnx')}"


@functools.cache
def cases() -> tuple[Case, ...]:
    """Return all node tests, in the order of their names. Takes some seconds."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they compute infinities on purpose
        found = collect_testcases(None)  # None: of all operators
    by_name = {case.name: case for case in found if case.model is not None}
    made = []
    for name, case in sorted(by_name.items()):
        plain = by_name.get(name.partition(EXPANDED)[0], case)
        assert case.model is not None and plain.model is not None
        draws = name.startswith(DRAWS) or any(node.op_type in RANDOM for node in _nodes(case.model))
        named = operator(plain.model, plain.name)
        made.append(Case(name, named, case.model, case.data_sets or (), case.rtol, case.atol, draws))
    return tuple(made)


def _nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [*model.graph.node, *(node for function in model.functions for node in function.node)]


def operator(model: onnx.ModelProto, name: str) -> str:
    """Return the operator that a test is of: its only one, or of several the one that its name tells."""
    nodes = list(model.graph.node)
    told = name.removeprefix("test_").replace("_", "")
    named = [node for node in nodes if told.startswith(node.op_type.lower())]
    node = max(named or nodes[:1], key=lambda one: len(one.op_type))
    return f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else str(node.op_type)


def run(
    case: Case, backend: Any, name: str, folder: Path, options: Mapping[str, str] | None = None, *,
    relative: float = 0.0,
) -> Result:  # fmt: skip
    """Run a test on a backend in this process, on one thread. Never raises but for an interruption.

    ``relative`` widens the bounds of floats, to so much of the largest expected value: for a runtime that is to compute
    in fewer bits than the tests are made for.
    """
    from penstock.backends import Loadable, device_of
    from penstock.deployment import Deployment

    path = folder / "model.onnx"
    store.write_bytes(path, case.model.SerializeToString())
    device = device_of(backend)
    deployment = Deployment(f"{case.name}@{name}", case.name, "", "fp32", name, device=device, options=options or {})
    try:
        session = backend.load(Loadable(path), deployment)
    except Exception as error:
        return _ended(error, "refused", folder)
    try:
        return _judged(case, session, relative)
    except Exception as error:
        return _ended(error, "failed", folder)
    finally:
        with contextlib.suppress(Exception):  # the test has ended; one that can't be closed isn't the next one's fault
            session.close()


def _ended(error: Exception, kind: Kind, folder: Path) -> Result:
    if not isinstance(error, PenstockError):
        return Result(kind, _short(f"{type(error).__name__}, which no backend should raise: {error}"))
    if isinstance(error, WorkerTimeout):
        kind = "hung"
    elif isinstance(error, WorkerCrash):
        kind = "crashed"
    else:
        kind = "failed" if error.id == "run-failed" else "refused"  # some make their session at the first run
    return Result(kind, _short(str(error.what).replace(f"{folder}/", "")))


def _short(text: str) -> str:
    return " ".join(text.split())[:LONGEST]


def _judged(case: Case, session: Session, relative: float) -> Result:
    names = [value.name for value in case.model.graph.input]
    for inputs, expected in case.data:
        got = session.run(dict(zip(names, map(plain, inputs), strict=False)))
        if len(got) != len(expected):
            return Result("wrong", f"it gives {len(got)} outputs, not {len(expected)}")
        for place, (mine, theirs) in enumerate(zip(got, expected, strict=True)):
            wanted = plain(theirs)
            atol = max(case.atol, relative * _largest(wanted)) if relative else case.atol
            if reason := differs(mine, wanted, case.rtol, atol, drawn=case.draws):
                return Result("wrong", _short(f"output {place}: {reason}"))
    return Result("passed")


def _largest(value: Any) -> float:
    """Return the largest finite magnitude of a tensor of floats, or of a sequence of them; 0 for all else."""
    import numpy as np

    if isinstance(value, list):
        return max(map(_largest, value), default=0.0)
    if value is None or np.asarray(value).dtype.kind in "OUSiubc":
        return 0.0
    held = np.abs(np.asarray(value).astype(np.float64))
    return float(held[np.isfinite(held)].max(initial=0.0))


def plain(value: Any) -> Any:
    """Return a value as an array; some tests hold theirs as a tensor of the format."""
    import numpy as np
    import onnx

    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, np.generic) else value  # a number by itself is a tensor too


def differs(got: Any, expected: Any, rtol: float, atol: float, *, drawn: bool = False) -> str:
    """Say how a value is another than the expected one, "" where it isn't: type, shape, then numbers within bounds.

    Of what is ``drawn`` at random only the type and the shape are looked at.
    """
    import numpy as np

    if expected is None or got is None:
        return "" if got is expected else "one of the two is empty"
    if isinstance(expected, list):
        if not isinstance(got, list) or len(got) != len(expected):
            return f"a sequence of {len(expected)} was expected"
        pairs = enumerate(zip(got, expected, strict=True))
        return next((f"element {at}: {told}" for at, two in pairs if (told := differs(*two, rtol, atol))), "")
    if isinstance(got, list):
        return "it is a sequence"
    got, expected = np.asarray(got), np.asarray(expected)
    texts = [array.dtype.kind in "OUS" for array in (got, expected)]
    if got.dtype != expected.dtype and not all(texts):
        return f"it is {got.dtype.name}, not {expected.dtype.name}"
    if got.shape != expected.shape:
        return f"its shape is {[*got.shape]}, not {[*expected.shape]}"
    if drawn:
        return ""
    if all(texts):
        same = all(_text(mine) == _text(theirs) for mine, theirs in zip(got.ravel(), expected.ravel(), strict=True))
        return "" if same else "its texts are others"
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64 if expected.dtype.kind not in "iub" else None
    mine, theirs = (got, expected) if wide is None else (got.astype(wide), expected.astype(wide))
    if np.allclose(mine, theirs, rtol=rtol, atol=atol, equal_nan=True):
        return ""
    with np.errstate(all="ignore"):
        wrong = ~np.isclose(mine, theirs, rtol=rtol, atol=atol, equal_nan=True)
        apart = np.abs(mine[wrong].astype(wide or np.float64) - theirs[wrong].astype(wide or np.float64))
    largest = float("nan") if np.isnan(apart).all() else float(np.nanmax(apart))
    return (
        f"{int(wrong.sum())} of {wrong.size} numbers differ, the most by {largest:.3g} (rtol {rtol:g}, atol {atol:g})"
    )


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
