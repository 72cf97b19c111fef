"""What takes long to start, kept for the next who wants one like it, where that was asked for with :func:`keeping`.

A session ends its process, or its browser, so that nothing of one model is left for the next. Who opens thousands of
small models one after the other would wait for thousands of starts: inside ``with keeping():`` a process that did
nothing wrong waits for the next session of its kind instead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Protocol


class Kept(Protocol):
    """What can be kept."""

    def close(self) -> None:
        """End it."""


@dataclass(eq=False)
class _Shelf:
    """What one block keeps; blocks may lie in each other, or overlap in several threads."""

    alone: Callable[[Hashable], bool] | None
    things: dict[Hashable, list[Kept]] = field(default_factory=dict)

    def empty(self) -> None:
        for things in self.things.values():
            while things:
                things.pop().close()


_SHELVES: list[_Shelf] = []  # of the blocks that are entered; the last one is the one in use


@contextlib.contextmanager
def keeping(alone: Callable[[Hashable], bool] | None = None) -> Iterator[None]:
    """Keep what sessions are done with, for each other; all of it is ended at the end. ``alone``: only of such keys."""
    shelf = _Shelf(alone)
    _SHELVES.append(shelf)
    try:
        yield
    finally:
        _SHELVES.remove(shelf)
        shelf.empty()


def wanted(key: Hashable | None = None) -> bool:
    """Whether things of this key are kept now; without one, whether anything is."""
    if not _SHELVES:
        return False
    alone = _SHELVES[-1].alone
    return key is None or alone is None or alone(key)


def empty() -> None:
    """End all that waits."""
    for shelf in _SHELVES:
        shelf.empty()


def take(key: Hashable) -> Kept | None:
    """Return something that was kept under a key, and keep it no more; ``None`` where there is none."""
    things = _SHELVES[-1].things.get(key) if _SHELVES else None
    return things.pop() if things else None


def give(key: Hashable, thing: Kept) -> bool:
    """Keep something for the next who wants it; false where it isn't kept, and it is the caller's to end it."""
    if not wanted(key):
        return False
    _SHELVES[-1].things.setdefault(key, []).append(thing)
    return True
