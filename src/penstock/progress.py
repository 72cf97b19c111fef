"""How long work tells that it is alive. The library reports; only the command line prints."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Hears of stages and steps."""

    def begin(self, stage: str, note: str = "") -> None:
        """Tell that a stage begins."""

    def step(self, done: int, total: int, note: str = "") -> None:
        """Tell how far the stage has come; ``total`` 0 where it isn't known."""

    def end(self, note: str = "") -> None:
        """Tell that the stage ended, and with what."""


class Silent:
    """Say nothing."""

    def begin(self, stage: str, note: str = "") -> None:
        """Ignore it."""

    def step(self, done: int, total: int, note: str = "") -> None:
        """Ignore it."""

    def end(self, note: str = "") -> None:
        """Ignore it."""


SILENT = Silent()
