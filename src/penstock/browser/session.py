"""A session of ONNX Runtime Web in a page: what a backend for a browser returns."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from penstock import asked, environment, graph, kept, npm, precheck
from penstock.backends import Loadable, NodeTime, _profile
from penstock.browser import chromium
from penstock.browser.page import DO, Page, Refused, one_line
from penstock.deployment import Deployment
from penstock.errors import InputError, MissingError
from penstock.jsonable import Json
from penstock.rehearsal import PATIENCE
from penstock.worker import WorkerCrash

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

ENVIRONMENT = "onnxruntime-web"
_CPU = "CPUExecutionProvider"
LONGEST = 400  # characters of a message
_PLACED = re.compile(r"placed on \[(\w+)\]\. Number of nodes: (\d+)")
_NODE = re.compile(r"VerifyEachNodeIsAssignedToAnEp\]\s+(\S+) \((.*)\)")
_PROLOGUE = re.compile(
    r"Can't create a session\.|failed to call OrtRun\(\)\.|ERROR_CODE: \d+, ERROR_MESSAGE:|Fatal error:"
)
_PLAIN = "ERROR_CODE:"  # of a message that the runtime meant to give
_SOURCE = re.compile(r"^/\S+:\d+ [^(]*\([^()]*\)(?: const)? ")  # a place in its own source, and the function there
_NO_MEMORY = ("bad_alloc", "out of memory", "Array buffer allocation failed", "Aborted(OOM)", "memory access out of",
              "Integer overflow")  # fmt: skip  # the last one is of a size in bytes, which has 32 bits there


@dataclass(frozen=True, slots=True)
class Runtime:
    """A build of ONNX Runtime Web: its provider and its two files, and how it is called in messages."""

    title: str
    provider: str
    script: str
    binary: str


def available() -> str:
    """Return "" where the runtime's files and a browser are there, else the line that installs what isn't."""
    return environment.problem(ENVIRONMENT) or chromium.problem()


def facts() -> dict[str, Json]:
    """Return the versions of ONNX Runtime Web and of the browser."""
    found = environment.needed(ENVIRONMENT, "ONNX Runtime Web")
    browser = chromium.needed("ONNX Runtime Web")
    return {"version": found.packages[ENVIRONMENT], "browser": browser, "browser_version": chromium.version(browser)}


def start(runtime: Runtime, model: Loadable, deployment: Deployment, flags: Sequence[str]) -> WebPage:
    """Start a browser with the runtime in its page, which has loaded no model yet. Raises ``MissingError``."""
    found = environment.needed(ENVIRONMENT, f"the deployment {deployment.name}")
    browser = chromium.needed(f"the deployment {deployment.name}")
    pinned = npm.read(environment.PINNED / f"{ENVIRONMENT}.toml")
    if bad := npm.damaged(pinned, found.folder, (runtime.script, runtime.binary)):
        what = f"the environment {ENVIRONMENT!r} is damaged: {bad} is not the file that was fetched"
        do = f"penstock env remove {ENVIRONMENT}, then: penstock env add {ENVIRONMENT}"
        raise MissingError("environment-missing", what, do=do)
    assert model.path is not None
    loaded = graph.load(model.path)
    external = _external(loaded, model.path.parent)
    files = {f"ort/{name}": found.folder / name for name in (runtime.script, runtime.binary)}
    files |= {"model": model.path, **{f"external/{at}": path for at, path in enumerate(external.values())}}
    key = ("web", runtime, browser, *flags, deployment.threads)
    waiting = cast("Page | None", kept.take(key))
    if waiting is not None:
        waiting.serve(files)
    page = waiting or Page(runtime.title, browser, files, flags)
    held = WebPage(runtime, page, key, model.path, [*external], loaded)
    try:
        if waiting is None:
            held.ask("setup", script=f"ort/{runtime.script}", threads=deployment.threads)
    except BaseException:
        page.close()
        raise
    return held


def _external(model: ir.Model, folder: Path) -> dict[str, Path]:
    """Return the files that the model's weights lie in, by the names that it has for them."""
    import onnx_ir as ir

    held = [value.const_value for one in model.graphs() for value in one.initializers.values()]
    names = {str(tensor.location) for tensor in held if isinstance(tensor, ir.ExternalTensor)}
    return {name: folder / name for name in sorted(names)}


class WebPage:
    """A page with the runtime, on its way to a session, and while there is one."""

    def __init__(
        self, runtime: Runtime, page: Page, key: Hashable, path: Path, external: Sequence[str], model: ir.Model
    ) -> None:  # fmt: skip
        self.page, self._runtime, self._key, self._path = page, runtime, key, path
        self.signature, self.sizes = graph.signature(model), asked.of_sizes(model)
        self._sound = True
        self._external: list[Json] = [{"path": name, "url": f"external/{at}"} for at, name in enumerate(external)]
        self._seconds = PATIENCE * precheck.settings().session_seconds

    def ask(self, do: str, **more: Json) -> tuple[Json, list[str]]:
        """Ask for a step on the way to a session. Raises ``InputError``."""
        try:
            answer = self.page.ask(do, self._seconds, more)
        except Refused as error:
            self.refused(error)
            what = f"{self._runtime.title} can't load the model: {cause(str(error))}"
            do = "look for the operator or the opset that it names; `penstock inspect` lists both"
            if _is_of_memory(str(error)):
                do = DO
            raise InputError("runtime-refuses", what, where=str(self._path), do=do) from error
        return answer.told, answer.log

    def refused(self, error: Refused) -> None:
        """Note what the page refused: after all but a plain answer of the runtime, its memory may be spoilt."""
        self._sound = self._sound and _PLAIN in str(error)

    def close(self) -> None:
        """End the browser, or keep it for the next model (:mod:`penstock.kept`)."""
        try:
            if self._sound and kept.wanted(self._key):
                self.page.ask("release", self._seconds, {})
        except (Refused, InputError):
            self._sound = False
        if not (self._sound and kept.give(self._key, self.page)):
            self.page.close()

    def load(self, deployment: Deployment, provider: Json, told: Mapping[str, Json], logged: str) -> WebSession:
        """Make the session of one provider, with exactly the threads asked for; ``told`` is what is known of it.

        The provider goes by the name ``logged`` in the session's log.

        Raises ``InputError`` where the runtime refuses the model, or would run it with another number of threads.
        """
        try:
            wanted: dict[str, Json] = {"external": self._external, "options": {"executionProviders": [provider]}}
            found, _ = self.ask("load", **wanted)
            _same_threads(cast("dict[str, int]", found), deployment.threads, self._runtime.title)
        except BaseException:
            self.close()
            raise
        told = {"precision": "as written", **told, "threads": deployment.threads}
        return WebSession(self, self._runtime.title, wanted, told, logged, deployment.precision == "int8")


class WebSession:
    """A loaded model in a page."""

    def __init__(
        self, held: WebPage, title: str, wanted: Mapping[str, Json], told: Mapping[str, Json], provider: str,
        counts: bool,
    ) -> None:  # fmt: skip
        """Hold it; ``counts`` says that it is of integers, whose layers are counted."""
        self._held, self._page, self._title, self._wanted, self._told = held, held.page, title, wanted, told
        self._provider, self._counts = provider, counts
        self._placed: dict[str, Json] | None = None
        self._last: Mapping[str, np.ndarray] | None = None
        self._closed = False
        self._seconds = precheck.settings().session_seconds
        self._process_id = held.page.browser.renderer()

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run one batch."""
        self._last = feeds
        return self._ask("run", self._seconds, feeds)[1]

    def timed(self, feeds: Mapping[str, np.ndarray], calls: int) -> list[int]:
        """Time so many runs in the page, in nanoseconds."""
        spent, _ = self._ask("time", self._seconds * max(calls, 1), feeds, calls=calls)
        return [round(one * 1e6) for one in cast("list[float]", spent)]

    def nodes(self, feeds: Mapping[str, np.ndarray], runs: int) -> list[NodeTime]:
        """Time the nodes of a second session, which writes its profile to the page's console.

        None on a GPU: the times there are those that it takes to hand the nodes over.
        """
        if self._provider != _CPU:
            return []
        found = self._events(feeds, runs + 1)
        if sum(event.get("name") == "model_run" for event in found) < runs + 1:  # the page kept no more lines
            return []
        return _profile.of_events(found, runs)

    def _events(self, feeds: Mapping[str, np.ndarray], runs: int) -> list[dict[str, Any]]:
        seconds = PATIENCE * self._seconds + self._seconds * runs
        told: dict[str, Json] = {**self._wanted, "names": [*feeds], "calls": runs}
        found: list[dict[str, Any]] = []
        try:
            log = self._page.ask("profile", seconds, told, [*feeds.values()]).log
        except Refused as error:  # there may be no memory for another session
            self._held.refused(error)
            return []
        for line in log:
            with contextlib.suppress(ValueError):  # what else is printed
                event = json.loads(line.strip().rstrip(","))
                found += [event] if isinstance(event, dict) else []
        return found

    def _ask(
        self, do: str, seconds: float, feeds: Mapping[str, np.ndarray], **more: Json
    ) -> tuple[Json, list[np.ndarray]]:  # fmt: skip
        if self._closed:
            raise WorkerCrash("worker-crash", f"{self._title} is gone: it was closed", do=DO)
        try:
            answer = self._page.ask(do, seconds, {"names": [*feeds], **more}, [*feeds.values()])
        except Refused as error:
            self._held.refused(error)
            raise InputError("run-failed", f"{self._title} can't run the model: {cause(str(error))}") from error
        return answer.told, answer.arrays

    @property
    def process_id(self) -> int:
        """The process that holds the page, and the model."""
        return self._process_id

    def actual(self) -> Mapping[str, Json]:
        """Tell what runs, and where a session of the same model, made anew for that, puts its nodes.

        A model of which the browser's memory holds no second one goes without. Of int8 it tells how many of the layers
        that multiply ran on integers, from a profile of one run.
        """
        if self._placed is None:
            try:
                log = self._page.ask("placement", PATIENCE * self._seconds, self._wanted).log
                self._placed = placement(log, self._provider, self._held.sizes)
                if self._counts and self._last is not None:
                    self._placed |= {"weighted_in": {**_profile.weighted_in(self._events(self._last, 1))}}
            except Refused as error:
                self._held.refused(error)
                self._placed = {}
        return {**self._told, **self._placed}

    def close(self) -> None:
        """End the browser, or keep it for the next model; twice is once."""
        if not self._closed:
            self._closed = True
            self._held.close()


def _same_threads(found: Mapping[str, int], asked: int, title: str) -> None:
    """Hold what runs against what was asked for: the runtime drops to one thread with a word on its console alone."""
    runs = found["threads"] if found["isolated"] and found["workers"] >= found["threads"] - 1 else 1
    if runs != asked:
        what = f"{title} runs with {runs} threads, {asked} were asked for"
        raise InputError("threads-differ", what, do="ask for fewer threads, or for another backend")


def placement(log: Sequence[str], provider: str, sizes: Collection[str]) -> dict[str, Json]:
    """Return how many nodes each provider got, as the session's log tells, and which are elsewhere."""
    counts: dict[str, Json] = {}
    nodes: list[tuple[str, str, str]] = []
    where = ""
    for line in log:
        if found := _PLACED.search(line):
            where = found[1]
            counts[where] = int(found[2])
        elif where and (node := _NODE.search(line)):
            nodes.append((where, node[2], node[1]))
    # where one provider has all, they aren't listed
    return {**asked.placed(nodes, provider, sizes), "nodes_by_provider": counts}


def _is_of_memory(message: str) -> bool:
    return any(sign in message for sign in _NO_MEMORY)


def cause(message: str) -> str:
    """Return the runtime's message in one line, without what its wrapper says around it."""
    text = _SOURCE.sub("", one_line(_PROLOGUE.sub("", message), limit=1000))[:LONGEST]
    if _is_of_memory(text):
        return f"the browser's memory doesn't hold it, which ends at 4 GB ({text})"
    return text
