"""Keep the work on fixed CPUs while it is timed."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def pinned(count: int, *, pin: bool = True) -> Iterator[tuple[int, ...]]:
    """Bind this thread, and the threads it starts, to the last ``count`` CPUs it may use; give their numbers.

    The last ones, because systems tend to put interrupts and housekeeping on the first. Gives () where the system
    can't bind, or ``pin`` is false. What was allowed before is allowed again afterwards, to the threads born meanwhile
    too: a runtime keeps its pool for later sessions.
    """
    if not pin or not hasattr(os, "sched_setaffinity"):
        yield ()
        return
    before = os.sched_getaffinity(0)
    earlier = threads()
    chosen = tuple(sorted(before)[-max(count, 1) :])
    try:
        os.sched_setaffinity(0, chosen)
    except OSError:  # some sandboxes forbid it
        yield ()
        return
    try:
        yield chosen
    finally:
        for tid in {0} | (threads() - earlier):
            with contextlib.suppress(OSError):  # it ended, or CPUs were taken away meanwhile
                os.sched_setaffinity(tid, before)


def threads() -> frozenset[int]:
    """Return the ids of this process's threads as the system knows them; empty where it doesn't tell."""
    try:
        return frozenset(int(entry.name) for entry in Path("/proc/self/task").iterdir())
    except OSError:
        return frozenset()


def runtimes_own(before: frozenset[int]) -> int | None:
    """Count the threads that a runtime works with, that of whoever calls it among them, by those born since ``before``.

    Python's own don't count. ``None`` where the system doesn't tell.
    """
    now = threads()
    if not now:
        return None
    return 1 + len(now - before - {thread.native_id for thread in threading.enumerate()})


def strays(tids: frozenset[int], cpus: tuple[int, ...]) -> int:
    """Count the threads that may leave ``cpus``: a runtime may bind its own pool elsewhere."""
    found = 0
    for tid in tids if cpus else ():
        with contextlib.suppress(OSError):  # it ended
            found += not os.sched_getaffinity(tid) <= set(cpus)
    return found
