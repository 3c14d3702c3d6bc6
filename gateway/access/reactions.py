"""What the gateway does about keys that took part in a query campaign: it alerts, or what an operator chose.

Whoever reacts shows the caller that they were seen, and an attacker learns from that how not to be (Feng et al. 2023,
arXiv 2303.06280). To lower the disclosure shows least.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from gateway.access.auth import Caller
from gateway.access.keys import Reaction
from gateway.access.limits import Limit
from gateway.errors import KeySuspended

log = logging.getLogger(__name__)


class Reactions:
    """The keys of campaigns, as this worker knows them, and what happens to their requests."""

    def __init__(self, reaction: Reaction, rate: float) -> None:
        self._reaction = reaction
        self._limit = rate, max(1.0, rate)
        self._suspects: frozenset[str] = frozenset()

    @property
    def suspects(self) -> frozenset[str]:
        """Ids of keys that took part in a campaign of late."""
        return self._suspects

    def suspect(self, keys: frozenset[str]) -> None:
        """Take `keys` for those that took part in a campaign, and no others; used from any thread."""
        if new := sorted(keys - self._suspects):
            log.warning(
                "campaigns: keys %s, reaction %s unless their own says otherwise", ", ".join(new), self._reaction
            )
        self._suspects = keys

    def apply(self, caller: Caller, own: Reaction | None) -> Caller:
        """The caller as they are treated now; `own` is the key's reaction. Raises `KeySuspended`.

        Reviewers and administrators are treated as ever, so that nobody locks out those who have to look.
        """
        if caller.key_id not in self._suspects or caller.role != "client":
            return caller
        reaction = self._reaction if own is None else own
        if reaction == "block":
            raise KeySuspended("this key is suspended; ask whoever gave it to you")
        if reaction == "rate":
            rate, burst = self._limit
            return replace(caller, limit=_slower(caller.limit, Limit(f"campaign:{caller.key_id}", rate, burst)))
        return replace(caller, disclosure="label") if reaction == "label" else caller


def _slower(one: Limit | None, other: Limit) -> Limit:
    return one if one is not None and one.rate < other.rate else other
