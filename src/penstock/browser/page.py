"""A page in a browser of its own: asked one thing after the other, and given up when it is gone or takes too long."""

from __future__ import annotations

import queue
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, cast

from penstock import frames
from penstock.browser.chromium import Browser
from penstock.browser.server import PageServer
from penstock.errors import InputError
from penstock.jsonable import Json
from penstock.worker import WorkerCrash, WorkerTimeout

if TYPE_CHECKING:
    import numpy as np

HERE = Path(__file__).parent
POLL_S = 0.1
GRACE_S = 0.5  # for the browser's own end to be seen, when its page is gone
DO = "run this model on another backend"


class Refused(Exception):  # noqa: N818  # the page's answer, not yet an error for a user
    """The page answered with an error; the page itself lives on."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the page answered, and what ONNX Runtime printed meanwhile."""

    told: Json
    arrays: list[np.ndarray]
    log: list[str]


class Page:
    """The page, its server and its browser; a page that is gone stays gone."""

    def __init__(self, name: str, browser: str, files: Mapping[str, Path], flags: Sequence[str]) -> None:
        """Start all three; ``name`` is what messages call it, ``files`` are served beside the page's own."""
        self._name, self._gone, self._count = name, "", 0
        self._server = PageServer({"": HERE / "page.html", "page.js": HERE / "page.js", **files})
        try:
            self._browser = Browser(browser, self._server.url, flags)
        except BaseException:
            self._server.close()
            raise

    def serve(self, files: Mapping[str, Path]) -> None:
        """Serve other files beside the page's own: those of the next model."""
        self._server.files.update(files)

    @property
    def browser(self) -> Browser:
        """The browser."""
        return self._browser

    def ask(self, do: str, seconds: float, told: Mapping[str, Json], arrays: Sequence[np.ndarray] = ()) -> Answer:
        """Let the page do something, and wait so long. Raises ``Refused``, ``WorkerTimeout`` or ``WorkerCrash``."""
        if self._gone:
            raise WorkerCrash("worker-crash", f"{self._name} is gone: {self._gone}", do=DO)
        self._count += 1
        try:
            self._server.commands.put(frames.packed({"do": do, "id": self._count, **told}, arrays))
            return self._answer(time.monotonic() + seconds, seconds)
        except (InputError, Refused):
            raise
        except BaseException:  # Ctrl-C: the answer to this would be taken for that to the next
            self._end("its work was interrupted")
            raise

    def _answer(self, deadline: float, seconds: float) -> Answer:
        while True:
            try:
                kind, data = self._server.events.get(timeout=POLL_S)
            except queue.Empty:
                if how := self._browser.ended():
                    self._crashed(how)
                if time.monotonic() > deadline:
                    self._end(f"it took more than {seconds:g} s and was stopped")
                    do = f"{DO}; if it is only slow, raise [check] session_seconds"
                    raise WorkerTimeout("worker-timeout", f"{self._name}: {self._gone}", do=do) from None
                continue
            if kind == "gone":
                self._lost()
            told, arrays = frames.of_bytes(data)
            found = cast("dict[str, Json]", told)
            if kind == "stray":
                self._crashed(f"an error in the page: {one_line(str(found['message']))}")
            if found["id"] != self._count:
                continue
            if error := cast("dict[str, Json] | None", found.get("error")):
                raise Refused(str(error["message"]))
            return Answer(found.get("result"), arrays, cast("list[str]", found["log"]))

    def _lost(self) -> NoReturn:
        """Say what ended the page: the whole browser, or its process alone."""
        deadline = time.monotonic() + GRACE_S
        while not (how := self._browser.ended()) and time.monotonic() < deadline:
            time.sleep(POLL_S / 10)
        self._crashed(how or "the page's process died: it was killed, or took too much memory")

    def _crashed(self, how: str) -> NoReturn:
        self._end(how)
        raise WorkerCrash("worker-crash", f"{self._name}: {how}", do=DO)

    def _end(self, how: str) -> None:
        self._gone = self._gone or how
        self._browser.close()  # first: a page that lives would ask the server on and on
        self._server.close()

    def close(self) -> None:
        """End the browser and the server; twice is once."""
        self._end("it was closed")


def one_line(text: str, limit: int = 400) -> str:
    """Return a text of several lines as one."""
    return " ".join(text.split())[:limit]
