"""The server of a page: its headers, its types, and nobody served who doesn't know the token."""

import http.client
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.browser.server import PageServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PageServer]:
    for name in ("page.html", "page.js", "one.mjs", "one.wasm", "model"):
        (tmp_path / name).write_bytes(name.encode())
    files = {path.name: path for path in tmp_path.iterdir()}
    made = PageServer({"": tmp_path / "page.html", "gone": tmp_path / "gone", **files})
    yield made
    made.close()
    made.close()


def asked(
    server: PageServer, path: str, method: str = "GET", body: bytes | None = None
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", int(server.server_address[1]), timeout=10)
    connection.request(method, path, body)
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer, data


@pytest.mark.parametrize(("name", "kind"), [
    ("", "text/html; charset=utf-8"), ("page.js", "text/javascript"), ("one.mjs", "text/javascript"),
    ("one.wasm", "application/wasm"), ("model", "application/octet-stream"),
])  # fmt: skip
def test_each_file_has_its_type_and_every_answer_isolates_the_page(server: PageServer, name: str, kind: str) -> None:
    answer, data = asked(server, f"/{server.token}/{name}")
    assert (answer.status, answer.headers["Content-Type"], data) == (200, kind, (name or "page.html").encode())
    assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'") and "connect-src 'self'" in policy and "unsafe-inline" not in policy


@pytest.mark.parametrize("path", ["/", "/page.js", "/wrong/page.js", "//page.js", "/%C3%A9/x", "/{token}x/page.js"])
def test_who_does_not_know_the_token_gets_nothing(server: PageServer, path: str) -> None:
    answer, data = asked(server, path.replace("{token}", server.token))
    assert (answer.status, data) == (404, b"")
    answer, _ = asked(server, path.replace("{token}", server.token), "POST", b"x")
    assert answer.status == 404 and server.events.empty()


@pytest.mark.parametrize("name", ["nothing", "gone", "../page.js", "page.js/", "next/x"])
def test_what_is_not_served_is_not_there(server: PageServer, name: str) -> None:
    assert asked(server, f"/{server.token}/{name}")[0].status == 404


def test_it_listens_on_this_machine_alone_and_two_have_two_tokens(server: PageServer) -> None:
    other = PageServer({})
    assert server.server_address[0] == "127.0.0.1" and other.token != server.token and len(server.token) >= 20
    other.close()


def test_the_conversation(server: PageServer) -> None:
    server.commands.put([b"do", memoryview(b" this")])
    assert asked(server, f"/{server.token}/next")[1] == b"do this"
    assert asked(server, f"/{server.token}/result", "POST", b"done")[0].status == 200
    assert asked(server, f"/{server.token}/stray", "POST", b"oh")[0].status == 200
    assert [server.events.get(timeout=5), server.events.get(timeout=5)] == [("answer", b"done"), ("stray", b"oh")]


def test_a_connection_that_falls_shut_is_noticed(server: PageServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", int(server.server_address[1]), timeout=10)
    connection.request("GET", f"/{server.token}/alive")
    answer = connection.getresponse()
    assert server.events.empty()
    answer.close()
    connection.close()
    assert server.events.get(timeout=5) == ("gone", b"")
