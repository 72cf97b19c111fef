"""What a build would do: which steps are done, which come from the cache, which will run; nothing is written.

The pipeline itself is run over a folder that can't be written, a cache that only gives, and a journal that only
compares, so that plan and build can't disagree. Where a step has to run, what depends on its result isn't known before.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from penstock import history, pipeline, precheck, preflight, reproduction, store, transforms
from penstock.build_settings import BuildSettings
from penstock.errors import PenstockError, StoreError, UsageError
from penstock.journal import Journal
from penstock.ledger import Append, Done, Entry
from penstock.progress import SILENT, Progress
from penstock.store import BuildFolder, Cache, CacheEntry, Made
from penstock.variant import ModelFile

State = Literal["done", "cached", "will run"]
STEPS = ("export", "trial", "optimize", "quantize", "place", "golden", "verify", "evaluate", "bench", "select")


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a build: whether it is done already, and how many seconds it took last time (``None``: not known)."""

    name: str
    state: State
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps in order, the settings that differ from the folder's earlier build, and the seconds that will pass."""

    steps: tuple[Step, ...]
    changed: tuple[str, ...]
    seconds: float | None  # of what will run, where all of it is known


class _WouldRun(Exception):  # noqa: N818 (named for what happened)
    """A transform isn't in the cache."""


class _Folder(BuildFolder):
    """A build's folder that is only read."""

    def open(self) -> None:
        if self.root.exists() and not self.root.is_dir():
            raise StoreError(
                "not-a-folder", "this is no folder", where=str(self.root), do="choose another path with -o"
            )

    def close(self) -> None:
        pass

    def append(self, entry: Entry) -> None:
        pass

    def cut_ledger(self, entries: int) -> None:
        pass

    def _restore(self, path: Path, text: str) -> None:
        pass

    def adopt(self, name: str, source: Path, files: tuple[ModelFile, ...]) -> Path:
        return source

    def blob(self, data: bytes) -> str:
        return hashlib.sha256(data).hexdigest()


class _Cache(Cache):
    """A cache that only gives."""

    def put(self, key: str, make: Callable[[Path], Made]) -> CacheEntry:
        raise _WouldRun(key)


class _Journal(Journal):
    """A journal that compares keys and runs nothing."""

    def __init__(self, folder: BuildFolder) -> None:
        super().__init__(folder)
        self.met: list[str] = []

    def step(
        self,
        name: str,
        inputs: object,
        run: Callable[[Append], None],
        whole: Callable[[list[Entry]], bool] = lambda entries: True,
    ) -> list[Entry]:
        self.met.append(name)
        if (taken := self._take_over(Done(name, store.digest_of(inputs)), whole)) is not None:
            return taken
        self._diverged = True
        return []


class _Planned(pipeline.Build):
    """A build that leaves no lock."""

    def write_lock(self, exported: transforms.Transformed) -> None:
        pass


def plan(settings: BuildSettings, output: Path, *, cache: Path | None = None, progress: Progress = SILENT) -> Plan:
    """Tell what a build of ``settings`` into ``output`` would do. Opens the data set, and reads source and cache.

    Raises what the build would raise for settings and inputs that are wrong.
    """
    preflight.check(settings)
    folder, kept = _Folder(output), _Cache(cache or store.default_cache())
    folder.open()
    journal = _Journal(folder)
    build = _Planned(settings, folder, kept, progress, journal)
    with contextlib.suppress(_WouldRun), precheck.limits(settings.check):
        try:
            build.run()
        except (PenstockError, OSError, ValueError, KeyError, IndexError, StopIteration):
            if not journal.met or journal.met == journal.resumed:
                raise  # nothing was left out yet, so the build would end the same way
    cached = {step for step, hit in build.transformed.items() if hit}
    known = history.recall(kept.root, history.key(settings.source))
    steps = []
    for name in STEPS:
        if name in journal.met or name not in _left_out(settings, journal, cached):
            state: State = "done" if name in journal.resumed else "cached" if name in cached else "will run"
            steps.append(Step(name, state, known.get(name)))
    ahead = [step.seconds for step in steps if step.state == "will run"]
    weighty = [step for step in steps if step.state == "will run" and step.name not in ("place", "select")]
    total = sum(seconds or 0.0 for seconds in ahead) if all(s.seconds is not None for s in weighty) else None
    return Plan(tuple(steps), _changed(settings, output), total)


def _left_out(settings: BuildSettings, journal: _Journal, cached: set[str]) -> set[str]:
    """Name the steps that this build doesn't have."""
    out = set()
    if not settings.quantize.quantize:
        out.add("quantize")
    if not settings.data.data and not preflight.default_data(settings.source):
        out.add("evaluate")
    if not settings.source.endswith(".onnx"):
        out.add("trial")
    return out


def _changed(settings: BuildSettings, output: Path) -> tuple[str, ...]:
    lock = output / "penstock.lock.toml"
    if not lock.is_file():
        return ()
    try:
        before = reproduction.settings_of(lock)
    except UsageError:
        return ()
    now = reproduction.flat(settings.to_toml())
    resolved = ("export.opset", "export.exporter")  # the lock holds what was chosen for them
    return tuple(
        name for name in dict.fromkeys([*before, *now]) if name not in resolved and before.get(name) != now.get(name)
    )


def estimate(settings: BuildSettings, cache: Path | None) -> float | None:
    """Return the seconds that the steps of this source took the last time they ran, or ``None``."""
    known: Mapping[str, float] = history.recall(cache or store.default_cache(), history.key(settings.source))
    return sum(known.values()) if "bench" in known else None
