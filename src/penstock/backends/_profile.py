"""Times of single nodes, from ONNX Runtime's own profile, of a session made for that: a profile slows runs down."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock import store
from penstock.backends import NodeTime

if TYPE_CHECKING:
    import numpy as np

_ENDS = "_kernel_time"  # what names of events of nodes end in


def times(opened: Callable[[Path], Any], run: Callable[[Any], list[np.ndarray]], runs: int) -> list[NodeTime]:
    """Run a session that ``opened`` makes, which writes its profile to the prefix it is given, and read that.

    The first run isn't counted.
    """
    with store.scratch() as work:
        session = opened(work / "profile")
        for _ in range(runs + 1):
            run(session)
        events = json.loads(Path(session.end_profiling()).read_text())
    return of_events(events, runs)


def of_events(events: list[dict[str, Any]], runs: int) -> list[NodeTime]:
    """Return the nodes of a profile in the order of their runs, each with the median of its last ``runs`` times."""
    held: dict[tuple[str, str, str], list[float]] = {}
    for event in events:
        name, told = str(event.get("name", "")), event.get("args", {})
        if name.endswith(_ENDS):
            key = name.removesuffix(_ENDS), str(told.get("op_name", "")), str(told.get("provider", ""))
            held.setdefault(key, []).append(float(event.get("dur", 0)) / 1e3)
    return [NodeTime(*key, statistics.median(spent[-runs:])) for key, spent in held.items()]
