"""Bundles from an S3 server (moto's) and an OCI registry (Debian's docker-registry), pulled and served."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from gateway.errors import PullFailed
from gateway.pulling.pull import pull
from gateway.trust.admission import Demands
from gateway.trust.signatures import Signer, sign
from tests.gateway.server import ROOT, free_port
from tests.gateway.trust.keys import write_pair

pytestmark = pytest.mark.e2e

NAME = "gtsrb"
VERSION = (ROOT / "models" / NAME / "manifest.json").read_text().split('"version": "')[1].split('"')[0]


@contextmanager
def running(command: list[str], url: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            assert process.poll() is None, command
            try:
                httpx.get(url, timeout=1)
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pair(tmp_path_factory.mktemp("keys"), "ours")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, keys: tuple[Path, Path]) -> Path:
    folder = Path(shutil.copytree(ROOT / "models" / NAME, tmp_path_factory.mktemp("signed") / NAME))
    sign(folder, Signer(keys[0]))
    return folder


@pytest.fixture(scope="module")
def s3(bundle: Path) -> Iterator[str]:
    s3fs = pytest.importorskip("s3fs")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    variables = {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        with running([sys.executable, "-m", "moto.server", "-p", str(port)], url):
            files = s3fs.S3FileSystem(skip_instance_cache=True)
            files.mkdir("models")
            files.put(str(bundle) + "/", f"models/{NAME}", recursive=True)
            yield f"s3://models/{NAME}"


@pytest.fixture(scope="module")
def registry(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    provider = pytest.importorskip("oras.provider")
    if shutil.which("docker-registry") is None:
        pytest.skip("docker-registry is not installed")
    folder, port = tmp_path_factory.mktemp("registry"), free_port()
    (folder / "config.yml").write_text(
        f"version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {folder}\nhttp:\n  addr: 127.0.0.1:{port}\n"
    )
    with running(["docker-registry", "serve", str(folder / "config.yml")], f"http://127.0.0.1:{port}/v2/"):
        files = [str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file()]
        # As the command `oras push` names layers; the package takes names without folders unless it is told.
        titles = {name: {"org.opencontainers.image.title": name} for name in files}
        (folder / "titles.json").write_text(json.dumps(titles))
        before = Path.cwd()
        os.chdir(bundle)
        try:
            target = f"127.0.0.1:{port}/models/{NAME}:{VERSION}"
            provider.Registry(insecure=True).push(target, files=files, annotation_file=str(folder / "titles.json"))
        finally:
            os.chdir(before)
        yield f"oci://127.0.0.1:{port}/models/{NAME}:{VERSION}"


@pytest.mark.parametrize("kind", ["s3", "registry"])
def test_pulled_checked_and_served(
    kind: str, keys: tuple[Path, Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue(kind)
    assert pull(url, tmp_path / "models", Demands((keys[1],))).fetched
    environment = os.environ | {
        "PALISADE_MODELS": url,
        "PALISADE_TRUST": str(keys[1]),
        "PALISADE_CACHE_DIR": str(tmp_path / "cache"),
    }
    sample = ROOT / "models" / NAME / "samples" / "clean_0.png"
    command = [sys.executable, "-m", "gateway.cli", "predict", str(sample), "--json"]
    answered = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert answered.returncode == 0, answered.stderr
    assert f'"version": "{VERSION}"' in answered.stdout or VERSION in answered.stdout


def test_a_pull_cut_off_in_the_middle(s3: str, keys: tuple[Path, Path], tmp_path: Path) -> None:
    into = tmp_path / "models"
    command = [sys.executable, "-m", "gateway.cli", "pull", s3, "--into", str(into), "--trust", str(keys[1])]
    process = subprocess.Popen(command)
    while process.poll() is None and not list(into.glob(".*.part/networks.safetensors")):
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert not (into / NAME / VERSION).exists()
    assert pull(s3, into, Demands((keys[1],))).fetched


def test_no_such_bundle(s3: str, registry: str, tmp_path: Path) -> None:
    for url in (f"{s3}-none", registry.replace("models/", "others/")):
        with pytest.raises(PullFailed):
            pull(url, tmp_path)
