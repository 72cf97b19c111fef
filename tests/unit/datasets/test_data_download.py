"""Downloading from a server of our own: resumed, checked, and clear about what went wrong."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock import download, store
from penstock.errors import InputError, StoreError

CONTENT = bytes(range(256)) * 4000  # 1,024,000 bytes
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves ``CONTENT``; notes the ranges asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str] = []
        self.honours_range = True
        self.stops_after = len(CONTENT)
        self.status = 200
        self.url = f"http://127.0.0.1:{self.server_address[1]}/file"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        self.server.ranges.append(asked)
        if self.server.status != 200:
            self.send_error(self.server.status)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.honours_range else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start : self.server.stops_after])

    def log_message(self, *args: object) -> None:
        pass


class Steps:
    """Progress that remembers."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def begin(self, stage: str, note: str = "") -> None: ...

    def step(self, done: int, total: int, note: str = "") -> None:
        self.seen.append((done, total))

    def end(self, note: str = "") -> None: ...


@pytest.fixture
def server() -> Iterator[Server]:
    serving = Server()
    thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield serving
    serving.shutdown()
    thread.join()
    serving.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def fetch(server: Server, target: Path, **changed: object) -> None:
    given = {"sha256": SHA256, "size_bytes": len(CONTENT), **changed}
    download.fetch(server.url, target, **given)  # type: ignore[arg-type]


def part(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def test_a_whole_download(server: Server, tmp_path: Path) -> None:
    steps = Steps()
    target = tmp_path / "below" / "file"
    fetch(server, target, progress=steps)
    assert target.read_bytes() == CONTENT
    assert not part(target).exists()
    assert server.ranges == [""]
    assert steps.seen[-1] == (len(CONTENT), len(CONTENT))
    assert steps.seen == sorted(steps.seen)


def test_it_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "file"
    server.stops_after = 300_000
    with pytest.raises(InputError, match="300000 of 1024000 bytes") as caught:
        fetch(server, target)
    assert caught.value.id == "download-failed"
    assert "goes on where it stopped" in caught.value.do
    assert not target.exists()
    server.stops_after = len(CONTENT)
    fetch(server, target)
    assert server.ranges == ["", "bytes=300000-"]
    assert target.read_bytes() == CONTENT


def test_a_server_that_cannot_continue(server: Server, tmp_path: Path) -> None:
    part(tmp_path / "file").write_bytes(b"something else")
    server.honours_range = False
    fetch(server, tmp_path / "file")
    assert server.ranges == ["bytes=14-"]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_complete_part_needs_no_network(tmp_path: Path, server: Server) -> None:
    part(tmp_path / "file").write_bytes(CONTENT)
    fetch(server, tmp_path / "file")
    assert server.ranges == []


def test_a_part_that_is_too_long_is_started_over(tmp_path: Path, server: Server) -> None:
    part(tmp_path / "file").write_bytes(CONTENT + b"more")
    fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_wrong_digest_keeps_nothing(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "file"
    part(target).write_bytes(b"other bytes to begin with")
    with pytest.raises(InputError) as caught:
        fetch(server, target)
    assert caught.value.id == "wrong-digest"
    assert SHA256 in caught.value.what
    assert not target.exists()
    fetch(server, target)  # what was wrong is gone: the next try starts over
    assert target.read_bytes() == CONTENT


def test_a_longer_answer_is_cut_at_the_known_size(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="SHA-256"):
        fetch(server, tmp_path / "file", size_bytes=1000)
    assert part(tmp_path / "file").stat().st_size <= 1000


def test_an_error_of_the_server(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(InputError, match="404"):
        fetch(server, tmp_path / "file")


def test_no_server(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        download.fetch("http://127.0.0.1:9/x", tmp_path / "file", sha256=SHA256, size_bytes=10)
    assert caught.value.id == "download-failed"
    assert not (tmp_path / "file").exists()


def test_two_at_once(tmp_path: Path, server: Server) -> None:
    with pytest.raises(RuntimeError), store.resuming(tmp_path / "file") as file:
        file.write(b"partly")
        with pytest.raises(StoreError, match="another process"):
            fetch(server, tmp_path / "file")
        raise RuntimeError
    assert part(tmp_path / "file").read_bytes() == b"partly"
