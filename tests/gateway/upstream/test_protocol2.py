"""Rows on the wire and answers off it, sound and hostile."""

from __future__ import annotations

import json
from http.client import HTTPMessage

import numpy as np
import pytest

from gateway.core.preprocessing import Normalisation
from gateway.core.upstream import PlainHttp, Protocol2, Upstream, checked_url
from gateway.errors import ConfigError, UpstreamInvalid
from gateway.upstream.connection import Answer, Connection
from gateway.upstream.describe import describe
from gateway.upstream.opening import moved
from gateway.upstream.protocol2 import output_of, request_of
from tests.gateway.tiny import SIZE
from tests.gateway.upstream.fake import LENGTH, Fake, faked
from tests.gateway.upstream.tiny_guard import fake_server

SPEC = Protocol2(url="http://host/v2/models/net", input="x", output="y")
ROWS = np.arange(2 * 3 * 2 * 2, dtype=np.float32).reshape(2, 3, 2, 2) / 255


def answer(body: object, *, blob: bytes = b"", length: object = None) -> Answer:
    head = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = HTTPMessage()
    if blob or length is not None:
        headers[LENGTH] = str(len(head) if length is None else length)
    return Answer(head + blob, headers)


def nested(depth: int) -> list[object]:
    made: list[object] = [1]
    for _ in range(depth):
        made = [made]
    return made


def output(**fields: object) -> dict[str, object]:
    return {"outputs": [{"name": "y", "datatype": "FP32", "shape": [2, 3], "data": [1, 2, 3, 4, 5, 6], **fields}]}


def test_json_and_binary_tensors_carry_the_same_numbers() -> None:
    body, _ = request_of(SPEC, ROWS)
    plain = json.loads(body)["inputs"][0]
    assert plain["shape"] == [2, 3, 2, 2]
    np.testing.assert_allclose(np.array(plain["data"], np.float32), ROWS.ravel())
    body, headers = request_of(SPEC.model_copy(update={"binary": True}), ROWS)
    end = int(headers[LENGTH])
    assert json.loads(body[:end])["inputs"][0]["parameters"] == {"binary_data_size": ROWS.nbytes}
    np.testing.assert_array_equal(np.frombuffer(body[end:], "<f4"), ROWS.ravel())


@pytest.mark.parametrize(("datatype", "dtype"), [("FP16", np.float16), ("FP32", np.float32), ("FP64", np.float64)])
def test_json_numbers_are_exact(datatype: str, dtype: type) -> None:
    rows = np.random.default_rng(0).random(ROWS.shape).astype(np.float32)
    body, _ = request_of(SPEC.model_copy(update={"datatype": datatype}), rows)
    sent: np.ndarray = np.array(json.loads(body)["inputs"][0]["data"], dtype)
    np.testing.assert_array_equal(sent, rows.astype(dtype).ravel())


def test_pythons_own_nan_is_read() -> None:
    text = b'{"outputs":[{"name":"y","datatype":"FP32","shape":[1,3],"data":[NaN,1.0,-Infinity]}]}'
    answer = Answer(text, HTTPMessage())
    values = output_of("y", 1, answer)
    assert np.isnan(values[0, 0])
    assert values[0, 2] == -np.inf


def test_bytes_with_channels_last() -> None:
    body, _ = request_of(SPEC.model_copy(update={"datatype": "UINT8", "layout": "nhwc"}), ROWS)
    tensor = json.loads(body)["inputs"][0]
    assert tensor["shape"] == [2, 2, 2, 3]
    assert tensor["data"][:3] == [0, 4, 8]


@pytest.mark.parametrize(
    "sound",
    [
        answer(output()),
        answer(output(data=[[1, 2, 3], [4, 5, 6]])),
        answer(output(shape=[2, 3, 1, 1])),
        answer(output(datatype="FP64", data=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])),
        answer(
            {
                "outputs": [
                    {"name": "z", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 5}},
                    {"name": "y", "shape": [2, 3], "datatype": "FP16", "parameters": {"binary_data_size": 12}},
                ]
            },
            blob=b"12345" + np.arange(1, 7, dtype="<f2").tobytes(),
        ),
    ],
)
def test_a_sound_answer(sound: Answer) -> None:
    np.testing.assert_array_equal(output_of("y", 2, sound), np.arange(1, 7, dtype=np.float32).reshape(2, 3))


def test_null_is_no_number() -> None:
    assert np.isnan(output_of("y", 2, answer(output(data=[None, 2, 3, 4, 5, 6])))[0, 0])


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (answer(b"<html>"), "not JSON"),
        (answer(b"[" * 100_000), "not JSON"),
        (answer([]), "no list of outputs"),
        (answer({"outputs": {"y": 1}}), "no list of outputs"),
        (answer({"outputs": []}), "no output 'y'"),
        (answer(output(name="other")), "no output 'y'"),
        (answer(output(shape=None)), "states no shape"),
        (answer(output(shape=[2, "3"])), "states no shape"),
        (answer(output(shape=[3, 2])), "has the shape"),
        (answer(output(shape=[2, 3, 2])), "has the shape"),
        (answer(output(shape=[2, 10**12])), "has not the numbers"),
        (answer(output(shape=[2, 3] + [2**63 - 1] * 300_000)), "has the shape"),  # a product of years
        (answer(output(data=nested(900))), "has not the numbers"),
        (answer(output(datatype="BYTES")), "is BYTES"),
        (answer(output(data=[1, 2])), "has not the numbers"),
        (answer(output(data="text")), "has not the numbers"),
        (answer(output(data=[True, 2, 3, 4, 5, 6])), "has not the numbers"),
        (answer(output(data=[10**400, 2, 3, 4, 5, 6])), "has not the numbers"),
        (answer(output(parameters={"binary_data_size": 24})), "binary_data_size is 24, 0 bytes follow"),
        (answer(output(parameters={"binary_data_size": -1}), blob=b"1234"), "binary_data_size is -1"),
        (answer(output(parameters={"binary_data_size": 4}), blob=b"1234"), "has not the numbers"),
        (answer(output(), length=10**9), LENGTH),
        (answer(output(), length="-1"), LENGTH),
    ],
)
def test_a_hostile_answer_is_named(body: Answer, reason: str) -> None:
    with pytest.raises(UpstreamInvalid, match=reason) as caught:
        output_of("y", 2, body)
    assert len(caught.value.detail) < 200


def test_a_server_describes_its_model() -> None:
    with faked(fake_server(max_batch=8)) as fake, Connection(timeout=5) as connection:
        found = describe(fake.url, connection)
        assert found.protocol == Protocol2(url=f"{fake.url}/v2/models/net", input="x", output="logits", binary=True)
        assert (found.size, found.channels, found.max_rows) == ((SIZE, SIZE), 3, 8)
        assert describe(f"{fake.url}/v2/models/net", connection) == found
        fake.shape, fake.binary, fake.max_batch = [4, -1, -1, 3], False, None
        other = describe(fake.url, connection)
        assert (other.protocol.layout, other.protocol.batch, other.protocol.binary) == ("nhwc", 4, False)
        assert (other.size, other.max_rows) == (None, 4)
        fake.shape = [-1, 7]
        with pytest.raises(ConfigError, match="state the shape where the server is configured"):
            describe(fake.url, connection)
        fake.shape, fake.datatype = [-1, 3, 8, 8], "BYTES"
        with pytest.raises(ConfigError, match="is BYTES, not FP32"):
            describe(fake.url, connection)


def test_odd_metadata_of_a_server_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    described = Fake.metadata
    with faked(fake_server()) as fake, Connection(timeout=5) as connection:
        for odd, reason in (
            ({"datatype": None}, "is None, not FP32"),
            ({"datatype": ["FP32"]}, r"is \['FP32'\], not FP32"),
            ({"shape": None}, "state no inputs"),
            ({"shape": ["-1", 3, 8, 8]}, "state no inputs"),
        ):
            tensor = {"name": "x", "datatype": "FP32", "shape": [-1, 3, 8, 8], **odd}
            monkeypatch.setattr(Fake, "metadata", lambda fake, tensor=tensor: described(fake) | {"inputs": [tensor]})
            with pytest.raises(ConfigError, match=reason):
                describe(fake.url, connection)


@pytest.mark.parametrize("extensions", [None, 3, "binary_tensor_data", {"binary_tensor_data": True}])
def test_extensions_that_are_no_list_are_none(extensions: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fake, "server", lambda _: {"name": "fake", "extensions": extensions})
    with faked(fake_server()) as fake, Connection(timeout=5) as connection:
        assert not describe(fake.url, connection).protocol.binary


def test_a_name_of_any_characters_is_asked_for() -> None:
    with faked(fake_server(names=["modèle n° 1/a?b"])) as fake, Connection(timeout=5) as connection:
        protocol = describe(fake.url, connection).protocol
        assert protocol.url == f"{fake.url}/v2/models/mod%C3%A8le%20n%C2%B0%201%2Fa%3Fb"
        assert describe(fake.url, connection, model="modèle n° 1/a?b").protocol == protocol


@pytest.mark.parametrize(
    "url",
    [
        "http://host:99999",
        "http://host:0",
        "http://host:port",
        "http://a..b",
        f"http://{'a' * 64}",
        "http://[::1",
        "http://host/my model",
        "http://host/modèle",
        "http://host/a\nb",
    ],
)
def test_an_address_that_cannot_be_asked_is_refused(url: str) -> None:
    with Connection(timeout=5) as connection, pytest.raises(ConfigError, match="--upstream"):
        describe(url, connection)
    assert checked_url("http://bücher.example:80/a%20b") == "http://bücher.example:80/a%20b"
    assert checked_url("https://[::1]:8000/") == "https://[::1]:8000"


def test_a_bundle_moves_with_its_server() -> None:
    upstream = Upstream(protocol=SPEC, values="logits", rows=5, maps=4, probe=[0.5, 0.5])
    for url, place in {
        "http://other:8000": "http://other:8000/v2/models/net",
        "http://other:8000/prefix/": "http://other:8000/prefix/v2/models/net",
        "http://other/v2/models/net2/versions/3": "http://other/v2/models/net2/versions/3",
    }.items():
        assert moved(upstream, url).protocol.url == place
    plain = upstream.model_copy(update={"protocol": PlainHttp(url="http://host/p?model=a")})
    assert moved(plain, "http://other:9").protocol.url == "http://other:9/p?model=a"
    assert moved(plain, "http://other:9/q").protocol.url == "http://other:9/q"
    with pytest.raises(ConfigError, match="PALISADE_UPSTREAM='ftp://x'"):
        moved(upstream, "ftp://x")
    with pytest.raises(ValueError, match="PALISADE_UPSTREAM_TOKEN"):
        checked_url("http://user@host")


def test_normalisation_is_that_of_networks_trained_elsewhere() -> None:
    steps = Normalisation(channel_order="bgr", scale="byte", mean=[104, 117, 123], std=[1, 1, 2])
    found = steps.apply(ROWS)
    np.testing.assert_allclose(found[:, 0], ROWS[:, 2] * 255 - 104, atol=1e-4)
    np.testing.assert_allclose(found[:, 2], (ROWS[:, 0] * 255 - 123) / 2, atol=1e-4)
    assert Normalisation().apply(ROWS) is ROWS


def test_another_palisade_gets_float32() -> None:
    with faked(fake_server()) as fake, Connection(timeout=5) as connection:
        fake.shape, fake.datatype, fake.platform = [-1, SIZE, SIZE, 3], "UINT8", "palisade_onnx"
        protocol = describe(fake.url, connection).protocol
    assert (protocol.datatype, protocol.layout) == ("FP32", "nchw")
