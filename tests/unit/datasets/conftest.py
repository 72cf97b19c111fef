"""Every test of a data source runs twice: with its samples held in memory, and left in files."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True, params=["held", "stored"])
def held_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no sample be held in memory the second time."""
    if request.param == "stored":
        monkeypatch.setattr("penstock.datasets._stored.HELD_BYTES", 0)
