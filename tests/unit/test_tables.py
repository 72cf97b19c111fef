"""The table of a build says what an interval says, and that there is none where there is none."""

import math
from types import SimpleNamespace
from typing import Any

import pytest

from penstock.cli import _tables


@pytest.mark.parametrize(
    ("ratio", "shown"),
    [
        ((2.1, 0.0, math.inf), "2.10 (no interval: too few rounds)"),
        ((1.01, 0.95, 1.1), "no difference (0.95–1.10)"),
        ((0.5, 0.48, 0.52), "0.50 (0.48–0.52)"),
        ((1.0, 1.0, 1.0), "1"),
        (None, "–"),
    ],
)
def test_a_ratio(ratio: object, shown: str) -> None:
    row: Any = SimpleNamespace(ratio=ratio)
    assert _tables._ratio(row) == shown
