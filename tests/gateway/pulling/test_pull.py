"""Bundles from elsewhere: whole, sound and trusted, or not at all."""

from __future__ import annotations

import math
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest
from typer.testing import CliRunner

from gateway.cli.main import app
from gateway.core.loading import load_bundle
from gateway.core.manifest import MANIFEST, SIGNATURE
from gateway.errors import BundleError, ConfigError, PullFailed, PullTimeout, UntrustedBundle
from gateway.pulling import pull as pull_module
from gateway.pulling import registries
from gateway.pulling.cache import fetch_sources
from gateway.pulling.hurry import Hurry
from gateway.pulling.pull import pull
from gateway.settings import Settings, load_settings
from gateway.trust.admission import Demands
from gateway.trust.signatures import Signer, sign
from gateway.versions.registry import load_registry
from tests.gateway.pulling.registry import Lie, Registry, serving
from tests.gateway.tiny import write_bundle
from tests.gateway.trust.keys import write_pair


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull_module, "_PAUSE", 0.0)


def _left(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_from_a_folder_and_not_twice(bundle_folder: Path, tmp_path: Path) -> None:
    url = bundle_folder.as_uri()
    first, again = pull(url, tmp_path), pull(url, tmp_path)
    assert first.folder == again.folder == tmp_path / "tiny" / "1.0.0"
    assert (first.fetched, again.fetched) == (True, False)
    assert load_bundle(first.folder).manifest_sha256 == load_bundle(bundle_folder).manifest_sha256
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
    other = write_bundle(tmp_path / "other", gain=5.0)
    with pytest.raises(BundleError, match="another bundle of that name"):
        pull(other.as_uri(), tmp_path)


def test_only_files_of_the_manifest_are_fetched(tmp_path: Path) -> None:
    source = write_bundle(tmp_path / "source")
    (source / "more.txt").write_text("more")
    assert not (pull(source.as_uri(), tmp_path / "models").folder / "more.txt").exists()


def test_from_a_registry(bundle_folder: Path, tmp_path: Path) -> None:
    with serving(Registry(bundle_folder)) as registry:
        pulled = pull(f"{registry.reference}:1.0.0", tmp_path / "tag")
        by_digest = pull(f"{registry.reference}@{registry.digest}", tmp_path / "digest")
        with pytest.raises(PullFailed, match="no such artefact"):
            pull(f"{registry.reference}:2.0.0", tmp_path / "tag")
    assert load_bundle(pulled.folder).manifest_sha256 == load_bundle(by_digest.folder).manifest_sha256
    with pytest.raises(PullFailed):
        pull(f"{registry.reference}:1.0.0", tmp_path / "gone")


def _other_bytes(digest: str, data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1]) if len(data) > 1000 else data


def _longer(digest: str, data: bytes) -> bytes:
    return data + b" "


LIES: dict[str, Lie] = {
    "other bytes of the same length": _other_bytes,
    "more bytes": _longer,
    "cut off in the middle": lambda digest, data: None,
    "no JSON": lambda digest, data: b"<html>",
}


@pytest.mark.parametrize("what", LIES)
@pytest.mark.parametrize("pinned", [False, True])
def test_a_registry_that_lies(bundle_folder: Path, tmp_path: Path, what: str, pinned: bool) -> None:
    with serving(Registry(bundle_folder, LIES[what])) as registry:
        reference = f"@{registry.digest}" if pinned else ":1.0.0"
        with pytest.raises((PullFailed, BundleError)) as raised:
            pull(registry.reference + reference, tmp_path)
    assert "\n" not in raised.value.detail
    assert _left(tmp_path) == []


def test_a_source_that_fails_once_is_asked_again(bundle_folder: Path, tmp_path: Path) -> None:
    failed: set[str] = set()

    def once(digest: str, data: bytes) -> bytes | None:
        if digest in failed:
            return data
        failed.add(digest)
        return None

    with serving(Registry(bundle_folder, once)) as registry:
        assert pull(f"{registry.reference}:1.0.0", tmp_path).fetched


def test_a_registry_that_never_answers_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registries, "_TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(PullFailed, match="timed out"):
        pull(f"oci://127.0.0.1:{silent.getsockname()[1]}/models/tiny:1.0.0", tmp_path)


@pytest.mark.parametrize("slow", [MANIFEST, "defense.onnx"])
def test_a_source_that_sends_a_byte_now_and_then_has_failed(bundle_folder: Path, tmp_path: Path, slow: str) -> None:
    class Slow:
        def open(self, name: str) -> Iterator[bytes]:
            for byte in (bundle_folder / name).read_bytes()[:200]:
                if name == slow:
                    time.sleep(0.02)
                    yield bytes([byte])
            if name != slow:
                yield (bundle_folder / name).read_bytes()

    with pytest.raises(PullFailed, match=r"not fetched in 0\.5 s"):
        pull("file:///slow", tmp_path, max_seconds=0.5, source=Slow())
    assert _left(tmp_path) == []


def test_a_source_that_hangs_has_failed(tmp_path: Path) -> None:
    class Hanging:
        def open(self, name: str) -> Iterator[bytes]:
            Event().wait(60)
            yield b""

    began = threading.active_count()
    with pytest.raises(PullTimeout, match="not fetched"):
        pull("file:///hanging", tmp_path, max_seconds=0.2, source=Hanging())
    assert threading.active_count() <= began + 1  # it is not asked again


@pytest.mark.parametrize("seconds", [math.inf, 1e12])
def test_any_number_of_seconds(bundle_folder: Path, tmp_path: Path, seconds: float) -> None:
    assert pull(bundle_folder.as_uri(), tmp_path, max_seconds=seconds).fetched


def test_no_number_is_no_time(bundle_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PullTimeout):
        pull(bundle_folder.as_uri(), tmp_path, max_seconds=math.nan)


def test_a_reader_that_is_slow_has_no_more_time() -> None:
    pieces = Hurry("file:///x", 0.3).pieces(lambda: iter(range(1000)))
    with pytest.raises(PullTimeout):
        list(map(lambda _piece: time.sleep(0.05), pieces))  # noqa: C417


def test_what_is_not_trusted_is_not_left(tmp_path: Path) -> None:
    source, (private, public) = write_bundle(tmp_path / "source"), write_pair(tmp_path, "ours")
    trusting = Demands((public,))
    with pytest.raises(UntrustedBundle, match="not signed"):
        pull(source.as_uri(), tmp_path / "models", trusting)
    assert _left(tmp_path / "models") == []
    sign(source, Signer(private))
    pulled = pull(source.as_uri(), tmp_path / "models", trusting)
    assert (pulled.folder / SIGNATURE).is_file()
    # What lies there already is trusted no more than what comes.
    (pulled.folder / SIGNATURE).unlink()
    (source / SIGNATURE).unlink()
    with pytest.raises(UntrustedBundle, match="not signed"):
        pull(source.as_uri(), tmp_path / "models", trusting)


def test_a_bundle_that_was_signed_by_another_key_since(tmp_path: Path) -> None:
    source, models = write_bundle(tmp_path / "source"), tmp_path / "models"
    (old, old_public), (new, new_public) = write_pair(tmp_path, "old"), write_pair(tmp_path, "new")
    sign(source, Signer(old))
    folder = pull(source.as_uri(), models, Demands((old_public,))).folder
    before = (folder / SIGNATURE).read_bytes()
    with pytest.raises(UntrustedBundle, match=r"new\.pub"):
        pull(source.as_uri(), models, Demands((new_public,)))
    assert (folder / SIGNATURE).read_bytes() == before
    sign(source, Signer(new))
    assert pull(source.as_uri(), models, Demands((new_public,))).folder == folder
    assert Demands((new_public,)).load(folder).version == "1.0.0"
    # A signature that is trusted is not replaced, whatever the source has.
    (source / SIGNATURE).write_bytes(b"nothing")
    assert not pull(source.as_uri(), models, Demands((new_public,))).fetched
    assert [path.name for path in models.iterdir()] == ["tiny"]


@pytest.mark.parametrize("name", ["../outside.txt", "/outside.txt", "a\x00b", "manifest.json", "./manifest.json"])
def test_names_that_lead_out(tmp_path: Path, name: str) -> None:
    source = write_bundle(tmp_path / "source")
    text = (source / MANIFEST).read_text().replace('"calibration.npz":', f'"{name}":'.replace("\x00", "\\u0000"))
    (source / MANIFEST).write_text(text)
    with pytest.raises(BundleError):
        pull(source.as_uri(), tmp_path / "models")
    assert _left(tmp_path / "models") == []


def test_what_a_killed_pull_left_is_removed_after_a_day(bundle_folder: Path, tmp_path: Path) -> None:
    now, old = tmp_path / ".7-1a.part", tmp_path / ".7-1b.part"
    for draft in (now, old):
        draft.mkdir()
        (draft / "weights.bin").write_bytes(b"half")
    os.utime(old, (0.0, 0.0))
    pull(bundle_folder.as_uri(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [now.name, "tiny"]


def test_a_bundle_larger_than_the_bound(bundle_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="left for it"):
        pull(bundle_folder.as_uri(), tmp_path, max_bytes=2000)
    assert _left(tmp_path) == []


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("s3:/bucket", ConfigError),
        ("nothing://x/y", ConfigError),
        ("oci://user:word@127.0.0.1/x", ConfigError),
        ("oci://127.0.0.1:1/x:1", PullFailed),
        ("file:///nowhere/at/all", PullFailed),
    ],
)
def test_addresses_that_cannot_be_opened(tmp_path: Path, url: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        pull(url, tmp_path)


def test_on_the_command_line(bundle_folder: Path, tmp_path: Path) -> None:
    command = ["pull", bundle_folder.as_uri(), "--into", str(tmp_path)]
    first, again = CliRunner().invoke(app, command), CliRunner().invoke(app, command)
    assert (first.exit_code, again.exit_code) == (0, 0), first.output
    assert "tiny 1.0.0 fetched" in first.output.replace("\n", "")
    assert "there already" in again.output.replace("\n", "")
    assert CliRunner().invoke(app, ["pull", "file:///nowhere"]).exit_code == 2


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "source" / "tiny")


def test_addresses_among_the_models(cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local, url = write_bundle(tmp_path / "local" / "alone", name="alone"), cached.as_uri()
    monkeypatch.setenv("PALISADE_MODELS", f"{url},{local.parent}")
    monkeypatch.setenv("PALISADE_CACHE_DIR", str(tmp_path / "cache"))
    settings = load_settings(threads=1)
    assert list(settings.sources) == [url]
    assert settings.models == [settings.sources[url], local.parent]
    assert settings.sources[url].parent == tmp_path / "cache"
    fetch_sources(settings)
    assert load_registry(settings).names == ["alone", "tiny"]

    # Another version takes the place of the one before, whichever is newer.
    shutil.rmtree(cached)
    write_bundle(cached, version="0.9.0")
    fetch_sources(settings)
    assert load_registry(settings).get("tiny").bundle.version == "0.9.0"

    # A source that is gone, or holds something unsound, leaves what was fetched before.
    (cached / MANIFEST).write_text("{")
    fetch_sources(settings)
    shutil.rmtree(cached)
    fetch_sources(settings)
    assert load_registry(settings).get("tiny").bundle.version == "0.9.0"
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(PullFailed):
        fetch_sources(settings)


@pytest.mark.parametrize("name", ["calibration.npz", MANIFEST])
def test_a_cache_that_was_damaged_is_filled_anew(cached: Path, tmp_path: Path, name: str) -> None:
    settings = load_settings(models=cached.as_uri(), cache_dir=tmp_path / "cache", threads=1)
    fetch_sources(settings)
    (damaged,) = (tmp_path / "cache").rglob(name)
    damaged.unlink()
    fetch_sources(settings)
    assert load_registry(settings).names == ["tiny"]


def test_settings_without_addresses_are_as_before(tmp_path: Path) -> None:
    assert Settings(models=[tmp_path]).sources == {}
    assert load_settings(models=f"{tmp_path}:{tmp_path / 'b'}").models == [tmp_path, tmp_path / "b"]
