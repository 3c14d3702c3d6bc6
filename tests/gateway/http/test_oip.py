"""The Open Inference Protocol by its own client, unmodified, against a real server; and what is not well-formed."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import struct
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from fastapi import FastAPI
from tritonclient.utils import InferenceServerException

from gateway.app import create_api
from gateway.core.decode import to_pixels
from gateway.core.pipeline import Pipeline
from gateway.settings import Settings
from gateway.versions.registry import Registry
from tests.gateway.server import Server, served
from tests.gateway.tiny import SIZE, clean_image, encode, patched_image, write_bundle

CLEAN, PATCHED, GREEN = clean_image(), patched_image(), clean_image((0, 120, 0))
BATCH = np.stack([CLEAN, PATCHED, GREEN])
URL = "/v2/models/tiny/infer"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    models = tmp_path_factory.mktemp("served")
    write_bundle(models / "tiny")
    write_bundle(models / "blocking", name="blocking", action="block")
    with served(models, tmp_path_factory.mktemp("server"), max_body_bytes=1_000_000) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
        yield client


def tensor(values: np.ndarray, *, name: str = "pixels", binary: bool = True) -> triton.InferInput:
    datatype = {"uint8": "UINT8", "float32": "FP32", "object": "BYTES"}[values.dtype.name]
    sent = triton.InferInput(name, list(values.shape), datatype)
    sent.set_data_from_numpy(values, binary_data=binary)
    return sent


def labels(result: triton.InferResult) -> list[str]:
    return [label if isinstance(label, str) else label.decode() for label in result.as_numpy("label")]


def refused(client: triton.InferenceServerClient, *inputs: triton.InferInput, **options: Any) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as caught:
        client.infer(options.pop("model", "tiny"), list(inputs), **options)
    return caught.value.status(), caught.value.message()


def test_health_and_metadata(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny", "1.0.0")
    assert not client.is_model_ready("tiny", "9.9.9")
    assert not client.is_model_ready("absent")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    assert {entry["name"] for entry in client.get_model_repository_index()} == {"tiny", "blocking"}
    metadata = client.get_model_metadata("tiny")
    assert metadata == client.get_model_metadata("tiny", "1.0.0")
    assert metadata["versions"] == ["1.0.0"]
    assert metadata["inputs"] == [{"name": "pixels", "datatype": "UINT8", "shape": [-1, SIZE, SIZE, 3]}]
    outputs = {output["name"]: (output["datatype"], output["shape"]) for output in metadata["outputs"]}
    assert outputs["label"] == ("BYTES", [-1])
    assert outputs["probabilities"] == ("FP32", [-1, 3])
    assert outputs["saliency"] == ("FP32", [-1, SIZE, SIZE])
    with pytest.raises(InferenceServerException, match="'absent' is not served"):
        client.get_model_metadata("absent")


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("form", ["uint8", "float32", "encoded"])
def test_a_batch_in_every_form(client: triton.InferenceServerClient, form: str, binary: bool) -> None:
    if form == "encoded":
        files = [encode(image) if binary else base64.b64encode(encode(image)) for image in BATCH]
        sent = tensor(np.array(files, object), name="image", binary=binary)
    else:
        sent = tensor(BATCH if form == "uint8" else to_pixels(BATCH), binary=binary)
    result = client.infer("tiny", [sent], request_id="42")
    assert labels(result) == ["red", "red", "green"]
    assert result.as_numpy("label_index").tolist() == [0, 0, 1]
    assert result.as_numpy("flagged").tolist() == [False, True, False]
    assert result.as_numpy("p_value")[1] < 0.01 < result.as_numpy("p_value")[0]
    assert np.allclose(result.as_numpy("probabilities").sum(axis=1), 1.0, atol=1e-5)
    answer = result.get_response()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("42", "tiny", "1.0.0")
    assert answer["parameters"] == {"any_flagged": True, "flagged": 1, "action": "sanitize", "alpha": 0.01}
    assert all("data" not in output for output in answer["outputs"])


def test_floats_are_rounded_to_the_8_bits_of_all_images(client: triton.InferenceServerClient) -> None:
    rng = np.random.default_rng(0)
    exact = np.clip(to_pixels(BATCH), 0.1, 0.9)
    moved = exact + rng.uniform(-0.49, 0.49, exact.shape).astype(np.float32) / 255
    floor = np.float32(1 / 255)
    on_grid = np.rint(exact / floor).astype(np.float32) * floor
    answers = [
        client.infer("tiny", [tensor(pixels)]).as_numpy("probabilities")
        for pixels in (on_grid, on_grid + (moved - exact))
    ]
    assert np.array_equal(*answers)


def test_one_image_has_its_verdict_in_the_parameters(client: triton.InferenceServerClient, server: Server) -> None:
    parameters = client.infer("tiny", [tensor(PATCHED[None])], model_version="1.0.0").get_response()["parameters"]
    verdict = server.post("/v1/predict?model=tiny", content=encode(PATCHED)).json()["verdict"]
    assert parameters == {
        "flagged": True,
        "level": "flagged",
        "p_value": verdict["p_value"],
        "alpha": verdict["alpha"],
        "action": "sanitize",
        "neutralized": True,
        "pooled": False,
        "stage": "verdict",
    }


@pytest.mark.parametrize("binary", [True, False])
def test_outputs_on_request(client: triton.InferenceServerClient, binary: bool) -> None:
    names = ["neutral_mask", "saliency", "roi", "roa", "neutral_pixels", "logits", "scores", "layer_deviation", "label"]
    asked = [triton.InferRequestedOutput(name, binary_data=binary) for name in names]
    result = client.infer("tiny", [tensor(BATCH)], outputs=asked)
    assert [output["name"] for output in result.get_response()["outputs"]] == names
    assert all(("data" in output) is not binary for output in result.get_response()["outputs"])
    mask = result.as_numpy("neutral_mask")
    assert mask.shape == (3, SIZE, SIZE)
    assert mask.sum(axis=(1, 2)).tolist() == [0, 36, 0]
    assert np.array_equal(result.as_numpy("roa")[1], mask[1])
    pixels = result.as_numpy("neutral_pixels")
    assert np.array_equal(pixels[0], to_pixels(CLEAN)[0])
    assert (pixels[1][:, mask[1] > 0] == 0.5).all()
    assert result.as_numpy("logits").argmax(axis=1).tolist() == [0, 0, 1]
    assert result.as_numpy("scores").shape == (3, 3)
    assert result.as_numpy("layer_deviation").shape == (3, 2)
    assert labels(result) == ["red", "red", "green"]


def test_binary_can_be_chosen_by_output(client: triton.InferenceServerClient) -> None:
    asked = [triton.InferRequestedOutput("logits", binary_data=True), triton.InferRequestedOutput("label", False)]
    result = client.infer("tiny", [tensor(BATCH)], outputs=asked)
    assert result.get_output("label")["data"] == ["red", "red", "green"]
    assert result.as_numpy("logits").shape == (3, 3)


def test_a_compressed_request(client: triton.InferenceServerClient) -> None:
    for algorithm in ("gzip", "deflate"):
        result = client.infer("tiny", [tensor(BATCH)], request_compression_algorithm=algorithm)
        assert labels(result) == ["red", "red", "green"]


def test_a_blocked_image_alone_and_in_a_batch(client: triton.InferenceServerClient) -> None:
    status, message = refused(client, tensor(PATCHED[None]), model="blocking")
    assert (status, message[:8]) == ("403", "flagged:")
    assert labels(client.infer("blocking", [tensor(CLEAN[None])])) == ["red"]
    asked = [triton.InferRequestedOutput(name) for name in ("label_index", "label", "logits", "flagged", "p_value")]
    result = client.infer("blocking", [tensor(BATCH)], outputs=asked)
    assert result.as_numpy("label_index").tolist() == [0, -1, 1]
    assert labels(result) == ["red", "", "green"]
    assert not result.as_numpy("logits")[1].any()
    assert result.as_numpy("flagged").tolist() == [False, True, False]
    assert result.as_numpy("p_value")[1] > 0
    assert result.get_response()["parameters"]["blocked"] == 1


def test_what_the_client_is_told(client: triton.InferenceServerClient) -> None:
    high, nan, infinite = to_pixels(BATCH), to_pixels(BATCH), to_pixels(BATCH)
    high[2, 0, 0, 0], nan[1, 0, 0, 0], infinite[0, 0, 0, 0] = 1.001, np.nan, -np.inf
    for sent, said in (
        (tensor(BATCH[:, :8]), "UINT8 must have shape ['N', 16, 16, 3]"),
        (tensor(to_pixels(BATCH)[:, :2]), "FP32 must have shape ['N', 3, 16, 16]"),
        (tensor(BATCH, name="other"), "send one, either pixels or image (got other)"),
        (tensor(np.repeat(CLEAN[None], 65, axis=0)), "a batch has 1 to 64 images (got 65)"),
        (tensor(high), "pixels[2]: FP32 values must be finite and in [0, 1]"),
        (tensor(nan), "pixels[1]: FP32"),
        (tensor(infinite, binary=True), "pixels[0]: FP32"),
        (
            tensor(np.array([encode(CLEAN), b"\x89PNG\r\n\x1a\n123"], object), name="image"),
            "image 1 of 0 to 1: PNG without a header",
        ),
    ):
        status, message = refused(client, sent)
        assert (status, said in message) == ("422", True), message
    one = tensor(CLEAN[None])
    assert refused(client, one, tensor(CLEAN[None]))[1].endswith("given twice")
    assert refused(client, one, tensor(np.array([b""], object), name="image"))[1].endswith("(got pixels, image)")
    assert refused(client, tensor(np.array([b"text"], object), name="image")) == (
        "415",
        "the content is not PNG, JPEG, WebP or BMP",
    )
    assert refused(client, one, outputs=[triton.InferRequestedOutput("nothing")])[1].startswith("output 'nothing' does")
    classes = [triton.InferRequestedOutput("logits", class_count=2)]
    assert refused(client, one, outputs=classes)[1].endswith("classification is not supported")
    assert refused(client, one, model="absent")[0] == "404"
    assert refused(client, one, model_version="9.9.9")[0] == "404"
    assert refused(client, tensor(np.zeros((64, SIZE, 700, 3), np.uint8)))[0] == "413"


def request(**changes: Any) -> dict[str, Any]:
    sent = {"name": "pixels", "shape": [1, SIZE, SIZE, 3], "datatype": "UINT8", "data": CLEAN.ravel().tolist()}
    return {"inputs": [sent | changes]}


def framed(head: dict[str, Any], blob: bytes, length: int | None = None) -> tuple[bytes, dict[str, str]]:
    text = json.dumps(head).encode()
    return text + blob, {"Inference-Header-Content-Length": str(len(text) if length is None else length)}


def binary_request(blob: bytes, **changes: Any) -> tuple[bytes, dict[str, str]]:
    return framed(request(data=None, parameters={"binary_data_size": len(blob)}, **changes), blob)


STRINGS = {"name": "image", "shape": [1], "datatype": "BYTES"}
MALFORMED = {
    "no JSON": b"text",
    "no object": b"[]",
    "not UTF-8": b'{"inputs": "\xff"}',
    "no input": {"inputs": []},
    "deep nesting": b'{"inputs": ' + b"[" * 100_000,
    "a huge number": b'{"inputs": ' + b"9" * 100_000 + b"}",
    "shape that is none": request(shape=[-1, SIZE, SIZE, 3]),
    "shape of huge sides": request(shape=[1, 2**62, 2**62, 3]),
    "empty batch": request(shape=[0, SIZE, SIZE, 3], data=[]),
    "datatype that is none": request(datatype="FP16"),
    "too little data": request(data=[1, 2, 3]),
    "ragged data": request(data=[[1], [2, 3]]),
    "text data": request(data=["x"] * CLEAN.size),
    "a long text": request(data=["x" * 100_000, *["x"] * (CLEAN.size - 1)]),
    "objects": request(data=[{}] * CLEAN.size),
    "nothing": request(data=[None] * CLEAN.size),
    "256": request(data=[256] * CLEAN.size),
    "negative": request(data=[-1] * CLEAN.size),
    "fractions": request(data=[0.5] * CLEAN.size),
    "an integer beyond 64 bits": request(data=[10**400] * CLEAN.size),
    "infinite": json.dumps(request(datatype="FP32", shape=[1, 3, SIZE, SIZE])).replace("[120,", "[1e999,").encode(),
    "neither data nor size": request(data=None),
    "both": framed(request(parameters={"binary_data_size": 0}), b""),
    "size that is a text": framed(request(data=None, parameters={"binary_data_size": "1"}), b"1"),
    "size that is negative": framed(request(data=None, parameters={"binary_data_size": -1}), b"1"),
    "size beyond the body": framed(request(data=None, parameters={"binary_data_size": 768}), b"1"),
    "size of another shape": binary_request(b"1"),
    "bytes left": framed(request(), b"1"),
    "header length 0": framed(request(), b"", 0),
    "header length beyond the body": framed(request(), b"", 10**6),
    "header length that is none": (b"{}", {"Inference-Header-Content-Length": "-1"}),
    "BYTES that are no base64": request(**STRINGS, data=["%%%"]),
    "BYTES that are numbers": request(**STRINGS, data=[1]),
    "BYTES of another count": request(**STRINGS, data=["", ""]),
    "BYTES beyond the data": binary_request(struct.pack("<I", 1000) + b"1", **STRINGS),
    "BYTES cut in a length": binary_request(b"12", **STRINGS),
    "binary_data that is no bool": request() | {"outputs": [{"name": "label", "parameters": {"binary_data": 1}}]},
    "an output twice": request() | {"outputs": [{"name": "label"}, {"name": "label"}]},
    "booleans": request(data=[True] * CLEAN.size),
    "one boolean": request(data=[True, *[0] * (CLEAN.size - 1)]),
    "numbers in quotes": request(datatype="FP32", shape=[1, 3, SIZE, SIZE], data=["0.5"] * CLEAN.size),
    "whole numbers with a point": request(data=[1.0] * CLEAN.size),
    "lists of another shape": request(data=CLEAN[None].transpose(0, 3, 1, 2).tolist()),
    "a side in quotes": request(shape=["1", SIZE, SIZE, 3]),
    "a side with a point": request(shape=[1.0, SIZE, SIZE, 3]),
    "a key that does not exist": request() | {"ouputs": [{"name": "label"}]},
    "another model's name": request() | {"model_name": "blocking"},
    "shared memory": request(data=None, parameters={"shared_memory_region": "r", "shared_memory_byte_size": 768}),
    "two header lengths": (
        json.dumps(request()).encode(),
        [("Inference-Header-Content-Length", "2"), ("Inference-Header-Content-Length", "3")],
    ),
    "not gzip": (json.dumps(request()).encode(), {"Content-Encoding": "gzip"}),
    "truncated gzip": (gzip.compress(json.dumps(request()).encode())[:-9], {"Content-Encoding": "gzip"}),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_requests(server: Server, name: str) -> None:
    bad = MALFORMED[name]
    body, headers = bad if isinstance(bad, tuple) else (bad, {})
    response = server.post(URL, content=json.dumps(body) if isinstance(body, dict) else body, headers=headers)
    problem = response.json()
    assert (response.status_code, problem["code"]) == (422, "bad_parameter"), problem
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["error"] == problem["detail"]
    assert len(problem["detail"]) < 400


def test_limits_of_size(server: Server) -> None:
    bomb = gzip.compress(json.dumps(request()).encode() + b" " * 50_000_000)
    for body, headers, code in (
        (b"", {}, (400, "empty_body")),
        (bomb, {"Content-Encoding": "gzip"}, (413, "image_too_large")),
        (json.dumps(request()).encode(), {"Content-Encoding": "br"}, (415, "unsupported_media_type")),
        (bytes(1_000_001), {}, (413, "image_too_large")),
    ):
        response = server.post(URL, content=body, headers=headers)
        assert (response.status_code, response.json()["code"]) == code
        assert response.json()["error"]


def test_plain_json(server: Server) -> None:
    nested = server.post(URL, json=request(data=CLEAN[None].tolist()))
    assert nested.headers["content-type"] == "application/json"
    outputs = {output["name"]: output for output in nested.json()["outputs"]}
    assert outputs["label"] == {"name": "label", "shape": [1], "datatype": "BYTES", "data": ["red"]}
    assert outputs["flagged"]["data"] == [False]
    assert server.post("/v2/nothing").json()["error"]
    assert httpx.get(server.url + URL).json()["code"] == "method_not_allowed"


def test_what_the_client_of_kserve_sends(server: Server) -> None:
    """Its `InferRequest.to_rest` repeats the model's name and makes up an id."""
    kserve = request() | {"id": "e3b0c442-98fc-1c14-9afb-f4c8996fb924", "model_name": "tiny"}
    kserve["outputs"] = [{"name": "label", "parameters": {"binary_data": False}}]
    answer = server.post(URL, json=kserve).json()
    assert (answer["id"], answer["outputs"][0]["data"]) == (kserve["id"], ["red"])
    whole = request(datatype="FP32", shape=[1, 3, SIZE, SIZE], data=[1] * CLEAN.size)
    assert server.post(URL, json=whole).status_code == 200


def test_counted_by_image_and_by_refused_request(server: Server, client: triton.InferenceServerClient) -> None:
    before = server.metrics()
    client.infer("tiny", [tensor(BATCH)])
    server.post(URL, json=request(shape=[1]))
    after = server.metrics()
    series = 'palisade_requests_total{model="tiny",outcome="%s"}'
    grown = {name: after[series % name] - before[series % name] for name in ("ok", "flagged", "rejected")}
    assert grown == {"ok": 2, "flagged": 1, "rejected": 1}


def test_documented(server: Server) -> None:
    document = httpx.get(server.url + "/openapi.json").json()
    path = document["paths"]["/v2/models/{model}/infer"]["post"]
    assert {"200", "400", "401", "403", "404", "408", "413", "415", "422", "429", "503"} <= set(path["responses"])
    assert path["requestBody"]["content"].keys() == {"application/json", "application/octet-stream"}


def stranger(app: FastAPI, method: str, url: str, **sent: Any) -> httpx.Response:
    """A request that a proxy sent on: nobody of this machine."""

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, url, headers={"X-Forwarded-For": "192.0.2.1"}, **sent)

    return asyncio.run(send())


def test_disclosure(pipeline: Pipeline) -> None:
    app = create_api(Settings(allow_unauthenticated=True, disclosure="label", label_quantum=0.001))
    app.state.registry = Registry([pipeline])
    answer = stranger(app, "POST", URL, json=request()).json()
    assert [output["name"] for output in answer["outputs"]] == ["label_index", "label"]
    assert answer.keys() == {"model_name", "outputs"}
    for name in ("p_value", "saliency", "scores"):
        refused = stranger(app, "POST", URL, json=request() | {"outputs": [{"name": name}]})
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    metadata = stranger(app, "GET", "/v2/models/tiny").json()
    assert [output["name"] for output in metadata["outputs"]] == ["label_index", "label"]
    assert "versions" not in metadata
    assert stranger(app, "GET", "/v2/models/tiny/versions/1.0.0").status_code == 403
    assert stranger(app, "POST", "/v2/repository/index").json()[0]["version"] == ""


def test_a_batch_costs_as_many_tokens_as_it_has_images(pipeline: Pipeline) -> None:
    app = create_api(Settings(allow_unauthenticated=True, rate=0.01, burst=4))
    app.state.registry = Registry([pipeline])
    batch = request(shape=[3, SIZE, SIZE, 3], data=BATCH.ravel().tolist())
    answer = stranger(app, "POST", URL, json=batch)
    assert answer.status_code == 200
    assert answer.json()["parameters"].keys() == {"any_flagged", "flagged", "action"}
    limited = stranger(app, "POST", URL, json=batch)
    assert (limited.status_code, limited.json()["code"]) == (429, "rate_limited")
    assert limited.headers["retry-after"]
