"""Hostile compressed bodies: what comes out is bounded and what other readers of the format give, or it is refused."""

from __future__ import annotations

import gzip
import zlib
from typing import Literal

from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import BadParameter, ImageTooLarge
from gateway.http.content_coding import Coding, inflate

LIMIT = 100_000

pieces = st.lists(
    st.one_of(st.binary(max_size=300), st.builds(bytes, st.integers(0, 150_000))),
    min_size=1,
    max_size=6,
)
codings: st.SearchStrategy[Literal["gzip", "deflate"]] = st.sampled_from(["gzip", "deflate"])


def outcome(body: bytes, coding: Coding) -> bytes | type[Exception]:
    try:
        found = inflate(body, coding, LIMIT)
    except (BadParameter, ImageTooLarge) as error:
        assert len(error.detail) < 200
        return type(error)
    assert len(found) <= LIMIT
    return found


@given(st.binary(max_size=200), codings)
def test_any_bytes(body: bytes, coding: Coding) -> None:
    outcome(body, coding)


@given(pieces, st.integers(0, 9))
def test_members_are_one_stream(members: list[bytes], level: int) -> None:
    whole = b"".join(members)
    expected = whole if len(whole) <= LIMIT else ImageTooLarge
    assert outcome(b"".join(gzip.compress(member, level) for member in members), "gzip") == expected
    assert outcome(zlib.compress(whole, level), "deflate") == expected


@given(st.binary(min_size=1, max_size=3000), st.integers(1, 4))
def test_the_limit_is_exact(data: bytes, count: int) -> None:
    body = b"".join(gzip.compress(data) for _ in range(count))
    size = count * len(data)
    assert inflate(body, "gzip", size) == data * count
    try:
        inflate(body, "gzip", size - 1)
    except ImageTooLarge:
        return
    raise AssertionError("more came out than was allowed")


@given(pieces, st.binary(min_size=1, max_size=40), codings)
def test_what_follows_the_end_is_refused(members: list[bytes], rubbish: bytes, coding: Coding) -> None:
    small = [member[:300] for member in members]
    if coding == "gzip":
        body = b"".join(gzip.compress(member) for member in small)
        if outcome(rubbish, coding) is not BadParameter:  # by chance another member
            return
    else:
        body = zlib.compress(b"".join(small))
    assert outcome(body + rubbish, coding) is BadParameter


@given(pieces, st.integers(1, 10_000), codings)
def test_what_is_cut_is_refused(members: list[bytes], cut: int, coding: Coding) -> None:
    data = b"".join(member[:300] for member in members)
    body = gzip.compress(data) if coding == "gzip" else zlib.compress(data)
    assert outcome(body[: -1 - cut % len(body)], coding) is BadParameter
