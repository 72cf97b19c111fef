"""The cache: content-addressed results of transforms, checked at every read."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from penstock.jsonable import Json, from_json, to_json
from penstock.store.files import digest_of, explained, file_digest, list_files, scratch, write_json
from penstock.variant import ModelFile


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """A folder of files made by one transform, and what the transform said and measured of them."""

    files: tuple[ModelFile, ...]
    facts: Mapping[str, Json]
    measured: Mapping[str, Json]
    reads: Mapping[str, str]  # absolute path → SHA-256 of what the transform read beside its declared inputs


@dataclass(frozen=True, slots=True)
class Made:
    """What a transform says of the files that it left: facts, measured figures, and what it read beside its inputs."""

    facts: Mapping[str, Json]
    measured: Mapping[str, Json] = field(default_factory=dict)
    reads: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Kept:
    """One entry of the cache: its key, its size, and when it was last used (seconds since the epoch)."""

    key: str
    size_bytes: int
    used_at: float


IN_USE_S = 3600.0
LEFTOVER_S = 86_400.0


class Cache:
    """Content-addressed results of transforms, below one root folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, key: str) -> Path:
        """Return where the files of ``key`` lie."""
        return self.root / "transforms" / key[:2] / key

    def get(self, key: str) -> CacheEntry | None:
        """Return the entry of ``key`` if it is whole and what it read is unchanged; drop a damaged one."""
        folder = self.folder(key)
        try:
            data = json.loads((folder / "entry.json").read_bytes())
            if data["sha256"] != digest_of(data["entry"]):
                raise ValueError("the entry was changed after it was written")
            entry = from_json(CacheEntry, data["entry"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            self._drop(folder)
            return None
        for file in entry.files:
            path = folder / "files" / file.path
            if not path.is_file() or path.stat().st_size != file.size_bytes or file_digest(path) != file.sha256:
                self._drop(folder)
                return None
        for name, digest in entry.reads.items():
            if not Path(name).is_file() or file_digest(Path(name)) != digest:
                return None
        with contextlib.suppress(OSError):
            os.utime(folder / "entry.json")  # the time of its last use, which pruning goes by
        return entry

    def put(self, key: str, make: Callable[[Path], Made]) -> CacheEntry:
        """Run ``make`` in a scratch folder of the cache and keep what it leaves there under ``key``.

        Whatever ``make`` raises goes through, and nothing is kept.
        """
        self._drop_leftovers(time.time())
        with scratch(self.root / "scratch") as work:
            files = work / "files"
            files.mkdir()
            with explained(work):
                made = make(files)
            entry = CacheEntry(list_files(files), made.facts, made.measured, made.reads)
            # the digest is of the entry itself: its facts are taken on trust by every later build
            write_json(work / "entry.json", {"entry": to_json(entry), "sha256": digest_of(entry)})
            target = self.folder(key)
            with explained(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                if target.exists():
                    if (present := self.get(key)) is not None:  # another process was faster
                        return present
                    self._drop(target)
                try:
                    os.rename(work, target)
                except OSError as error:
                    if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                        raise
                else:
                    work.mkdir()  # the scratch folder's own clean-up expects it
        return entry

    def entries(self) -> list[Kept]:
        """List what is kept, the least recently used first."""
        found = []
        for folder in self.root.glob("transforms/*/*"):
            with contextlib.suppress(OSError):  # another process may prune at this moment
                size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
                found.append(Kept(folder.name, size, (folder / "entry.json").stat().st_mtime))
        return sorted(found, key=lambda kept: (kept.used_at, kept.key))

    def prune(self, *, older_than_s: float | None, max_bytes: int | None, dry_run: bool = False) -> list[Kept]:
        """Remove entries, the least recently used first, and return them.

        Those go that were not used for ``older_than_s`` seconds, then as many as it takes to hold ``max_bytes``. One
        used within the last hour stays, whatever the size: a build that runs may be about to read it.
        """
        now = time.time()
        entries = self.entries()
        held = sum(kept.size_bytes for kept in entries)
        gone = []
        for kept in entries:
            age = now - kept.used_at
            stale = older_than_s is not None and age > older_than_s
            surplus = max_bytes is not None and held > max_bytes
            if age > IN_USE_S and (stale or surplus):
                held -= kept.size_bytes
                gone.append(kept)
                if not dry_run:
                    self._drop(self.folder(kept.key))
        if not dry_run:
            self._drop_leftovers(now)
        return gone

    def _drop_leftovers(self, now: float) -> None:
        """Remove scratch folders that a killed process left; a day old, nobody works in them any more."""
        for folder in [*self.root.glob("scratch/penstock-*"), *self.root.glob("dropped-*")]:
            with contextlib.suppress(OSError):
                if now - folder.stat().st_mtime > LEFTOVER_S:
                    shutil.rmtree(folder, ignore_errors=True)

    def _drop(self, folder: Path) -> None:
        with contextlib.suppress(OSError):
            doomed = Path(tempfile.mkdtemp(prefix="dropped-", dir=self.root))
            os.rename(folder, doomed / "entry")
            shutil.rmtree(doomed, ignore_errors=True)
