"""What happens to the keys of a campaign: nothing by default, and what the operator or the key's own entry says."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from gateway.access.auth import Caller
from gateway.access.keys import ApiKey, Reaction, Role
from gateway.access.limits import Limit
from gateway.access.reactions import Reactions
from gateway.app import create_api
from gateway.errors import KeySuspended
from gateway.settings import Settings

SLOW, QUICKER, SLOWER = Limit("campaign:a", 0.5, 1.0), Limit("key:a", 9.0, 9.0), Limit("key:a", 0.1, 1.0)


def caller(role: Role = "client", limit: Limit | None = None) -> Caller:
    return Caller("a", role, "verdict", limit)


def suspecting(reaction: Reaction) -> Reactions:
    reactions = Reactions(reaction, 0.5)
    reactions.suspect(frozenset({"a"}))
    return reactions


def test_an_alert_changes_nothing() -> None:
    assert suspecting("alert").apply(caller(), None) == caller()


def test_disclosure_is_lowered() -> None:
    assert suspecting("label").apply(caller(), None) == Caller("a", "client", "label")


@pytest.mark.parametrize(("own", "now"), [(None, SLOW), (QUICKER, SLOW), (SLOWER, SLOWER)])
def test_requests_are_slowed_and_never_quickened(own: Limit | None, now: Limit) -> None:
    assert suspecting("rate").apply(caller(limit=own), None).limit == now


def test_a_key_is_blocked() -> None:
    with pytest.raises(KeySuspended):
        suspecting("block").apply(caller(), None)


@pytest.mark.parametrize("role", ["reviewer", "admin"])
def test_who_has_to_look_is_not_locked_out(role: Role) -> None:
    assert suspecting("block").apply(caller(role), None) == caller(role)


def test_the_keys_own_entry_comes_first() -> None:
    assert suspecting("block").apply(caller(), "alert") == caller()
    assert suspecting("alert").apply(caller(), "label").disclosure == "label"


def test_it_ends_with_the_suspicion() -> None:
    reactions = suspecting("block")
    reactions.suspect(frozenset({"b"}))
    assert reactions.apply(caller(), None) == caller()


def test_the_gateways_setting_and_a_keys_entry_decide() -> None:
    api = create_api(Settings(campaign_reaction="label", audit=False))
    api.state.campaigns._reactions.suspect(frozenset({"a", "tester"}))
    created = datetime(2026, 1, 1, tzinfo=UTC)
    keys = [ApiKey(id=name, sha256="0" * 64, role="client", disclosure="verdict", created=created) for name in "ab"]
    exempt = keys[0].model_copy(update={"id": "tester", "campaigns": "alert"})
    callers = [api.state.auth.caller_of(key) for key in (*keys, exempt)]
    assert [caller.disclosure for caller in callers] == ["label", "verdict", "verdict"]
