"""Requests that are sent again: what is waited for, for how long, and what is not."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import httpx
import pytest

from gateway.client import Gateway, GatewayAnswer, GatewayUnreachable, Patience
from gateway.errors import BadParameter, PalisadeError

Reply = httpx.Response | Exception
ROOM = httpx.Response(200, json={"ok": True})


def problem(status: int, wait: str | None = None) -> httpx.Response:
    headers = {} if wait is None else {"Retry-After": wait}
    return httpx.Response(status, json={"code": f"c{status}", "detail": "no"}, headers=headers)


def ask(replies: Sequence[Reply], patience: Patience) -> tuple[httpx.Response | PalisadeError, list[float], int]:
    """What comes of a request that is answered with `replies` in turn; what was waited, and how many were sent."""
    left = list(replies)
    waits: list[float] = []
    sent: list[bytes] = []

    def handle(request: httpx.Request) -> httpx.Response:
        sent.append(request.read())
        reply = left.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    gateway = Gateway("http://gateway.test")
    gateway._client = httpx.Client(transport=httpx.MockTransport(handle), base_url="http://gateway.test")
    outcome: httpx.Response | PalisadeError
    try:
        outcome = gateway.send_patiently("POST", "x", patience=patience, sleep=waits.append, content=b"image")
    except PalisadeError as error:
        outcome = error
    assert set(sent) == {b"image"}
    return outcome, waits, len(sent)


def test_no_room_is_waited_for_as_long_as_it_says_and_a_little_longer() -> None:
    outcome, waits, sent = ask([problem(429, "7"), problem(503), problem(503, "2"), ROOM], Patience())
    assert isinstance(outcome, httpx.Response)
    assert sent == 4
    for told, waited in zip((7, 1, 2), waits, strict=True):
        assert told <= waited <= 1.25 * told


def test_no_room_without_a_wait_is_no_loop_without_a_pause() -> None:
    _, waits, sent = ask([problem(503, "0")] * 9 + [ROOM], Patience())
    assert sent == 10
    assert min(waits) >= 0.1


@pytest.mark.parametrize("answer", [{"object": "list", "data": []}, [], None, {"models": ["a"]}, {"models": 1}])
def test_another_server_that_answers_json_is_no_gateway(answer: object) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=answer))
    gateway = Gateway("http://gateway.test")
    gateway._client = httpx.Client(transport=transport, base_url="http://gateway.test")
    with pytest.raises(GatewayUnreachable, match="does not answer as a gateway does"):
        gateway.call("GET", "v1", "models")


@pytest.mark.parametrize("key", ["ключ", "pal_a\nb", "pal_a "])
def test_a_key_that_is_none_is_called_so_and_not_shown(key: str) -> None:
    with pytest.raises(BadParameter, match="--key") as caught:
        Gateway("http://gateway.test", key)
    assert key not in caught.value.detail


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 415, 422, 500, 502])
def test_other_refusals_are_final(status: int) -> None:
    outcome, waits, sent = ask([problem(status, "1"), ROOM], Patience())
    assert isinstance(outcome, GatewayAnswer)
    assert (outcome.status, waits, sent) == (status, [], 1)


def test_a_broken_connection_is_tried_again_ever_later_up_to_a_bound() -> None:
    outcome, waits, _ = ask([httpx.ReadError("gone")] * 30 + [ROOM], Patience())
    assert isinstance(outcome, httpx.Response)
    assert waits[0] < 0.2
    assert all(later > 0.8 * earlier for earlier, later in itertools.pairwise(waits))
    assert 5.0 <= waits[-1] <= 6.25


@pytest.mark.parametrize("reconnect", [False, True])
def test_where_nothing_listens_only_who_reconnects_waits(reconnect: bool) -> None:
    outcome, waits, _ = ask([httpx.ConnectError("refused"), ROOM], Patience(reconnect=reconnect))
    assert isinstance(outcome, httpx.Response if reconnect else GatewayUnreachable)
    assert len(waits) == reconnect


def test_patience_ends_by_tries_and_by_time_with_the_last_refusal() -> None:
    for patience, sent in ((Patience(tries=3), 3), (Patience(seconds=10), 1), (Patience(seconds=0), 1)):
        outcome, waits, count = ask([problem(503, "20")] * 5, patience)
        assert isinstance(outcome, GatewayAnswer)
        assert (outcome.code, count, len(waits)) == ("c503", sent, sent - 1)
    outcome, _, count = ask([httpx.ReadTimeout("late")] * 5, Patience(tries=2))
    assert isinstance(outcome, GatewayUnreachable)
    assert count == 2


def test_what_is_no_http_is_unreachable() -> None:
    outcome, _, _ = ask([httpx.DecodingError("not gzip")], Patience(tries=1))
    assert isinstance(outcome, GatewayUnreachable)
