"""A real server under hostile requests: no 5xx, one error shape, bounded memory, the same worker at the end."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote, urlencode

import httpx
import psutil
import pytest
import schemathesis
from hypothesis import given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok

from tests.fuzz.conftest import CASES
from tests.fuzz.hostile import content_types, uploads
from tests.gateway.server import Server, start, stop, wait_until_ready
from tests.gateway.tiny import clean_image, encode, write_bundle

GROWTH_BYTES = 60_000_000
CLIENT = httpx.Client(timeout=30)
ROUTES = st.sampled_from(["/v1/predict", "/v1/explain", "/v1/predict?explain=all", "/v2/models/tiny/infer", "/v1/none"])


def resident(server: Server) -> dict[int, int]:
    """Resident bytes of the server's processes by pid."""
    return {p.pid: p.memory_info().rss for p in psutil.Process(server.process.pid).children(recursive=True)}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("fuzz")
    models = write_bundle(folder / "models" / "tiny").parent
    # The index of campaigns takes its memory, which is bounded, as queries touch its pages: here a small one.
    one = start(models, folder, max_body_bytes=300_000, body_timeout=2.0, campaign_queries=5_000)
    wait_until_ready(one)
    for _ in range(50):  # what memory it needs by itself
        one.post(content=encode(clean_image()))
        one.post("/v1/explain", content=encode(clean_image()))
    before = resident(one)
    yield one
    assert one.process.poll() is None
    after = resident(one)
    assert set(after) == set(before), "a worker died"
    assert max(after[pid] - before[pid] for pid in before) < GROWTH_BYTES
    assert one.post(content=encode(clean_image())).status_code == 200
    stop(one)
    assert "Traceback" not in one.log.read_text()


def check(response: httpx.Response) -> None:
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        body = response.json()
        assert response.headers["content-type"] == "application/problem+json"
        assert (body["status"], body["type"]) == (response.status_code, f"urn:palisade:error:{body['code']}")


@given(uploads, content_types, ROUTES)
def test_uploads(server: Server, data: bytes, content_type: str, route: str) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    check(CLIENT.post(server.url + route, content=data, headers=headers))


@given(uploads, st.sampled_from(["image", "file", ""]), content_types, st.text(max_size=20))
def test_forms(server: Server, data: bytes, field: str, content_type: str, name: str) -> None:
    check(CLIENT.post(server.url + "/v1/predict", files={field: (name, data, content_type)}))


@given(st.text(max_size=40), st.dictionaries(st.sampled_from(["model", "explain", "top_k"]), st.text(max_size=20)))
def test_paths_and_queries(server: Server, path: str, query: dict[str, str]) -> None:
    asked = urlencode(query)
    check(CLIENT.get(f"{server.url}/{quote(path)}?{asked}"))
    check(CLIENT.post(f"{server.url}/v1/predict?{asked}", content=encode(clean_image())))


@pytest.mark.skipif(not CASES, reason="`make fuzz` runs it")
def test_the_openapi_document(server: Server) -> None:
    """Requests that schemathesis makes of our own description."""
    # The stream of events never ends; tests of the audit trail read it.
    schema = schemathesis.openapi.from_url(server.url + "/docs.json").exclude(path_regex="/stream$")

    for operation in schema.get_all_operations():
        assert isinstance(operation, Ok)
        case_strategy = operation.ok().as_strategy()

        @settings(max_examples=max(1, CASES // 25))
        @given(case_strategy)
        def one(case: schemathesis.Case) -> None:
            case.call_and_validate(base_url=server.url, checks=[not_a_server_error])

        one()
