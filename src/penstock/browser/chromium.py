"""Chromium without a window: found, started in a folder of its own, and ended with all that it started."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil  # noqa: TID251  # to find programs
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, cast

from penstock import store, worker
from penstock.errors import MissingError, StoreError

NAMED = "PENSTOCK_CHROMIUM"
# Debian's /usr/bin/chromium-headless-shell is a shell script that stays between us and the browser
PROGRAMS = (
    "/usr/lib/chromium/chromium-headless-shell", "chromium", "chromium-browser", "google-chrome",
)  # fmt: skip
INSTALL = "apt-get install chromium-headless-shell  # or chromium"
# no window, no first-run work, no call out of this machine; the last one is what really holds
QUIET = (
    "--headless", "--no-first-run", "--no-default-browser-check", "--disable-extensions", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-domain-reliability",
    "--disable-client-side-phishing-detection", "--disable-default-apps", "--disable-quic", "--no-pings",
    "--disable-breakpad", "--disable-crash-reporter", "--metrics-recording-only", "--mute-audio",
    "--password-store=basic", "--use-mock-keychain", "--disable-background-timer-throttling",
    "--disable-renderer-backgrounding", "--disable-backgrounding-occluded-windows",
    "--disable-features=OptimizationHints,MediaRouter,Translate,InterestFeedContentSuggestions",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip
LAST_LINES = 20
LINE_BYTES = 2000
CLOSE_SECONDS = 3.0
VERSION_SECONDS = 20.0


def find() -> str | None:
    """Return the path of the browser: the one that ``PENSTOCK_CHROMIUM`` names, else the first that is there."""
    if named := os.environ.get(NAMED):
        return shutil.which(named)
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


def problem() -> str:
    """Return "" where there is a browser, else what to do."""
    if find() is not None:
        return ""
    if named := os.environ.get(NAMED):
        return f"{NAMED} names {named}, which is no program here"
    return INSTALL


def needed(what: str) -> str:
    """Return the browser's path. Raises ``MissingError``; ``what`` wants it."""
    found = find()
    if found is None:
        raise MissingError("backend-missing", f"{what} needs a Chromium", do=problem())
    return found


@functools.cache
def version(path: str) -> str:
    """Return a browser's version as it tells it itself, "unknown" where it doesn't."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired), store.scratch() as home:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, errors="replace",
                              timeout=VERSION_SECONDS, env=_environ(home))  # fmt: skip
        if words := [word for word in done.stdout.split() if word[0].isdigit()]:
            return words[0]
    return "unknown"


def _environ(home: Path) -> dict[str, str]:
    """Keep what it writes beside its profile in the same folder."""
    return os.environ | dict.fromkeys(("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "TMPDIR"), str(home))


class Browser:
    """A running browser with one page."""

    def __init__(self, path: str, url: str, flags: Sequence[str]) -> None:
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        self._started = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._stack = contextlib.ExitStack()
        self._home = self._stack.enter_context(store.scratch())
        command = [path, *QUIET, *flags, f"--user-data-dir={self._home / 'profile'}", url]
        if os.geteuid() == 0:
            command.insert(1, "--no-sandbox")  # it doesn't start as root with it
        if setpriv := shutil.which("setpriv"):
            command = [setpriv, "--pdeathsig", "KILL", *command]
        self._keeper = threading.Thread(target=self._keep, args=(command,), daemon=True)
        self._keeper.start()
        self._started.wait()
        if self._process is None:
            self.close()
            raise MissingError("backend-missing", f"the browser doesn't start: {' '.join(self._lines)}", do=INSTALL)

    def _keep(self, command: list[str]) -> None:
        """Start the browser, which the system ends together with this thread, and stay until it has ended."""
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                start_new_session=True, env=_environ(self._home),
            )  # fmt: skip
        except OSError as error:
            self._lines.append(str(error))
            return
        finally:
            self._started.set()
        with cast("IO[bytes]", self._process.stdout) as told:
            for line in iter(lambda: told.readline(LINE_BYTES), b""):
                if text := line.decode(errors="replace").strip():
                    self._lines.append(text)
        self._process.wait()

    @property
    def pid(self) -> int:
        """The root of the browser's processes."""
        assert self._process is not None
        return self._process.pid

    def renderer(self) -> int:
        """Return the process that holds the page; the root where it isn't found."""
        held = {pid: _resident(pid) for pid in self._family() if b"--type=renderer" in _command_line(pid)}
        return max(held, key=lambda pid: held[pid]) if held else self.pid

    def _family(self) -> Iterator[int]:
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.getpgid(int(path.name)) == self.pid:
                    yield int(path.name)

    def ended(self) -> str:
        """Say how the browser ended, with its last words; "" while it runs."""
        assert self._process is not None
        code = self._process.poll()
        if code is None:
            return ""
        self._keeper.join(CLOSE_SECONDS)
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        tail = "; its last words: " + " | ".join([*self._lines][-3:])[:600] if self._lines else ""
        return f"the browser {how}{tail}"

    def close(self) -> None:
        """Kill it with all that it started and remove its folder; twice is once."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._keeper.join(CLOSE_SECONDS)
        deadline = time.monotonic() + CLOSE_SECONDS
        while self._home.exists() and time.monotonic() < deadline:  # what was killed may be writing still
            with contextlib.suppress(StoreError):
                store.drop_folder(self._home)
                continue
            time.sleep(0.05)
        self._stack.close()


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _resident(pid: int) -> int:
    return worker.memory(pid)["now"] or 0
