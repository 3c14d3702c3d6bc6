"""GET /v1/models/{name}/report: who may read a bundle's report, which bytes, and under which policy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.core.loading import read_manifest, write_manifest
from gateway.core.manifest import REPORT
from gateway.settings import Settings
from gateway.versions.registry import Registry, load_pipeline
from tests.gateway.access.test_auth import Gateway, code
from tests.gateway.tiny import write_bundle

URL = "/v1/models/tiny/report"
BODY = b"<!doctype html><title>report</title><script>document.title = 'run'</script>"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle that ships a report."""
    folder = write_bundle(tmp_path / "models" / "tiny")
    (folder / REPORT).write_bytes(BODY)
    write_manifest(folder, read_manifest(folder))
    return folder


def serving(folder: Path, keys: Path) -> Iterator[Gateway]:
    gateway = Gateway(keys, registry=Registry([load_pipeline(folder, Settings(threads=1))]))
    yield gateway
    gateway.app.state.dispatcher.close()


@pytest.fixture
def gateway(folder: Path, tmp_path: Path) -> Iterator[Gateway]:
    yield from serving(folder, tmp_path)


def test_the_report_is_what_the_bundle_ships(gateway: Gateway) -> None:
    response = gateway.call("GET", URL, "reviewer")
    assert (response.status_code, response.content) == (200, BODY)
    assert response.headers["content-type"] == "text/html; charset=utf-8"


def test_the_report_can_do_nothing(gateway: Gateway) -> None:
    headers = gateway.call("GET", URL, "admin").headers
    directives = [directive.split(" ") for directive in headers["content-security-policy"].split("; ")]
    policy = {name: sources for name, *sources in directives}
    assert policy.pop("sandbox") == []  # no allow-scripts, allow-same-origin, allow-forms, allow-popups, ...
    assert policy.pop("style-src") == ["'unsafe-inline'"]
    assert policy.pop("img-src") == ["data:"]
    assert policy.keys() == {"default-src", "form-action", "frame-ancestors", "base-uri"}
    assert all(sources == ["'none'"] for sources in policy.values())
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "private, no-cache"


def test_an_unchanged_report_is_not_sent_again(gateway: Gateway) -> None:
    tag = gateway.call("GET", URL, "admin").headers["etag"]
    again = gateway.call("GET", URL, "admin", headers={"If-None-Match": tag})
    assert (again.status_code, again.content) == (304, b"")
    assert gateway.call("GET", URL, "admin", headers={"If-None-Match": '"another"'}).status_code == 200


def test_only_callers_who_see_the_card_see_the_report(gateway: Gateway) -> None:
    assert code(gateway.call("GET", URL)) == (401, "unauthorized")
    assert code(gateway.call("GET", URL, "client")) == (403, "forbidden")
    # Whether a model exists, or has a report, is not for them either.
    assert code(gateway.call("GET", "/v1/models/none/report", "client")) == (403, "forbidden")


def test_what_is_not_there(gateway: Gateway, tmp_path: Path) -> None:
    assert code(gateway.call("GET", "/v1/models/none/report", "admin")) == (404, "unknown_model")
    for url in (f"{URL}/", f"{URL}.html", f"{URL}/manifest.json", "/v1/models/..%2ftiny/report"):
        assert gateway.call("GET", url, "admin").status_code == 404
    assert gateway.call("GET", URL + "?file=manifest.json", "admin").status_code == 422
    bare = write_bundle(tmp_path / "bare" / "tiny")
    for served in serving(bare, bare.parent):
        assert code(served.call("GET", URL, "admin")) == (404, "not_found")
        # Only what the manifest lists is served.
        (bare / REPORT).write_bytes(BODY)
        assert code(served.call("GET", URL, "admin")) == (404, "not_found")


def test_a_report_that_was_changed_after_loading_is_refused(gateway: Gateway, folder: Path) -> None:
    (folder / REPORT).write_bytes(BODY + b" ")
    response = gateway.call("GET", URL, "admin")
    assert code(response) == (404, "not_found")
    assert "changed" in response.json()["detail"]
    (folder / REPORT).unlink()
    assert code(gateway.call("GET", URL, "admin")) == (404, "not_found")


def test_the_openapi_document_has_the_route(gateway: Gateway) -> None:
    operation = gateway.call("GET", "/openapi.json", "admin").json()["paths"]["/v1/models/{name}/report"]["get"]
    assert "text/html" in operation["responses"]["200"]["content"]
    assert {"401", "403", "404", "429", "503"} <= set(operation["responses"])
