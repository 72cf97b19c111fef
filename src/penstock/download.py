"""Download one file whose SHA-256 is known: with progress, resumed where it stopped. The only module on the network."""

from __future__ import annotations

import hashlib
import http.client
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO

from penstock import store
from penstock.errors import InputError
from penstock.progress import SILENT, Progress

CHUNK_BYTES = 1 << 18
TIMEOUT_S = 30.0  # without a byte


def fetch(url: str, target: Path, *, sha256: str, size_bytes: int, progress: Progress = SILENT) -> None:
    """Download ``url`` to ``target``; nothing lies there until all bytes are there and have the digest.

    What an interrupted download left in ``target``'s part file is continued. Raises ``InputError`` where the server
    can't be reached, stops early, or sends something else, ``StoreError`` where ``target`` can't be written.
    """
    progress.begin("download", url)
    with store.resuming(target) as file:
        have = file.seek(0, 2)
        if have > size_bytes:
            have = _restart(file)
        if have < size_bytes:
            _transfer(url, file, have, size_bytes, progress)
        found = _digest(file)
        if found != sha256:
            _restart(file)
            raise InputError(
                "wrong-digest",
                f"the download has the SHA-256 {found}, not {sha256}; it was discarded",
                where=url,
                do="try again; if it stays so, something between here and the server changes the file",
            )
    progress.end(f"{size_bytes / 1e6:.1f} MB, SHA-256 as expected")


def _transfer(url: str, file: IO[bytes], have: int, size_bytes: int, progress: Progress) -> None:
    """Append what is missing after ``have`` bytes; start over where the server can't continue."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            if have and not _continues(response, have):
                have = _restart(file)
            while have < size_bytes and (chunk := response.read(min(CHUNK_BYTES, size_bytes - have))):
                _append(file, chunk)
                have += len(chunk)
                progress.step(have, size_bytes, "bytes")
    except _WriteError as error:
        raise error.cause from None
    except urllib.error.HTTPError as error:
        error.close()
        raise _failed(url, f"the server answers {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _failed(url, f"the download stopped after {have} of {size_bytes} bytes: {error}") from error
    if have < size_bytes:
        raise _failed(url, f"the server sent {have} of {size_bytes} bytes")


class _WriteError(Exception):
    """The disk's error, apart from the network's: both are ``OSError``."""

    def __init__(self, cause: OSError) -> None:
        super().__init__()
        self.cause = cause


def _append(file: IO[bytes], chunk: bytes) -> None:
    try:
        file.write(chunk)
    except OSError as error:
        raise _WriteError(error) from error


def _failed(url: str, what: str) -> InputError:
    do = "give the same command again: it goes on where it stopped; or fetch the data yourself and give --data DIR"
    return InputError("download-failed", what, where=url, do=do)


def _continues(response: http.client.HTTPResponse, have: int) -> bool:
    """Tell whether the answer is the rest after ``have`` bytes, not the whole file."""
    start = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return response.status == 206 and start is not None and int(start[1]) == have


def _restart(file: IO[bytes]) -> int:
    file.seek(0)
    return file.truncate(0)


def _digest(file: IO[bytes]) -> str:
    file.flush()
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # IO[bytes] has what it needs
