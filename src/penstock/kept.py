"""What takes long to start, kept for the next who wants one like it, where that was asked for with :func:`keeping`.

A session ends its process, or its browser, so that nothing of one model is left for the next. Who opens thousands of
small models one after the other would wait for thousands of starts: inside ``with keeping():`` a process that did
nothing wrong waits for the next session of its kind instead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator
from typing import Protocol


class Kept(Protocol):
    """What can be kept."""

    def close(self) -> None:
        """End it."""


_SHELF: dict[Hashable, list[Kept]] | None = None
_FOR: Callable[[Hashable], bool] | None = None  # what alone is kept


@contextlib.contextmanager
def keeping(alone: Callable[[Hashable], bool] | None = None) -> Iterator[None]:
    """Keep what sessions are done with, for each other; all of it is ended at the end. ``alone``: only of such keys."""
    global _SHELF, _FOR
    outer, _SHELF, _FOR = (_SHELF, _FOR), {}, alone
    try:
        yield
    finally:
        empty()
        _SHELF, _FOR = outer


def wanted(key: Hashable | None = None) -> bool:
    """Whether things of this key are kept now; without one, whether anything is."""
    return _SHELF is not None and (key is None or _FOR is None or _FOR(key))


def empty() -> None:
    """End all that waits."""
    for things in (_SHELF or {}).values():
        while things:
            things.pop().close()


def take(key: Hashable) -> Kept | None:
    """Return something that was kept under a key, and keep it no more; ``None`` where there is none."""
    things = (_SHELF or {}).get(key)
    return things.pop() if things else None


def give(key: Hashable, thing: Kept) -> bool:
    """Keep something for the next who wants it; false where nothing is kept, and it is the caller's to end it."""
    if _SHELF is None or not wanted(key):
        return False
    _SHELF.setdefault(key, []).append(thing)
    return True
