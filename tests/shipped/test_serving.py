"""The shipped bundle behind a real `bentoml serve`: the README's calls, and the answers that the samples come with."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.gateway.server import ROOT, Server, served

SAMPLES = ROOT / "models" / "gtsrb" / "samples"
PNG = {"Content-Type": "image/png"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(ROOT / "models", tmp_path_factory.mktemp("server")) as running:
        yield running


def test_predict_with_everything(server: Server) -> None:
    sample = (SAMPLES / "clean_0.png").read_bytes()
    raw = server.post("/v1/predict?explain=all", content=sample, headers=PNG)
    assert raw.status_code == 200
    body = raw.json()
    assert body["model"] == {"name": "gtsrb", "version": body["model"]["version"]}
    assert {"prediction", "verdict", "neutralization", "explanation", "timing_ms"} <= set(body)
    assert body["verdict"]["flagged"] is False
    assert {entry["name"] for entry in body["verdict"]["evidence"]} >= {"neuron_sensitivity", "margin_drop"}
    saliency = Image.open(io.BytesIO(base64.b64decode(body["explanation"]["saliency"]["data"])))
    assert saliency.size == (32, 32)
    assert np.asarray(saliency.convert("L")).std() > 5
    form = server.post("/v1/predict", files={"image": ("x.png", sample, "image/png")})
    assert form.json()["prediction"] == body["prediction"]


def test_overlay_picture(server: Server) -> None:
    sample = (SAMPLES / "patched_0.png").read_bytes()
    answer = server.post("/v1/explain", content=sample, headers={**PNG, "Accept": "image/png"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    assert min(Image.open(io.BytesIO(answer.content)).size) >= 128


def test_samples_and_what_metrics_count(server: Server) -> None:
    before = server.metrics()
    expected = json.loads((SAMPLES / "answers.json").read_text("utf-8"))
    repaired = 0
    for name, answer in expected.items():
        body = server.post(content=(SAMPLES / name).read_bytes(), headers=PNG).json()
        # They are stated without a pool.
        first = body["pool"]["before"] if body["pool"] else body["prediction"]
        assert first["label"] == answer["label"], name
        repaired += body["pool"] is not None and body["prediction"]["label"] == answer["truth"]
        assert body["verdict"]["flagged"] == answer["flagged"], name
    assert repaired
    after = server.metrics()

    def grown(prefix: str) -> float:
        return sum(value - before.get(key, 0.0) for key, value in after.items() if key.startswith(prefix))

    assert grown('palisade_requests_total{model="gtsrb"') == len(expected)
    assert grown("palisade_predictions_total") == len(expected)
    assert grown("palisade_flagged_total") == sum(answer["flagged"] for answer in expected.values())


def test_ready_and_models(server: Server) -> None:
    assert httpx.get(server.url + "/readyz").status_code == 200
    names = {model["name"] for model in httpx.get(server.url + "/v1/models").json()["models"]}
    assert "gtsrb" in names
