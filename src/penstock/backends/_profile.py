"""Times of single nodes, from ONNX Runtime's own profile, of a session made for that: a profile slows runs down."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock import store
from penstock.backends import NodeTime
from penstock.jsonable import Json

if TYPE_CHECKING:
    import numpy as np

_ENDS = "_kernel_time"  # what names of events of nodes end in
_RUN = "model_run"  # the event that ends a run
_WHOLE_LAYERS = frozenset({
    "ConvInteger", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QGemm", "QLinearConv",
    "QLinearConvTranspose", "QLinearMatMul",
})  # fmt: skip
_FLOAT_LAYERS = frozenset({
    "Conv", "ConvTranspose", "FusedConv", "FusedGemm", "FusedMatMul", "Gemm", "MatMul", "NhwcFusedConv",
})  # fmt: skip


def times(opened: Callable[[Path], Any], run: Callable[[Any], list[np.ndarray]], runs: int) -> list[NodeTime]:
    """Return what each node takes, in milliseconds, over so many runs behind a first one; see :func:`events`."""
    return of_events(events(opened, run, runs + 1), runs)


def events(opened: Callable[[Path], Any], run: Callable[[Any], list[np.ndarray]], runs: int) -> list[dict[str, Any]]:
    """Run a session that ``opened`` makes, which writes its profile to the prefix it is given, and read that."""
    with store.scratch() as work:
        session = opened(work / "profile")
        for _ in range(runs):
            run(session)
        found: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text())
    return found


def is_of_node(event: Mapping[str, Any]) -> bool:
    """Whether an event is the run of a node's kernel."""
    return str(event.get("name", "")).endswith(_ENDS)


def weighted_in(told: Sequence[Mapping[str, Any]]) -> dict[str, Json]:
    """Return how many of the layers that multiply ran in which type, of the events of one run."""
    operators = [str(event.get("args", {}).get("op_name", "")) for event in told if is_of_node(event)]
    found = {"fp32": sum(map(_FLOAT_LAYERS.__contains__, operators)),
             "int8": sum(map(_WHOLE_LAYERS.__contains__, operators))}  # fmt: skip
    return {name: count for name, count in found.items() if count}


def of_events(told: list[dict[str, Any]], runs: int) -> list[NodeTime]:
    """Return the nodes of a profile in the order that they began in, each with the median over its last ``runs`` runs.

    A node in the body of a Loop is summed over the trips of a run, and the Loop itself is what is left of its time.
    """
    held: dict[tuple[str, str, str], list[float]] = {}
    for run in _by_run(told)[-runs:]:
        for key, spent in _own(run).items():
            held.setdefault(key, []).append(spent / 1e3)
    return [NodeTime(*key, statistics.median(spent)) for key, spent in held.items()]


def _by_run(told: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Cut the events of nodes into runs: each ends with an event of its own."""
    found: list[list[dict[str, Any]]] = [[]]
    for event in told:
        if event.get("name") == _RUN:
            found.append([])
        elif is_of_node(event):
            found[-1].append(event)
    return [run for run in found if run]


def _own(run: list[dict[str, Any]]) -> dict[tuple[str, str, str], float]:
    """Sum the microseconds of each node in one run, without those of the nodes that ran inside it."""
    found: dict[tuple[str, str, str], float] = {}
    around: list[tuple[float, tuple[str, str, str]]] = []  # when what is running ends, and who it is
    for event in sorted(run, key=lambda event: (event["ts"], -event["dur"])):
        told, begins, spent = event.get("args", {}), float(event["ts"]), float(event["dur"])
        name = str(event["name"]).removesuffix(_ENDS)
        key = name, str(told.get("op_name", "")), str(told.get("provider", ""))
        while around and around[-1][0] <= begins:
            around.pop()
        if around and begins + spent <= around[-1][0]:
            found[around[-1][1]] -= spent
        found[key] = found.get(key, 0.0) + spent
        around.append((begins + spent, key))
    return {key: max(spent, 0.0) for key, spent in found.items()}
