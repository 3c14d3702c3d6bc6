"""Signed bundles: what is served, and what is refused after it was tampered with."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.cli.main import app
from gateway.core.loading import load_bundle, read_manifest, write_manifest
from gateway.core.manifest import MANIFEST, SIGNATURE
from gateway.errors import BundleError, ConfigError, UntrustedBundle
from gateway.settings import Settings, load_settings
from gateway.trust import signatures
from gateway.trust.signatures import Signer, load_signed, sign
from gateway.versions.catalogue import Catalogue
from gateway.versions.registry import load_registry
from tests.gateway.tiny import write_bundle
from tests.gateway.trust.keys import write_certified, write_pair

Keys = tuple[Path, Path]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return write_pair(tmp_path_factory.mktemp("keys"), "ours")


@pytest.fixture(scope="module")
def signed_folder(tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> Path:
    folder = write_bundle(tmp_path_factory.mktemp("signed") / "tiny")
    sign(folder, Signer(keys[0]))
    return folder


@pytest.fixture
def signed(tmp_path: Path, signed_folder: Path) -> Path:
    return Path(shutil.copytree(signed_folder, tmp_path / "models" / "tiny"))


def test_a_signed_bundle_is_served_and_still_sound_without_trust(signed: Path, keys: Keys) -> None:
    assert load_bundle(signed).name == "tiny"
    served = load_registry(Settings(models=[signed.parent], threads=1, trust=[keys[1]])).get()
    assert served.bundle.manifest_sha256 == load_bundle(signed).manifest_sha256
    moved = signed.rename(signed.with_name("elsewhere"))
    assert load_signed(moved, [keys[1]]).name == "tiny"


def test_the_packages_own_command_agrees(signed: Path, keys: Keys) -> None:
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(signed)]
    command += ["--signature", str(signed / SIGNATURE), "--public_key", str(keys[1])]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    (signed / "calibration.npz").write_bytes(b"altered")
    assert subprocess.run(command, check=False, capture_output=True).returncode != 0


def test_certificates(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "tiny")
    key, certificate, root = write_certified(tmp_path, "releases")
    other = write_certified(tmp_path, "others")[2]
    sign(folder, Signer(key, certificate=certificate))
    assert load_signed(folder, [root]).name == "tiny"
    assert load_signed(folder, [other, root]).name == "tiny"
    with pytest.raises(UntrustedBundle):
        load_signed(folder, [other])
    with pytest.raises(ConfigError, match="does not match"):
        sign(folder, Signer(write_pair(tmp_path, "another")[0], certificate=certificate))


def _alter(name: str) -> Callable[[Path], None]:
    def alter(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)

    return alter


def _policy_changed(folder: Path) -> None:
    manifest = read_manifest(folder)
    write_manifest(folder, manifest.model_copy(update={"description": "another"}), as_read=True)


def _graph_and_manifest_changed(folder: Path) -> None:
    (folder / "README.txt").write_text("more")
    write_manifest(folder, read_manifest(folder), as_read=True)


def _statement_edited(folder: Path) -> None:
    _policy_changed(folder)
    bundle = json.loads((folder / SIGNATURE).read_bytes())
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    for entry in statement["predicate"]["resources"]:
        if entry["name"] == MANIFEST:
            entry["digest"] = load_bundle(folder).manifest_sha256
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    (folder / SIGNATURE).write_text(json.dumps(bundle))


def _second_envelope(folder: Path) -> None:
    bundle = json.loads((folder / SIGNATURE).read_bytes())
    (folder / SIGNATURE).write_text(json.dumps(bundle | {"dsse_envelope": bundle["dsseEnvelope"]}))


def _field_twice(folder: Path) -> None:
    text = (folder / SIGNATURE).read_text()
    envelope = json.dumps(json.loads(text)["dsseEnvelope"])
    (folder / SIGNATURE).write_text('{"dsseEnvelope": ' + envelope + ", " + text.lstrip().removeprefix("{"))


def _other_bundles_signature(folder: Path) -> None:
    other = write_bundle(folder.parent.parent / "other" / "tiny", version="2.0.0")
    key, _ = write_pair(folder.parent.parent, "theirs")
    sign(other, Signer(key))
    shutil.copy(other / SIGNATURE, folder / SIGNATURE)


def _signed_by_another(folder: Path) -> None:
    sign(folder, Signer(write_pair(folder.parent.parent, "theirs")[0]))


def _linked(folder: Path) -> None:
    target = folder.parent.parent / "outside.npz"
    shutil.move(folder / "calibration.npz", target)
    (folder / "calibration.npz").symlink_to(target)


TAMPERING: dict[str, Callable[[Path], object]] = {
    "no signature": lambda folder: (folder / SIGNATURE).unlink(),
    "an empty signature": lambda folder: (folder / SIGNATURE).write_bytes(b""),
    "a signature that is no JSON": lambda folder: (folder / SIGNATURE).write_bytes(b"\xff{"),
    "a signature of no statement": lambda folder: (folder / SIGNATURE).write_text("{}"),
    "a signature that is a list": lambda folder: (folder / SIGNATURE).write_text("[1]"),
    "a signature cut off": lambda folder: os.truncate(folder / SIGNATURE, 400),
    "a signature too large": lambda folder: (folder / SIGNATURE).write_bytes(b" " * (5 << 20)),
    "a graph altered": _alter("defense.onnx"),
    "a calibration altered": _alter("calibration.npz"),
    "a file more": lambda folder: (folder / "more.txt").write_text("more"),
    "a hidden file more": lambda folder: (folder / ".gitignore").write_text("more"),
    "a file less": lambda folder: (folder / "screen.onnx").unlink(),
    "the manifest rewritten": _policy_changed,
    "files and manifest rewritten": _graph_and_manifest_changed,
    "the statement edited": _statement_edited,
    "a second envelope": _second_envelope,
    "a field that stands twice": _field_twice,
    "another bundle's signature": _other_bundles_signature,
    "signed by another": _signed_by_another,
    "a file that is a link": _linked,
}


@pytest.mark.parametrize("what", TAMPERING)
def test_tampering_is_refused(signed: Path, keys: Keys, what: str) -> None:
    TAMPERING[what](signed)
    with pytest.raises(UntrustedBundle) as raised:
        load_signed(signed, [keys[1]])
    assert "\n" not in raised.value.detail
    found, refused = Catalogue([signed.parent], Settings(trust=[keys[1]]).demands).look()
    assert not found
    assert [type(entry.error).code for entry in refused] in (["untrusted_bundle"], ["invalid_bundle"])


def test_files_changed_while_they_are_read(signed: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    verify = signatures._verify

    def then_change(folder: Path, signature: bytes, config: object) -> None:
        verify(folder, signature, config)
        _policy_changed(folder)

    monkeypatch.setattr(signatures, "_verify", then_change)
    with pytest.raises(UntrustedBundle, match="the signature states"):
        load_signed(signed, [keys[1]])


def test_keys_that_cannot_be_used(tmp_path: Path, signed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "no.pem").write_text("no key")
    with pytest.raises(ConfigError, match=r"no\.pem"):
        load_signed(signed, [tmp_path / "no.pem"])
    with pytest.raises(ConfigError, match="cannot sign"):
        sign(signed, Signer(tmp_path / "no.pem"))
    private, public = write_pair(tmp_path, "locked", "opens")
    with pytest.raises(ConfigError, match="cannot sign"):
        sign(signed, Signer(private, "does not"))
    monkeypatch.setenv("PALISADE_KEY_PASSWORD", "opens")
    made = CliRunner().invoke(app, ["bundle", "sign", str(signed), "--key", str(private)])
    assert made.exit_code == 0, made.output
    assert load_signed(signed, [public]).name == "tiny"
    with pytest.raises(ConfigError, match="PALISADE_TRUST"):
        load_settings(trust=[tmp_path / "absent"])


def test_only_sound_bundles_are_signed(tmp_path: Path, keys: Keys) -> None:
    folder = write_bundle(tmp_path / "tiny")
    (folder / "more.txt").write_text("more")
    with pytest.raises(BundleError, match="not listed"):
        sign(folder, Signer(keys[0]))
    assert not (folder / SIGNATURE).exists()


def test_verify_on_the_command_line(signed: Path, keys: Keys) -> None:
    run = CliRunner().invoke
    verified = run(app, ["bundle", "verify", str(signed), "--trust", str(keys[1])])
    assert verified.exit_code == 0, verified.output
    assert "signed by a trusted key" in verified.output
    (signed / SIGNATURE).unlink()
    assert run(app, ["bundle", "verify", str(signed)]).exit_code == 0
    assert run(app, ["bundle", "verify", str(signed), "--trust", str(keys[1])]).exit_code == 2


def test_without_the_extra_it_is_named(signed: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "model_signing.verifying", None)
    with pytest.raises(ConfigError, match=r"palisade-gateway\[trust\]"):
        load_signed(signed, [keys[1]])
