"""`Content-Encoding` of requests (RFC 9110, 8.4): gzip and deflate, bounded over all that a body inflates to."""

from __future__ import annotations

import zlib
from typing import Literal

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Message

from gateway.errors import BadParameter, ImageTooLarge, UnsupportedMediaType
from gateway.http.dependencies import dispatcher_of

Coding = Literal["gzip", "deflate"]

_NAMES: dict[str, Coding] = {"gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate"}
_WINDOW: dict[Coding, int] = {"gzip": 31, "deflate": 15}  # zlib's wbits for RFC 1952 and RFC 1950
_SMALLEST_PIECE, _LARGEST_PIECE = 256, 65_536


def content_coding(headers: Headers, *, accepted: bool) -> Coding | None:
    """The one coding of a body, None where it has none.

    Raises `UnsupportedMediaType` for another, for several, and for any where none is `accepted`.
    """
    names = [name.strip().lower() for value in headers.getlist("content-encoding") for name in value.split(",")]
    names = [name for name in names if name not in ("", "identity")]
    if not names:
        return None
    if not accepted:
        raise UnsupportedMediaType(
            "Content-Encoding: this route takes the body as it is, without a coding",
            headers={"Accept-Encoding": "identity"},
        )
    if len(names) > 1 or names[0] not in _NAMES:
        shown = ", ".join(names)[:80]
        raise UnsupportedMediaType(
            f"Content-Encoding {shown!r}: send one of gzip and deflate, or the body as it is",
            headers={"Accept-Encoding": "gzip, deflate"},
        )
    return _NAMES[names[0]]


def inflating(request: Request, coding: Coding, max_bytes: int) -> Request:
    """The request as if its body had been sent without `coding`; it is read and inflated when it is first asked for.

    Inflating takes a place and a thread of the dispatcher, as decoding an image does; it raises what `inflate` raises.
    """
    given = False

    async def receive() -> Message:
        nonlocal given
        if given:
            return await request.receive()
        given = True
        body = await request.body()
        if body:  # an empty body is refused as empty, whatever coding it declares
            body = await dispatcher_of(request).parse(lambda: inflate(body, coding, max_bytes))
        return {"type": "http.request", "body": body, "more_body": False}

    return Request(request.scope, receive)


def inflate(body: bytes, coding: Coding, max_bytes: int) -> bytes:
    """A body as it was before `coding`; the members of gzip are one stream (RFC 1952, 2.2).

    Raises `ImageTooLarge` once more than `max_bytes` came out, and `BadParameter` for a member that is corrupt or
    truncated, and for bytes behind the last one.
    """
    view, position, size = memoryview(body), 0, 0
    pieces: list[bytes] = []
    while position < len(view) or not pieces:
        if position and coding == "deflate":
            raise BadParameter(f"{len(view) - position} bytes behind the end of the deflate stream")
        member, position = _member(view, position, coding, max_bytes - size)
        size += sum(map(len, member))
        pieces += member
    return b"".join(pieces)


def _member(view: memoryview, start: int, coding: Coding, room: int) -> tuple[list[bytes], int]:
    """What the member at `start` inflates to, and where it ends."""
    reader = zlib.decompressobj(wbits=_WINDOW[coding])
    pieces = [b""]
    position = start
    # zlib copies what lies behind a member's end: pieces that start small keep many small members linear in time.
    step = _SMALLEST_PIECE
    try:
        while not reader.eof:
            if position == len(view):
                raise BadParameter(f"the body is truncated {coding}")
            piece = view[position : position + step]
            pieces.append(reader.decompress(piece, room + 1))
            room -= len(pieces[-1])
            if room < 0:
                raise ImageTooLarge("the body inflates to more bytes than are accepted")
            # With more room than was needed, zlib leaves input over only behind the end.
            position += len(piece) - len(reader.unused_data)
            step = min(2 * step, _LARGEST_PIECE)
    except zlib.error:
        what = "has bytes behind the last member that are not" if start else "is not"
        raise BadParameter(f"the body {what} {coding}, or is corrupt") from None
    return pieces, position
