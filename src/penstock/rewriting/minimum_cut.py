"""Find the cheapest way to part a graph in two: max-flow = min-cut (Ford and Fulkerson, 1956; shortest paths first)."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

SOURCE, SINK = "source", "sink"
FOREVER = 1 << 200  # dearer than everything that can be cut


class Network:
    """Edges with whole-numbered costs between vertices of any kind; ``SOURCE`` and ``SINK`` are two of them."""

    def __init__(self) -> None:
        self.left: dict[Hashable, dict[Hashable, int]] = {SOURCE: {}, SINK: {}}
        self.wins = 0  # what all edges from the source cost together

    def edge(self, a: Hashable, b: Hashable, cost: int) -> None:
        """Say what it costs when ``a`` is on the source's side and ``b`` on the sink's."""
        forth = self.left.setdefault(a, {})
        forth[b] = forth.get(b, 0) + cost
        self.left.setdefault(b, {}).setdefault(a, 0)
        if a == SOURCE:
            self.wins += cost

    def cut(self) -> tuple[set[Hashable], int]:
        """Return the smallest source's side of a cheapest cut, and its cost."""
        flow = 0
        while True:
            came: dict[Hashable, Hashable] = {SOURCE: SOURCE}
            queue: deque[Hashable] = deque([SOURCE])
            while queue and SINK not in came:
                a = queue.popleft()
                for b, room in self.left[a].items():
                    if room and b not in came:
                        came[b] = a
                        queue.append(b)
            if SINK not in came:
                return set(came), flow
            path: list[Hashable] = [SINK]
            while path[-1] != SOURCE:
                path.append(came[path[-1]])
            steps = list(zip(path[1:], path, strict=False))
            least = min(self.left[a][b] for a, b in steps)
            for a, b in steps:
                self.left[a][b] -= least
                self.left[b][a] += least
            flow += least
