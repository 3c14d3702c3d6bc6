"""The console's routes in process: the page, its headers and assets, and the samples of a model."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from PIL import Image

from gateway.app import create_api
from gateway.console.assets import FOLDER, load_assets
from gateway.core.loading import read_manifest, write_manifest
from gateway.settings import Settings
from gateway.versions.registry import Registry, load_pipeline
from tests.gateway.server import ROOT
from tests.gateway.tiny import clean_image, encode, patched_image, write_bundle

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
MARKUP = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function")
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastAPI]:
    folder = write_bundle(tmp_path_factory.mktemp("models") / "tiny")
    samples = folder / "samples"
    samples.mkdir()
    for name, image in {"clean_0.png": clean_image(), "patched_0.png": patched_image()}.items():
        (samples / name).write_bytes(encode(image) + b"trailing bytes that a reader of PNG ignores")
    (samples / "answers.json").write_text(json.dumps({"clean_0.png": {"truth": HOSTILE, "flagged": False}}))
    write_manifest(folder, read_manifest(folder))
    app = create_api(Settings())
    app.state.registry = Registry([load_pipeline(folder, Settings(threads=1))])
    # Not listed, as if it had been added while the gateway runs.
    (samples / "secret.png").write_bytes(encode(clean_image()))
    yield app
    app.state.dispatcher.close()


def get(app: FastAPI, url: str, **headers: str) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get(url, headers=headers)

    return asyncio.run(send())


def page(app: FastAPI) -> httpx.Response:
    return get(app, "/", **BROWSER)


def linked(html: str) -> list[str]:
    return re.findall(r'(?:src|href)="(console/[^"]+)"', html)


def test_browsers_get_the_page_and_others_the_index(api: FastAPI) -> None:
    html = page(api)
    assert html.status_code == 200
    assert html.headers["content-type"] == "text/html; charset=utf-8"
    assert "<title>Palisade</title>" in html.text
    for accept in ("*/*", "application/json"):
        index = get(api, "/", Accept=accept)
        assert index.json()["name"] == "palisade"
        assert index.headers["vary"] == html.headers["vary"] == "Accept"


def test_page_and_assets_have_a_strict_policy(api: FastAPI) -> None:
    html = page(api)
    for response in (html, get(api, "/" + linked(html.text)[0])):
        policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert "camera=()" in response.headers["permissions-policy"]


def test_the_page_names_assets_that_exist_and_may_be_kept_forever(api: FastAPI) -> None:
    urls = linked(page(api).text)
    assert any(url.endswith(".js") for url in urls)
    assert any(url.endswith(".css") for url in urls)
    for url in urls:
        response = get(api, f"/{url}")
        assert response.status_code == 200, url
        assert "immutable" in response.headers["cache-control"]
        again = get(api, f"/{url}", **{"If-None-Match": response.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


def test_assets_of_another_release_are_not_kept(api: FastAPI) -> None:
    response = get(api, "/console/0000000000000000/js/main.js")
    assert (response.status_code, response.headers["cache-control"]) == (200, "no-cache")


@pytest.mark.parametrize("name", ["../assets.py", "%2e%2e/assets.py", "js/none.js", "", "/etc/passwd", "js\\main.js"])
def test_nothing_else_is_served_as_an_asset(api: FastAPI, name: str) -> None:
    assert get(api, f"/console/x/{name}").status_code == 404


def test_every_module_that_is_imported_exists() -> None:
    modules = list(FOLDER.rglob("*.js"))
    assert modules
    for path in modules:
        if "vendor" in path.parts:
            continue
        static = r'^(?:import|export) [^;]*?from "([^"]+)";'
        dynamic = r'\bimport\("([^"]+)"\)'
        for target in map("".join, re.findall(f"{static}|{dynamic}", path.read_text(), re.MULTILINE)):
            assert target.startswith("."), f"{path.name}: {target}"
            assert (path.parent / target).is_file(), f"{path.name}: {target}"


def test_assets_load_nothing_from_elsewhere_and_make_no_markup() -> None:
    names_only = {"http://www.w3.org/2000/svg"}
    for name, asset in load_assets().items():
        text = asset.body.decode()
        assert set(re.findall(r"https?://[^\s\"'`<>)]+", text)) <= names_only, name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            name
        )


def test_vendored_code_comes_with_its_licence_and_is_in_the_notice() -> None:
    folders = [path for path in (FOLDER / "vendor").iterdir() if path.is_dir()]
    assert folders
    notice = (ROOT / "NOTICE").read_text()
    for folder in folders:
        assert "Permission is hereby granted" in (folder / "LICENSE.txt").read_text(), folder.name
        assert f"gateway/console/static/vendor/{folder.name}:" in notice


def test_the_console_has_no_titles_of_figures_that_the_card_has() -> None:
    """Titles are written once, in the card; the console only knows the keys that it draws or headlines."""
    text = "".join(path.read_text() for path in (FOLDER / "js").rglob("*.js"))
    assert not re.search(r"accuracy_answering|autoattack_\d|pgd50_|recovered_patch|joint_excess", text)


def test_the_page_has_no_inline_script_or_style(api: FastAPI) -> None:
    html = page(api).text
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", html)
    assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", html))


def test_samples_are_listed_with_what_was_recorded(api: FastAPI) -> None:
    listed: list[dict[str, Any]] = get(api, "/v1/models/tiny/samples").json()["samples"]
    assert [(sample["file"], sample["kind"]) for sample in listed] == [
        ("clean_0.png", "clean"),
        ("patched_0.png", "patched"),
    ]
    assert listed[0]["truth"] == HOSTILE
    assert listed[1]["truth"] is None


def test_a_sample_is_encoded_again(api: FastAPI) -> None:
    response = get(api, "/v1/models/tiny/samples/clean_0.png")
    assert (response.status_code, response.headers["content-type"]) == (200, "image/png")
    assert b"trailing" not in response.content
    with Image.open(io.BytesIO(response.content)) as image, Image.open(io.BytesIO(encode(clean_image()))) as original:
        assert image.tobytes() == original.convert("RGB").tobytes()


@pytest.mark.parametrize(
    "file",
    [
        "answers.json",
        "secret.png",
        "..%2fmanifest.json",
        "../manifest.json",
        "%2e%2e%2fdefense.onnx",
        "none.png",
        "clean_0.png%00",
        "..%2fsamples%2fclean_0.png",
        "....//clean_0.png",
        "%2fetc%2fpasswd",
    ],
)
def test_only_listed_samples_are_served(api: FastAPI, file: str) -> None:
    response = get(api, f"/v1/models/tiny/samples/{file}")
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"


def test_samples_of_an_unknown_model(api: FastAPI) -> None:
    for url in ("/v1/models/none/samples", "/v1/models/none/samples/clean_0.png"):
        assert get(api, url).json()["code"] == "unknown_model"


def test_a_bundle_without_samples_offers_none(bundle_folder: Path) -> None:
    app = create_api(Settings())
    app.state.registry = Registry([load_pipeline(bundle_folder, Settings(threads=1))])
    assert get(app, "/v1/models/tiny/samples").json() == {"samples": []}
    app.state.dispatcher.close()
