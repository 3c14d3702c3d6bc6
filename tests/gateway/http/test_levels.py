"""Suspect inputs: unusual at the second level alone, in answers, metrics, the trail and under the policies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import REGISTRY

from gateway.app import create_api
from gateway.audit.event import kind_of
from gateway.core.decode import decode_image
from gateway.settings import Settings
from gateway.telemetry import metrics
from gateway.versions.registry import Registry, load_pipeline
from tests.gateway.tiny import SIZE, clean_image, encode, patched_image, write_bundle

PATCHED = encode(patched_image())


@pytest.fixture(scope="module")
def lenient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that finds the patched image suspect, and flags nothing."""
    return write_bundle(tmp_path_factory.mktemp("lenient") / "tiny", name="lenient", strictness=100)


@contextmanager
def serving(bundle: Path, **settings: Any) -> Iterator[FastAPI]:
    chosen = Settings(threads=1, audit=False, **settings)
    app, pipeline = create_api(chosen), load_pipeline(bundle, chosen)
    app.state.registry = Registry([pipeline])
    metrics.announce(pipeline)
    yield app
    app.state.dispatcher.close()


def post(app: FastAPI, url: str, content: bytes) -> httpx.Response:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return await client.post(url, content=content)

    return asyncio.run(send())


def suspects() -> float:
    return REGISTRY.get_sample_value("palisade_suspects_total", {"model": "lenient"}) or 0.0


def test_a_suspect_image_is_answered_and_counted(lenient: Path) -> None:
    with serving(lenient) as app:
        before = suspects()
        verdict = post(app, "/v1/predict", PATCHED).json()["verdict"]
        assert (verdict["flagged"], verdict["level"]) == (False, "suspect")
        assert verdict["p_cutoff"] < verdict["p_value"] <= verdict["suspect_cutoff"]
        assert (verdict["alpha"], verdict["suspect_alpha"]) == (0.01, 0.05)
        clean = post(app, "/v1/predict", encode(clean_image())).json()["verdict"]
        assert (clean["level"], clean["suspect_cutoff"]) == ("none", verdict["suspect_cutoff"])
        assert suspects() - before == 1
        panel = post(app, "/v1/explain", PATCHED)
        assert panel.status_code == 200


def test_a_flagged_image_is_not_suspect(bundle_folder: Path) -> None:
    with serving(bundle_folder) as app:
        verdict = post(app, "/v1/predict", PATCHED).json()["verdict"]
        assert (verdict["flagged"], verdict["level"]) == (True, "flagged")


def test_the_open_inference_protocol_has_the_level(lenient: Path) -> None:
    pixels = {
        "name": "pixels",
        "shape": [2, SIZE, SIZE, 3],
        "datatype": "UINT8",
        "data": clean_image().ravel().tolist() + patched_image().ravel().tolist(),
    }
    with serving(lenient) as app:
        asked = {"inputs": [pixels], "outputs": [{"name": "level"}]}
        body = post(app, "/v2/models/lenient/infer", json.dumps(asked).encode()).json()
        assert body["outputs"][0]["data"] == ["none", "suspect"]


@pytest.mark.parametrize(
    ("policy", "block_from", "status"),
    [("block", "flagged", 200), ("block", "suspect", 403), ("observe", "suspect", 200), ("sanitize", "suspect", 200)],
)
def test_policies_may_begin_at_suspect(lenient: Path, policy: str, block_from: str, status: int) -> None:
    with serving(lenient, policy=policy, block_from=block_from) as app:
        response = post(app, "/v1/predict", PATCHED)
        assert response.status_code == status
        if status == 403:
            assert response.json()["code"] == "blocked_by_policy"
            assert response.json()["detail"].startswith("suspect: p-value")
            assert response.json()["detail"].endswith("at alpha 0.05")
        assert post(app, "/v1/predict", encode(clean_image())).status_code == 200


def test_suspects_leave_an_event_when_they_are_to(lenient: Path) -> None:
    pipeline = load_pipeline(lenient, Settings(threads=1, policy="observe"))
    image = decode_image(PATCHED, pipeline.bundle.manifest.input)
    (decision,) = pipeline.decide_images([image])
    assert kind_of(decision, sampled=False, suspects=True) == "suspect"
    assert kind_of(decision, sampled=True) != "suspect"
    blocking = load_pipeline(lenient, Settings(threads=1, policy="block", block_from="suspect"))
    assert kind_of(blocking.decide_images([image])[0], sampled=False) == "blocked"
