"""How long earlier builds took, step by step, for estimates: a small file in the cache folder.

One JSON object a line. A line that can't be read is passed over; the file is cut to its newer half when it gets long.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

from penstock import machine, store
from penstock.jsonable import dumps
from penstock.progress import Progress

NAME = "history.jsonl"
LONGEST = 256_000  # bytes


def key(spec: str) -> str:
    """Return what a source goes by: for a file a digest of where it lies, as many models have one name."""
    head, colon, name = spec.rpartition(":")
    path = Path(head if colon and name.isidentifier() else spec)
    return store.digest_of([spec.rpartition("/")[2], str(path.resolve())]) if path.exists() else spec


def remember(cache: Path, source: str, steps: Mapping[str, float]) -> None:
    """Add one build: the seconds of each step that ran. What can't be written is let be: it is only an estimate."""
    if not steps:
        return  # all was taken over
    ran = {name: round(seconds, 3) for name, seconds in steps.items()}
    entry = {"source": source, "machine": machine.instruction_set(), "at": round(time.time()), "steps": ran}
    store.append_line(cache / NAME, dumps(entry), LONGEST)


def recall(cache: Path, source: str) -> dict[str, float]:
    """Return the seconds of each step of builds of this source on this kind of machine; the latest of each counts."""
    found: dict[str, float] = {}
    try:
        text = (cache / NAME).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return found
    here = machine.instruction_set()
    for line in text.splitlines():
        try:
            entry = json.loads(line)
            if entry["source"] == source and entry["machine"] == here:
                found |= {str(name): float(seconds) for name, seconds in entry["steps"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return found


class Clock:
    """A progress that hands on what it is told, and keeps the seconds of each stage."""

    def __init__(self, inner: Progress) -> None:
        self._inner = inner
        self._stage, self._began = "", 0.0
        self.seconds: dict[str, float] = {}

    def begin(self, stage: str, note: str = "") -> None:
        """Begin a stage."""
        self._stage, self._began = stage, time.monotonic()
        self._inner.begin(stage, note)

    def step(self, done: int, total: int, note: str = "") -> None:
        """Tell how far it is."""
        self._inner.step(done, total, note)

    def end(self, note: str = "") -> None:
        """End the stage."""
        self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + time.monotonic() - self._began
        self._inner.end(note)
