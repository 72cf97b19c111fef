"""How slow this machine is just now, held against the one of the table in docs/untrusted-models.md in its slow hour.

python tests/attacks/pace.py    prints 1 there, 1.3 where the same takes 1.3 times as long

The work is of the kind that a large graph is: many small objects, made, looked up and gone through. On a shared machine
it takes up to twice as long from one hour to the next, and longer still while others use the same caches.
"""

import gc
import statistics
import time

NODES = 60_000
USUAL = 0.14  # seconds, where `optimize` takes 6 to 8 s of 105,000 nodes, as in the table


class _Node:
    def __init__(self, number: int, reads: list["_Node"]) -> None:
        self.name, self.reads, self.attributes = f"n{number}", reads, {"number": number}


def _work() -> int:
    made: list[_Node] = []
    for number in range(NODES):
        made.append(_Node(number, made[-2:]))
    known = {one.name: one for one in made}
    return sum(len(known[one.name].reads) + len(one.attributes) for _ in range(4) for one in made)


def pace() -> float:
    """Return how many times longer the work takes than usual, the median of five."""
    spent = []
    gc.disable()
    for _ in range(5):
        began = time.process_time()
        _work()
        spent.append(time.process_time() - began)
    return statistics.median(spent) / USUAL


if __name__ == "__main__":
    print(f"{pace():.3f}")
