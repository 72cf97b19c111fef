"""The cache, the build folder and scratch folders: the only module that writes files.

Writes are atomic (a temporary file in the same folder, then a rename), so a killed process leaves no half file.
Cache entries are whole folders with a manifest of digests, checked at every read: a damaged one is dropped and redone.
Two processes may share a cache: whoever renames second finds the entry there and drops its own copy.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypeVar

from penstock import ledger
from penstock.errors import InputError, StoreError
from penstock.jsonable import Json, dumps, from_json
from penstock.record import Record
from penstock.variant import ModelFile

T = TypeVar("T")


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, as hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def digest_of(value: object) -> str:
    """Return the SHA-256 of a value's canonical JSON, as hex."""
    return hashlib.sha256(dumps(value).encode()).hexdigest()


@contextlib.contextmanager
def explained(path: Path | str) -> Iterator[None]:
    """Turn the operating system's errors about ``path`` into a ``StoreError`` that says what to do."""
    try:
        yield
    except OSError as error:
        named = str(error.filename or path)
        where = str(path) if named.endswith(".part") else named  # a temporary file's name says nothing to a user
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            do = "free some space, then give the same command again: it goes on where it stopped"
            raise StoreError("disk-full", "the disk is full", where=where, do=do) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StoreError(
                "not-writable", "no permission to write here", where=where, do="choose another folder with -o"
            ) from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
            raise StoreError(
                "not-a-folder", f"{os.strerror(error.errno or 0)}", where=where, do="choose another path with -o"
            ) from error
        what = os.strerror(error.errno) if error.errno else str(error)
        raise StoreError("file-error", what, where=where, do="choose another path, for example with -o") from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON, whole or not at all."""
    write_bytes(path, (dumps(value, indent=2) + "\n").encode())


def append_line(path: Path, text: str, longest: int) -> None:
    """Add a line to a file that nothing depends on; cut it to its newer half beyond ``longest`` bytes.

    What goes wrong is let be. Lines of two processes don't mix: each is one write.
    """
    with contextlib.suppress(OSError, StoreError):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > longest:
            lines = path.read_bytes().splitlines(keepends=True)
            write_bytes(path, b"".join(lines[len(lines) // 2 :]))
        with path.open("ab", buffering=0) as file:
            file.write(text.encode() + b"\n")


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's bytes, whole or not at all."""
    with explained(source), source.open("rb") as data:
        _copy_open(data, target)


def _copy_open(data: IO[bytes], target: Path) -> None:
    with explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
        try:
            with os.fdopen(handle, "wb") as out:
                shutil.copyfileobj(data, out, 1 << 20)
            os.chmod(name, 0o644)
            os.replace(name, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise


def copy_plain(link: Path, most_bytes: int) -> str:
    """Put a copy of what a link leads to in its place, if that is a plain file; else return the reason against it."""
    try:
        # not blocking: a link may lead to a pipe that nobody writes to
        handle = os.open(link, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        return f"it can't be opened: {os.strerror(error.errno or 0)}"
    try:
        info = os.fstat(handle)
        if not stat.S_ISREG(info.st_mode):
            return "it is not a plain file"
        if info.st_size > most_bytes:
            return f"it has {info.st_size:,} bytes, {most_bytes:,} are allowed"
        with os.fdopen(handle, "rb", closefd=False) as data:
            _copy_open(data, link)
    finally:
        os.close(handle)
    return ""


def scratch_home() -> Path:
    """Return the system's temporary folder, where scratch folders are made."""
    return Path(tempfile.gettempdir())


@contextlib.contextmanager
def scratch(parent: Path | None = None) -> Iterator[Path]:
    """Give a folder of one's own that is gone afterwards, below ``parent`` or the system's temporary folder."""
    if parent is not None:
        with explained(parent):
            parent.mkdir(parents=True, exist_ok=True)
    with explained(parent or "the temporary folder"):
        folder = Path(tempfile.mkdtemp(prefix="penstock-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path beside ``path`` to write to: it takes its place when the block ends well, else it is gone."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=f".part{path.suffix}")
        os.close(handle)
    try:
        yield Path(name)
        with explained(path):
            os.chmod(name, 0o644)
            os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


@contextlib.contextmanager
def resuming(path: Path) -> Iterator[IO[bytes]]:
    """Open ``path``'s part file, for reading and appending, for a long write such as a download.

    The part takes the place of ``path`` when the block ends well; when it raises, the part stays for the next try.
    Raises ``StoreError`` where another process is writing it.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        with part.open("a+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                ours = part.exists() and os.path.samestat(part.stat(), os.fstat(file.fileno()))
            except BlockingIOError:
                ours = False
            if not ours:  # or the other one finished and renamed it between our open and our lock
                raise StoreError(
                    "file-in-use", "another process is writing this file", where=str(part), do="wait for it to end"
                )
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(part, path)


def list_files(folder: Path) -> tuple[ModelFile, ...]:
    """List a folder's files, sorted by path, with digests and sizes."""
    found = sorted(p for p in folder.rglob("*") if p.is_file())
    return tuple(ModelFile(str(p.relative_to(folder)), file_digest(p), p.stat().st_size) for p in found)


def default_cache() -> Path:
    """Return the cache folder: ``PENSTOCK_CACHE``, else ``penstock`` below the user's cache folder."""
    if named := os.environ.get("PENSTOCK_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "penstock"


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
            entry = from_json(CacheEntry, json.loads((folder / "entry.json").read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
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
            write_json(work / "entry.json", entry)
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


class BuildFolder:
    """One build's output folder: the ledger, the models, the records, the blobs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock: IO[bytes] | None = None

    def open(self) -> None:
        """Create the folder, or take up an earlier build's; hold its lock until :meth:`close`.

        Raises ``StoreError`` where it can't be written, holds something that is no build, or another build runs there.
        """
        with explained(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            present = [p.name for p in self.root.iterdir() if not p.name.startswith(".")]
            if present and not self.ledger_path.exists():
                raise StoreError(
                    "not-a-build-folder",
                    f"the folder is not empty and holds no build (there is {sorted(present)[0]!r})",
                    where=str(self.root),
                    do="give a new or an empty folder with -o",
                )
            lock = (self.root / ".lock").open("wb")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                lock.close()
                raise StoreError(
                    "folder-in-use",
                    "another build is running in this folder",
                    where=str(self.root),
                    do="wait for it, or build into another folder with -o",
                ) from error
            self._lock = lock
        for part in self.root.rglob(".*.part"):  # of a build that was killed while it wrote; the lock says it is gone
            with contextlib.suppress(OSError):
                part.unlink()
        if not self.ledger_path.exists():
            self.cut_ledger(0)  # from here on the folder is known for a build's

    def close(self) -> None:
        """Release the folder; one that got nothing but its header is removed again."""
        if self._lock is None:
            return
        with contextlib.suppress(OSError):
            if sorted(p.name for p in self.root.iterdir()) == [".lock", "ledger.jsonl"] and not self.read_ledger():
                self.ledger_path.unlink()
                (self.root / ".lock").unlink()
                self.root.rmdir()
        self._lock.close()
        self._lock = None

    @property
    def ledger_path(self) -> Path:
        """Where the ledger lies."""
        return self.root / "ledger.jsonl"

    def read_ledger(self) -> list[ledger.Entry]:
        """Read all whole entries; an absent ledger is empty. Raises ``InputError`` on a broken one."""
        try:
            text = self.ledger_path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        except OSError as error:
            what = f"here is no build: {error.strerror}"
            do = "give the output folder of penstock build"
            raise InputError("no-build", what, where=str(self.root), do=do) from error
        except UnicodeDecodeError as error:
            raise InputError("bad-ledger", f"the ledger is not text: {error}", where=str(self.ledger_path)) from error
        return ledger.parse(text, str(self.ledger_path))

    def cut_ledger(self, entries: int) -> None:
        """Keep the header and the first ``entries`` lines of the ledger as they are, and drop what follows."""
        try:
            before = self.ledger_path.read_bytes()
        except FileNotFoundError:
            before = b""
        lines = before.split(b"\n")[1 : entries + 1]
        kept = b"\n".join([ledger.header().strip().encode(), *lines]) + b"\n"
        if kept != before:
            write_bytes(self.ledger_path, kept)

    def append(self, entry: ledger.Entry) -> None:
        """Add one entry to the ledger; a record is also written by itself, readable, to ``records/<stage>/``."""
        if isinstance(entry, Record):
            role = f".{entry.inputs['role']}" if entry.stage == "evaluate" else ""
            write_json(self.root / "records" / entry.stage / f"{entry.subject}{role}.json", entry)
        with explained(self.ledger_path), self.ledger_path.open("ab") as file:
            file.write(ledger.line(entry, time.time()).encode())

    def adopt(self, name: str, source: Path, files: tuple[ModelFile, ...]) -> Path:
        """Copy a variant's files to ``models/<name>`` unless they are whole there; return the folder."""
        folder = self.root / "models" / name
        kept = {file.path for file in files}
        if folder.is_dir():
            for stale in [p for p in folder.rglob("*") if p.is_file() and str(p.relative_to(folder)) not in kept]:
                stale.unlink()
        for file in files:
            target = folder / file.path
            if not (target.is_file() and file_digest(target) == file.sha256):
                copy_file(source / file.path, target)
        return folder

    def blob(self, data: bytes) -> str:
        """Keep bytes under their SHA-256; return it."""
        sha = hashlib.sha256(data).hexdigest()
        path = self.root / "blobs" / sha
        if not path.exists():
            write_bytes(path, data)
        return sha
