from __future__ import annotations

from gateway.upstream.breaker import Breaker


def state(breaker: Breaker) -> str:
    """Asked anew, which a type checker does not expect of a property."""
    return breaker.state


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_it_opens_after_failures_in_a_row_and_tries_once() -> None:
    clock = Clock()
    breaker = Breaker(failures=3, pause=2.0, clock=clock)
    for _ in range(2):
        assert breaker.admit()
        assert not breaker.failed()
    assert breaker.admit()
    breaker.succeeded()
    for opens in (False, False, True):
        assert state(breaker) == "closed"
        assert breaker.admit()
        assert breaker.failed() is opens
    assert state(breaker) == "open"
    assert not breaker.admit()
    clock.now = 1.5
    assert breaker.wait == 0.5
    clock.now = 2.0
    assert state(breaker) == "half_open"
    assert breaker.admit()
    assert not breaker.admit()  # one call alone
    assert breaker.failed()
    assert state(breaker) == "open"
    assert not breaker.admit()
    clock.now = 4.5
    assert breaker.admit()
    breaker.succeeded()
    assert state(breaker) == "closed"
    assert breaker.wait == 0.0
