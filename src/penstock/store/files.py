"""How files are written, copied and read: whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from penstock.errors import StoreError
from penstock.jsonable import dumps
from penstock.variant import ModelFile

SCRATCH = "penstock-scratch-"
JUST_MADE_S = 5.0  # a folder this young may not have its lock yet
FULL_BYTES = 16 << 20  # a disk with less is called full
_swept: set[Path] = set()  # once for each place in a process


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
        named = str(error.filename or _fullest(path, error))
        where = str(path) if named.endswith(".part") else named  # a temporary file's name says nothing to a user
        if error.errno == errno.EFBIG:
            do = "raise `ulimit -f`; --cache or PENSTOCK_CACHE puts the cache elsewhere, -o the results"
            raise StoreError("file-error", "the file is larger than is allowed", where=where, do=do) from error
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


def _fullest(path: Path | str, error: OSError) -> Path | str:
    """Name the place that an error without a file's name is about: on a full disk that may be the temporary folder."""
    if error.errno == errno.ENOSPC and isinstance(path, Path):
        with contextlib.suppress(OSError):
            near = next(folder for folder in (path, *path.parents) if folder.exists())
            if shutil.disk_usage(near).free > FULL_BYTES > shutil.disk_usage(scratch_home()).free:
                return f"the temporary folder {scratch_home()}; TMPDIR names another"
    return path


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


def move_file(source: Path, target: Path) -> None:
    """Give a file of a scratch folder on the same file system its place."""
    with explained(target):
        os.chmod(source, 0o644)
        os.replace(source, target)


def scratch_home() -> Path:
    """Return the system's temporary folder, where scratch folders are made."""
    return Path(tempfile.gettempdir())


@contextlib.contextmanager
def scratch(parent: Path | None = None) -> Iterator[Path]:
    """Give a folder of one's own that is gone afterwards, below ``parent`` or the system's temporary folder."""
    if parent is not None:
        with explained(parent):
            parent.mkdir(parents=True, exist_ok=True)
    home = parent or scratch_home()
    if home not in _swept:
        _swept.add(home)
        sweep(home)
    with explained(parent or "the temporary folder"):
        folder = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=parent))
        handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks; then nothing is swept either
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


class OwnFile(io.FileIO):
    """An open file that is closed with the last object that has it."""

    def __del__(self) -> None:
        """Close it."""
        self.close()


def nameless() -> OwnFile:
    """Open a file in the temporary folder, for writing and reading, that is gone as it is closed.

    Raises ``StoreError``.
    """
    with explained("the temporary folder"):
        handle, name = tempfile.mkstemp(prefix=SCRATCH)
        os.unlink(name)
    return OwnFile(handle, "r+b")


def sweep(home: Path) -> None:
    """Remove scratch folders below ``home`` that a killed process left: whoever works in one holds its lock."""
    for folder in home.glob(f"{SCRATCH}*"):
        with contextlib.suppress(OSError):
            info = folder.lstat()
            if info.st_uid != os.getuid() or time.time() - info.st_ctime < JUST_MADE_S:
                continue
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(handle)


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


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, which is made where there is none, for as long as the block lasts.

    Raises ``StoreError`` where another process holds it.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            what = "another process is at work here"
            raise StoreError("file-in-use", what, where=str(path), do="wait for it to end") from error
        yield
    finally:
        os.close(handle)


def drop_folder(folder: Path) -> None:
    """Remove a folder with all that is in it, if it is there."""
    with explained(folder):
        if folder.is_symlink():
            folder.unlink()
        elif folder.exists():
            shutil.rmtree(folder)


def list_files(folder: Path) -> tuple[ModelFile, ...]:
    """List a folder's files, sorted by path, with digests and sizes."""
    found = sorted(p for p in folder.rglob("*") if p.is_file())
    return tuple(ModelFile(str(p.relative_to(folder)), file_digest(p), p.stat().st_size) for p in found)


def default_cache() -> Path:
    """Return the cache folder: ``PENSTOCK_CACHE``, else ``penstock`` below the user's cache folder."""
    if named := os.environ.get("PENSTOCK_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "penstock"
