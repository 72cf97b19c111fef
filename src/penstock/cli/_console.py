"""Where a command writes: the result on stdout, progress on stderr, a JSON object instead of tables if asked."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import click

from penstock.jsonable import dumps
from penstock.progress import SILENT, Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

SCHEMA = 1
_RAW = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}  # categories of characters that steer a terminal or can't be shown


def stdout() -> Console:
    """Return the console for results; wide enough for tables when it isn't a terminal."""
    from rich.console import Console
    from rich.text import Text

    class Printable(Console):
        """A console that no text of a model's can take over."""

        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(printable(text, "\n"), **options)

    width = None if sys.stdout.isatty() else 120
    return Printable(width=width, highlight=False, markup=False, color_system=_colours())


def _colours() -> Literal["auto"] | None:
    """Return what a console is told of colours: none, nor other styles, where ``NO_COLOR`` is set to anything."""
    return None if os.environ.get("NO_COLOR") else "auto"


def printable(text: str, keep: str = "", limit: int = 0) -> str:
    """Return a text with its control and formatting characters written out, and cut at ``limit`` characters if not 0.

    Names from a file may hold terminal sequences, or turn the direction of the line around.
    """
    cut = f"{text[: limit - 1]}…" if limit and len(text) > limit else text
    if cut.isascii() and cut.isprintable():
        return cut
    return "".join(
        letter if letter in keep or unicodedata.category(letter) not in _RAW else _written(letter) for letter in cut
    )


def _written(letter: str) -> str:
    return letter.encode("ascii", "backslashreplace").decode() if ord(letter) > 126 else f"\\x{ord(letter):02x}"


def emit(command: str, value: object) -> None:
    """Print the one JSON object of a command."""
    click.echo(dumps({"schema": SCHEMA, "command": command, "result": value}, indent=2))


@contextlib.contextmanager
def progress(quiet: bool, *, every_step: bool = False) -> Iterator[Progress]:
    """Give a progress that shows on stderr: a live line in a terminal, one line a stage elsewhere.

    ``every_step`` adds a line for every step where there is no terminal, for work of an hour with steps of a minute.
    """
    if quiet:
        yield SILENT
        return
    shown = _Live() if sys.stderr.isatty() else _Lines(every_step)
    try:
        yield shown
    finally:
        shown.close()


class _Lines:
    """One line per stage, when it ends."""

    def __init__(self, every_step: bool = False) -> None:
        self._stage = ""
        self._began = 0.0
        self._every_step = every_step

    def begin(self, stage: str, note: str = "") -> None:
        self._stage, self._began = stage, time.monotonic()

    def step(self, done: int, total: int, note: str = "") -> None:
        if self._every_step:
            click.echo(f"{self._stage:<9} {done:,}/{total:,} {note}", err=True)

    def end(self, note: str = "") -> None:
        took = time.monotonic() - self._began
        click.echo(f"{self._stage:<9} {note}  ({took:.1f} s)", err=True)

    def close(self) -> None:
        """Nothing is open."""


class _Live(_Lines):
    """A spinner with the current step, and a line for every stage that ended."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False, color_system=_colours())
        self._status: Status | None = None
        self._heard = 0.0

    def begin(self, stage: str, note: str = "") -> None:
        super().begin(stage, note)
        self._status = self._console.status(f"{stage:<9} {note}")
        self._status.start()

    def step(self, done: int, total: int, note: str = "") -> None:
        if note == "rounds":  # the spinner's own thread would be in the timed calls
            self.close()
        now = time.monotonic()
        if self._status is not None and now - self._heard > 0.1:  # drawing costs time that a bench would see
            self._heard = now
            share = f"{done:,}/{total:,} " if total else f"{done:,} "
            self._status.update(f"{self._stage:<9} {share}{note}")

    def end(self, note: str = "") -> None:
        self.close()
        super().end(note)

    def close(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None
