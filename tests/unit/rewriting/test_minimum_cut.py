"""The cheapest cut, against trying all of them."""

import itertools

import numpy as np
import pytest

from penstock.rewriting.minimum_cut import SINK, SOURCE, Network


@pytest.mark.parametrize("seed", range(30))
def test_no_cut_is_cheaper(seed: int) -> None:
    rng = np.random.default_rng(seed)
    inner = list(range(5))
    edges = [
        (a, b, int(rng.integers(1, 9)) << 60)
        for a, b in itertools.permutations([SOURCE, SINK, *inner], 2)
        if a != SINK and b != SOURCE and rng.random() < 0.4
    ]
    network = Network()
    for edge in edges:
        network.edge(*edge)

    def cost(side: set[object]) -> int:
        return sum(price for a, b, price in edges if a in side and b not in side)

    sides = [{SOURCE, *chosen} for count in range(6) for chosen in itertools.combinations(inner, count)]
    least = min(cost(side) for side in sides)
    side, found = network.cut()
    assert found == least == cost(side)
    assert all(side <= other for other in sides if cost(other) == least)  # the smallest of them
    assert network.wins == sum(price for a, _, price in edges if a == SOURCE)
