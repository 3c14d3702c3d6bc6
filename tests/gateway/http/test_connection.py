"""Connections that say nothing, too little, too much or nonsense, over a real socket."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from gateway.http.connection import MAX_HEAD_BYTES, GuardedProtocol, guard_connections

SECONDS = 0.4


class Quick(GuardedProtocol):
    head_seconds = SECONDS
    drain_seconds = SECONDS


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the number of bytes of the body."""
    assert scope["type"] == "http"
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"6")]})
    await send({"type": "http.response.body", "body": f"{size:6}".encode()})


@contextlib.contextmanager
def served() -> Iterator[int]:
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(echo, http=Quick, log_config=None, lifespan="off", timeout_keep_alive=30))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with served() as port:
        yield port


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def rest(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65_536), b""))


def refusal(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    assert b"connection: close" in head
    problem = json.loads(body)
    return problem["status"], problem["code"]


def test_a_connection_that_says_nothing_is_closed(port: int) -> None:
    with connect(port) as silent:
        start = time.monotonic()
        assert rest(silent) == b""
        assert SECONDS * 0.9 < time.monotonic() - start < 5


def test_a_head_in_drops_is_refused(port: int) -> None:
    with connect(port) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\n")
        for _ in range(3):
            time.sleep(SECONDS / 8)
            slow.sendall(b"a: b\r\n")
        assert refusal(rest(slow)) == (408, "request_timeout")


def test_so_is_the_second_one_of_a_connection(port: int) -> None:
    with connect(port) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert slow.recv(1000).endswith(b"     0")
        time.sleep(1.5 * SECONDS)  # idle between requests is another matter
        slow.sendall(b"GET / HT")
        assert refusal(rest(slow)) == (408, "request_timeout")


def test_a_head_without_end_is_refused(port: int) -> None:
    with connect(port) as endless:
        endless.sendall(b"GET / HTTP/1.1\r\n" + b"a: " + b"x" * (MAX_HEAD_BYTES + 10))
        assert refusal(rest(endless)) == (431, "head_too_large")


def test_what_is_not_http_is_refused(port: int) -> None:
    with connect(port) as nonsense:
        nonsense.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
        assert refusal(rest(nonsense)) == (400, "bad_request")


def test_bodies_and_requests_in_a_row_have_their_own_limits(port: int) -> None:
    body = b"x" * 300_000
    head = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body)
    with connect(port) as steady:
        for _ in range(2):
            steady.sendall(head + body[:1000])
            time.sleep(1.5 * SECONDS)
            steady.sendall(body[1000:])
            assert steady.recv(1000).endswith(b"300000")
        steady.sendall(2 * (head + body))
        answer = b""
        while answer.count(b"300000") < 2:
            answer += steady.recv(1000)


@pytest.mark.parametrize("offer", [b"h2c", b"websocket", b"TLS/1.0"])
@pytest.mark.parametrize("pieces", ["one", "two"])
def test_a_body_behind_an_offer_of_another_protocol_is_no_request(port: int, offer: bytes, pieces: str) -> None:
    inner = b"GET / HTTP/1.1\r\n\r\n"
    lines = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: %b\r\nHTTP2-Settings: AAMA\r\n" % offer
    head = b"POST /a?b=c HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n" % (lines, len(inner))
    chunked = b"POST / HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\n" % lines
    with connect(port) as client:
        for top, body in ((head, inner), (chunked, b"3\r\nabc\r\n0\r\n\r\n")):
            for piece in [top + body] if pieces == "one" else [top, body]:
                client.sendall(piece)
                time.sleep(SECONDS / 8)
            size = b"%6d" % (3 if top is chunked else len(inner))
            answer = client.recv(1000)
            assert answer.endswith(size)
            assert answer.count(b"HTTP/1.1 ") == 1
        client.sendall(b"GET / HTTP/1.1\r\n" + lines + b"\r\n" + head + inner + b"GET / HTTP/1.0\r\n\r\n")
        answers = rest(client).split(b"HTTP/1.1 200 OK")[1:]
        assert [answer[-6:] for answer in answers] == [b"     0", b"    %d" % len(inner), b"     0"]


def test_a_tunnel_is_refused(port: int) -> None:
    with connect(port) as client:
        client.sendall(b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HTTP/1.1\r\n\r\n")
        assert refusal(rest(client)) == (400, "bad_request")


def test_the_end_waits_for_what_is_in_flight_but_not_for_ever() -> None:
    head = b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nab"
    with contextlib.ExitStack() as stack:
        with served() as port:
            silent, quick, slow = (stack.enter_context(connect(port)) for _ in range(3))
            quick.sendall(head)
            slow.sendall(head)
            time.sleep(SECONDS / 4)
            threading.Timer(SECONDS / 2, quick.sendall, [b"cd"]).start()
        assert rest(silent) == b""
        assert rest(quick).endswith(b"     4")
        assert refusal(rest(slow)) == (503, "overloaded")


def test_uvicorn_is_made_to_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uvicorn.config, "HTTP_PROTOCOLS", dict(uvicorn.config.HTTP_PROTOCOLS))
    for name in ("head_seconds", "drain_seconds"):
        monkeypatch.setattr(GuardedProtocol, name, getattr(GuardedProtocol, name))
    guard_connections(head_seconds=3.0, drain_seconds=4.0)
    config = uvicorn.Config(echo)
    config.load()
    assert config.http_protocol_class is GuardedProtocol
    assert (GuardedProtocol.head_seconds, GuardedProtocol.drain_seconds) == (3.0, 4.0)
