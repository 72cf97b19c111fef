"""One build's output folder: the ledger, the models, the records, the blobs."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from penstock import ledger
from penstock.errors import InputError, StoreError
from penstock.jsonable import Json, dumps, to_json
from penstock.record import Record
from penstock.store.files import copy_file, explained, file_digest, write_bytes, write_json
from penstock.variant import ModelFile


class BuildFolder:
    """One build's output folder: the ledger, the models, the records, the blobs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock: IO[bytes] | None = None
        self._last = ""  # the digest of the ledger's last line, from the time when it is cut to what stands

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
            what = f"the ledger is not text: {error}"
            raise InputError("bad-ledger", what, where=str(self.ledger_path), do=ledger.CURE) from error
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
        self._last = ledger.link(kept.decode(errors="replace").split("\n")[-2])

    def append(self, entry: ledger.Entry) -> None:
        """Add one entry to the ledger; a record is also written by itself, readable, to ``records/<stage>/``."""
        if isinstance(entry, Record):
            write_json(self._record_path(entry), entry)
        with explained(self.ledger_path), self.ledger_path.open("ab") as file:
            text = ledger.line(entry, time.time(), self._last)
            file.write(text.encode())
        self._last = ledger.link(text)

    def mend(self, entries: Iterable[ledger.Entry]) -> bool:
        """Write the records of an earlier step anew where they are gone or changed; tell whether its blobs are whole.

        A blob holds what the ledger doesn't: without it the step has to run again.
        """
        for entry in entries:
            if not isinstance(entry, Record):
                continue
            for sha in _blobs(to_json(entry)):
                blob = self.root / "blobs" / sha
                if not blob.is_file() or file_digest(blob) != sha:
                    return False
            self._restore(self._record_path(entry), dumps(entry, indent=2) + "\n")
        return True

    def _record_path(self, entry: Record) -> Path:
        role = f".{entry.inputs['role']}" if entry.stage == "evaluate" else ""
        return self.root / "records" / entry.stage / f"{entry.subject}{role}.json"

    def _restore(self, path: Path, text: str) -> None:
        if not path.is_file() or path.read_bytes() != text.encode():
            write_bytes(path, text.encode())

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
        if not path.is_file() or file_digest(path) != sha:
            write_bytes(path, data)
        return sha


def _blobs(value: Json) -> Iterator[str]:
    """Yield the digests under the keys of a record that name a blob."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key.endswith("_blob") and isinstance(item, str):
                yield item
            else:
                yield from _blobs(item)
