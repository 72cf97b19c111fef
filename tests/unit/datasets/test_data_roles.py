"""The roles of data: disjoint, stratified, and the same for ever."""

from __future__ import annotations

import numpy as np
import pytest

from penstock.roles import deal, dealing_order

LABELS = np.arange(1000) % 10


def test_roles_are_disjoint_and_of_the_size_asked_for() -> None:
    roles = deal(LABELS, 1000, seed=0, golden=64, calibrate=512, select=300)
    assert (len(roles.golden), len(roles.calibrate), len(roles.select)) == (64, 512, 300)
    together = np.concatenate([roles.golden, roles.calibrate, roles.select])
    assert len(set(together.tolist())) == 876
    assert together.min() >= 0 and together.max() < 1000


@pytest.mark.parametrize("role", ["golden", "calibrate", "select"])
def test_every_role_is_stratified(role: str) -> None:
    roles = deal(LABELS, 1000, seed=3, golden=64, calibrate=512, select=300)
    counts = np.bincount(LABELS[getattr(roles, role)], minlength=10)
    assert counts.max() - counts.min() <= 1


def test_a_rare_class_is_in_every_role_in_its_proportion() -> None:
    labels = np.array([0] * 950 + [1] * 50)
    order = dealing_order(labels, 1000, seed=0)
    assert sorted(order.tolist()) == list(range(1000))
    for start, stop in ((0, 60), (60, 310), (310, 560), (560, 1000)):
        share = labels[order[start:stop]].mean()
        assert abs(share - 0.05) * (stop - start) <= 1.0


def test_a_small_set_fills_the_roles_in_order() -> None:
    roles = deal(None, 70, seed=0, golden=64, calibrate=512, select=300)
    assert (len(roles.golden), len(roles.calibrate), len(roles.select)) == (64, 6, 0)


def test_another_seed_is_another_order() -> None:
    first, second = (dealing_order(None, 100, seed=seed) for seed in (0, 1))
    assert first.tolist() != second.tolist()
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(100))


def test_the_order_is_frozen() -> None:
    assert dealing_order(None, 1000, seed=0)[:8].tolist() == [78, 7, 548, 249, 40, 174, 172, 441]
    assert dealing_order(LABELS, 1000, seed=0)[:8].tolist() == [40, 441, 172, 913, 174, 625, 356, 7]
    assert dealing_order(LABELS, 1000, seed=-7)[:8].tolist() == [490, 981, 482, 323, 984, 15, 886, 667]
