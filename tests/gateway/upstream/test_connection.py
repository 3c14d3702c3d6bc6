"""The client of an upstream before a server that sends exact bytes."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import certifi
import pytest

from gateway.errors import UpstreamInvalid, UpstreamTimeout, UpstreamUnavailable
from gateway.upstream import connection as module
from gateway.upstream.connection import Connection

SOUND = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Own: yes\r\n\r\n{}"


@contextmanager
def answering(send: Callable[[socket.socket, int], None]) -> Iterator[tuple[str, list[int]]]:
    """A server that calls `send(socket, number of the request)` for each request; its URL, and requests by connection.

    It closes a connection where `send` has shut it down.
    """
    listening = socket.create_server(("127.0.0.1", 0))
    counts: list[int] = []

    def serve(client: socket.socket) -> None:
        counts.append(0)
        at = len(counts) - 1
        with client:
            try:
                while client.recv(65536):
                    counts[at] += 1
                    send(client, sum(counts))
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", counts
    finally:
        listening.close()


@contextmanager
def nobody() -> Iterator[str]:
    """A place whose connections are neither taken nor refused, as those of a host that is off."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, ExitStack() as stack:
        for _ in range(3):  # what is beyond the backlog is dropped
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        yield f"http://127.0.0.1:{full.getsockname()[1]}"


def sound(client: socket.socket, _: int) -> None:
    client.sendall(SOUND)


def test_a_connection_is_used_again_and_headers_have_no_case() -> None:
    with answering(sound) as (url, counts), Connection(timeout=5) as connection:
        for _ in range(3):
            answer = connection.get(f"{url}/a?b=c")
            assert answer.json() == {}
            assert answer.headers.get("x-oWN") == "yes"
        assert counts == [3]


@pytest.mark.parametrize("where", ["status", "headers", "body"])
def test_bytes_that_drip_end_at_the_deadline(where: str) -> None:
    start = {"status": 0, "headers": 20, "body": len(SOUND) - 2}[where]

    def drip(client: socket.socket, _: int) -> None:
        client.sendall(SOUND[:start])
        for byte in SOUND[start:]:
            time.sleep(0.4)
            client.sendall(bytes([byte]))

    with answering(drip) as (url, _), Connection(timeout=0.6) as connection, pytest.raises(UpstreamTimeout):
        connection.get(url)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"no HTTP\r\n\r\n",
        SOUND[:-1],
        SOUND[:-2],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n{}\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n{}\r\n0\r\n\r\n",
    ],
)
def test_an_answer_that_ends_early_or_is_none_is_no_answer(sent: bytes) -> None:
    def cut(client: socket.socket, _: int) -> None:
        client.sendall(sent)
        client.shutdown(socket.SHUT_RDWR)

    with (
        answering(cut) as (url, _),
        Connection(timeout=5) as connection,
        pytest.raises(UpstreamUnavailable, match="cannot be reached"),
    ):
        connection.get(url)


@pytest.mark.parametrize(
    ("timeout", "error"), [(10.0, UpstreamUnavailable), (0.2, UpstreamTimeout)], ids=["nobody", "deadline"]
)
def test_a_host_that_does_not_even_refuse_is_unavailable(
    timeout: float, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CONNECT_SECONDS", 0.4)
    with nobody() as url, Connection(timeout=timeout) as connection, pytest.raises(error):
        connection.get(url)


def test_all_addresses_of_a_host_share_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    found = socket.getaddrinfo

    def many(*arguments: Any, **named: Any) -> Any:
        return found(*arguments, **named) * 20

    monkeypatch.setattr(socket, "getaddrinfo", many)
    monkeypatch.setattr(module, "_CONNECT_SECONDS", 0.2)
    with nobody() as url, Connection(timeout=0.5) as connection:
        start = time.monotonic()
        with pytest.raises(UpstreamTimeout):
            connection.get(url)
        assert time.monotonic() - start < 2.0


def test_a_host_is_tried_at_its_next_address(monkeypatch: pytest.MonkeyPatch) -> None:
    found = socket.getaddrinfo
    with nobody() as url, answering(sound) as (sounding, _), Connection(timeout=5) as connection:
        port = int(url.rpartition(":")[2])

        def two(host: str, asked: int, *rest: Any, **named: Any) -> Any:
            return found(host, port, *rest, **named) + found(host, asked, *rest, **named)

        monkeypatch.setattr(socket, "getaddrinfo", two)
        monkeypatch.setattr(module, "_CONNECT_SECONDS", 0.2)
        assert connection.get(sounding).json() == {}


def test_chunks_are_read() -> None:
    def chunked(client: socket.socket, _: int) -> None:
        client.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n[\r\n2\r\n1]\r\n0\r\n\r\n")

    with answering(chunked) as (url, counts), Connection(timeout=5) as connection:
        assert [connection.get(url).json() for _ in range(2)] == [[1], [1]]
        assert counts == [2]


@pytest.mark.parametrize("status", ["100 Continue", "102 Processing", "103 Early Hints"])
def test_what_comes_before_an_answer_is_not_the_answer(status: str) -> None:
    def hinting(client: socket.socket, number: int) -> None:
        client.sendall(f"HTTP/1.1 {status}\r\nLink: </a>\r\n\r\n".encode() * 2)
        time.sleep(0.05)  # so that both are not read together
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % number)

    with answering(hinting) as (url, counts), Connection(timeout=5) as connection:
        assert [connection.get(url).json() for _ in range(3)] == [1, 2, 3]
        assert counts == [3]


def test_a_connection_that_switches_protocols_is_not_used_again() -> None:
    def switching(client: socket.socket, number: int) -> None:
        client.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n" if number == 1 else SOUND)
        time.sleep(0.05)
        client.sendall(SOUND if number == 1 else b"")

    with answering(switching) as (url, counts), Connection(timeout=5) as connection:
        with pytest.raises(UpstreamInvalid, match="answered 101"):
            connection.get(url)
        assert connection.get(url).json() == {}
        assert counts == [1, 1]


def test_a_chunk_of_negative_size_is_not_read_to_its_end() -> None:
    sent = 0

    def endless(client: socket.socket, _: int) -> None:
        nonlocal sent
        client.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n")
        while sent < 1 << 28:
            sent += client.send(bytes(1 << 20))

    with answering(endless) as (url, _), Connection(timeout=5) as connection, pytest.raises(UpstreamUnavailable):
        connection.get(url)
    assert sent < 1 << 26


@pytest.mark.parametrize("length", [True, False])
def test_an_answer_has_a_largest_size(length: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ANSWER_BYTES", 1000)

    def large(client: socket.socket, _: int) -> None:
        head = b"Content-Length: 2000\r\n" if length else b"Connection: close\r\n"
        client.sendall(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n" + bytes(2000))
        client.shutdown(socket.SHUT_WR)

    with (
        answering(large) as (url, _),
        Connection(timeout=5) as connection,
        pytest.raises(UpstreamInvalid, match="more than 1000 bytes"),
    ):
        connection.get(url)


def test_a_kept_connection_that_was_closed_costs_one_new_one() -> None:
    closed = threading.Event()

    def once(client: socket.socket, number: int) -> None:
        client.sendall(SOUND)
        if number == 1:
            client.close()  # a request that is sent after this is read by nobody
            closed.set()

    with answering(once) as (url, counts), Connection(timeout=5) as connection:
        assert connection.get(url).json() == {}
        assert closed.wait(5)
        for _ in range(2):
            assert connection.get(url).json() == {}
        assert counts == [1, 2]


def test_a_new_connection_that_is_closed_is_not_tried_again() -> None:
    def close(client: socket.socket, _: int) -> None:
        client.shutdown(socket.SHUT_RDWR)

    with answering(close) as (url, counts), Connection(timeout=5) as connection:
        with pytest.raises(UpstreamUnavailable):
            connection.get(url)
        assert counts == [1]


def test_a_cluster_may_have_an_authority_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Path(certifi.where()).read_text().split("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----\n"
    (tmp_path / "ca.pem").write_text(own[own.index("-----BEGIN") :])
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    module._certificates.cache_clear()
    try:
        assert module._certificates().cert_store_stats()["x509"] == 1
    finally:
        module._certificates.cache_clear()
