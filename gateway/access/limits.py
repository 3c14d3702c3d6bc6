"""Rate limits: a token bucket for each key or address, shared by all workers."""

from __future__ import annotations

import ipaddress
import math
import time
from dataclasses import dataclass

from starlette.requests import Request

from gateway.errors import RateLimited
from gateway.versions.shared_state import Store


@dataclass(frozen=True)
class Limit:
    """The bucket that a caller's requests are taken from: `rate` tokens a second, at most `burst` at once."""

    bucket: str
    rate: float
    burst: float


def charge(store: Store, limit: Limit | None, cost: float = 1.0) -> None:
    """Take `cost` tokens (negative: give them back); raises `RateLimited` with Retry-After in whole seconds."""
    if limit is None or cost == 0.0:
        return
    wait = store.take(limit.bucket, limit.rate, limit.burst, time.monotonic(), cost)
    if wait > 0.0:
        raise RateLimited(
            f"at most {limit.rate:g} a second, {limit.burst:g} at once",
            headers={"Retry-After": str(max(1, math.ceil(wait)))},
        )


def charge_images(request: Request, images: int) -> None:
    """Charge a request for the images that it holds; one token was taken before its body was read."""
    charge(request.app.state.store, request.state.caller.limit, images - 1)


def address_block(host: str) -> str:
    """The name that limits use for a client address: itself, or its /64 in IPv6, since a client has all of that."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host[:64]
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(address.ipv4_mapped or ipaddress.IPv6Address(int(address) >> 64 << 64))
