"""The server of one page: its files, and the conversation with it.

It listens on this machine alone, on a port of its own, and answers nobody who doesn't know the token in the page's
address. Commands lie in a queue until the page asks for the next; what comes back are events.
"""

from __future__ import annotations

import os
import queue
import secrets
import socketserver
import threading
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Literal, cast

Kind = Literal["answer", "stray", "gone"]
Event = tuple[Kind, bytes]  # stray: an error that no command of ours met; gone: the page's process died
Pieces = Sequence[bytes | memoryview]

MIME = {
    ".html": "text/html; charset=utf-8", ".js": "text/javascript", ".mjs": "text/javascript",
    ".wasm": "application/wasm",  # compiled while it comes only as this
}  # fmt: skip
BYTES = "application/octet-stream"
# the first two isolate the page, without which it has no shared memory, and so no threads
HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; script-src 'self' blob: 'wasm-unsafe-eval'; "
    "worker-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
WAIT_S = 20.0  # that the page waits for a command before it asks anew
POLL_S = 0.5
CHUNK = 1 << 20


class PageServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Serves files by name, as long as it isn't closed; ``events`` has what the page says."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, files: Mapping[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = dict(files)
        self.token = secrets.token_urlsafe(16)
        self.commands: queue.Queue[Pieces] = queue.Queue()
        self.events: queue.Queue[Event] = queue.Queue()
        self.closing = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        """The page's address."""
        return f"http://127.0.0.1:{self.server_address[1]}/{self.token}/"

    def close(self) -> None:
        """Serve no more; twice is once."""
        if not self.closing.is_set():
            self.closing.set()
            self.commands.put(())
            self.shutdown()
            self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Let be what a browser that is being killed does to its connections."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: PageServer

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        name = self._asked()
        if name == "next":
            self._next()
        elif name == "alive":
            self._stay()
        elif (path := self.server.files.get(name or "") if name is not None else None) is not None:
            self._file(path)
        else:
            self._reply(status=404)

    def do_POST(self) -> None:
        name = self._asked()
        length = self.headers.get("Content-Length", "")
        if name not in ("result", "stray") or not length.isdecimal():
            self.close_connection = True  # what it sends isn't read
            self._reply(status=404)
            return
        data = self.rfile.read(int(length))
        # before the reply, behind which the page sends the next one: on another connection that could overtake this
        self.server.events.put(("answer" if name == "result" else "stray", data))
        self._reply()

    def _asked(self) -> str | None:
        """Return the name that is asked for, ``None`` for who doesn't know the token."""
        token, _, name = self.path.lstrip("/").partition("/")
        return name if secrets.compare_digest(token.encode(), self.server.token.encode()) else None

    def _reply(self, pieces: Pieces = (), kind: str = BYTES, status: int = 200, length: int | None = None) -> None:
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(sum(map(len, pieces)) if length is None else length))
        self.end_headers()
        for piece in pieces:
            self.wfile.write(piece)

    def _file(self, path: Path) -> None:
        try:
            file = path.open("rb")
        except OSError:
            self._reply(status=404)
            return
        with file:
            self._reply(kind=MIME.get(path.suffix, BYTES), length=os.fstat(file.fileno()).st_size)
            while data := file.read(CHUNK):
                self.wfile.write(data)

    def _next(self) -> None:
        try:
            pieces = self.server.commands.get(timeout=WAIT_S)
        except queue.Empty:
            pieces = ()
        if self.server.closing.is_set():
            self.server.commands.put(())  # for whoever else waits
            self.close_connection = True
            return
        self._reply(pieces)

    def _stay(self) -> None:
        """Hold this connection, which falls shut the moment the page's process dies, however busy it was."""
        self._reply(length=1)
        self.connection.settimeout(POLL_S)
        while not self.server.closing.is_set():
            try:
                data = cast(bytes, self.connection.recv(1))
            except TimeoutError:
                continue
            except OSError:
                data = b""
            if not data:
                break
        self.server.events.put(("gone", b""))
        self.close_connection = True
