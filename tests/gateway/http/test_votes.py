"""Votes of masks on HTTP: `PALISADE_VOTES`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi import FastAPI

from gateway.app import create_api
from gateway.core.pipeline import Pipeline
from gateway.errors import ConfigError, Overloaded
from gateway.inference.dispatch import Dispatcher
from gateway.settings import Settings
from gateway.telemetry import metrics
from gateway.versions.registry import Registry, load_registry
from tests.gateway.http.test_api import call, value
from tests.gateway.tiny import add_small_field, add_votes, clean_image, encode, write_bundle


def patched() -> bytes:
    """A blue square that no other score sees."""
    image = clean_image((150, 0, 0))
    image[4:10, 4:10] = (0, 0, 249)
    return encode(image)


@pytest.fixture
def voting(tmp_path: Path) -> Pipeline:
    settings = Settings(models=str(add_votes(write_bundle(tmp_path / "tiny"))), votes=True, device="cpu")
    return load_registry(settings).get(None)


@pytest.fixture
def api(voting: Pipeline) -> Iterator[FastAPI]:
    app = create_api(Settings(votes=True))
    app.state.registry = Registry([voting])
    metrics.announce(voting)
    yield app
    app.state.dispatcher.close()


@pytest.mark.parametrize("route", ["/v1/predict", "/v1/predict?certify=patch", "/v1/predict?explain=all"])
def test_a_verdict_says_what_the_masks_say(api: FastAPI, route: str) -> None:
    before = value("palisade_flagged_total", model="tiny", evidence="mask_votes", action="sanitize")
    answer = call(api, "POST", route, content=patched()).json()
    verdict = answer["verdict"]
    assert (verdict["level"], answer["prediction"]["label"]) == ("flagged", "blue")
    votes = verdict["votes"]
    assert votes["label"] == "red"
    assert votes["patch"] == 6
    assert votes["box"][2:] == [8, 8]
    assert not votes["whole"]
    assert verdict["evidence"][0] == {"name": "mask_votes", "p_value": votes["p_value"], "layer": None}
    assert value("palisade_flagged_total", model="tiny", evidence="mask_votes", action="sanitize") == before + 1
    clean = call(api, "POST", route, content=encode(clean_image((150, 0, 0)))).json()
    assert (clean["verdict"]["level"], clean["verdict"]["votes"]["objection"] < 0) == ("none", True)


def test_masks_vote_only_where_they_are_asked_to(pipeline: Pipeline) -> None:
    app = create_api(Settings())
    app.state.registry = Registry([pipeline])
    metrics.announce(pipeline)
    try:
        verdict = call(app, "POST", "/v1/predict", content=patched()).json()["verdict"]
    finally:
        app.state.dispatcher.close()
    assert (verdict["level"], verdict["votes"]) == ("none", None)


def test_admission_counts_votes(voting: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    dispatcher, seen = Dispatcher(Settings()), list[float]()

    def refusal(more: float = 0.0) -> Overloaded | None:
        seen.append(more)
        return None

    monkeypatch.setattr(dispatcher, "refusal", refusal)

    async def decide() -> None:
        async def nothing(_decision: object) -> None:
            return None

        await dispatcher.decide_image(voting, np.zeros((16, 16, 3), np.uint8), explain=False, record=nothing)

    try:
        asyncio.run(decide())
    finally:
        dispatcher.close()
    assert seen == [pytest.approx(16 / 6)]


def test_a_bundle_that_cannot_vote_is_refused_at_the_start(tmp_path: Path) -> None:
    write_bundle(tmp_path / "tiny")
    with pytest.raises(ConfigError, match="palisade votes"):
        load_registry(Settings(models=str(tmp_path), votes=True, device="cpu"))


@pytest.mark.parametrize("whole", [None, 0.01])
def test_the_network_of_small_fields_votes_in_one_pass(tmp_path: Path, whole: float | None) -> None:
    bundle = add_votes(add_small_field(write_bundle(tmp_path / "tiny")), patch=6, by="small_field", whole=whole)
    voting = load_registry(Settings(models=str(bundle), votes=True, device="cpu")).get(None)
    app = create_api(Settings(votes=True))
    app.state.registry = Registry([voting])
    metrics.announce(voting)
    votes = call(app, "POST", "/v1/predict", content=encode(clean_image((150, 0, 0)))).json()["verdict"]["votes"]
    assert (votes["by"], votes["patch"], votes["objection"] < 0) == ("small_field", 6, True)
    assert votes["whole"] == (whole is not None)
    assert (votes["box"] == [0, 0, 16, 16]) == (whole is not None)
    app.state.dispatcher.close()
