"""Signatures of bundles, in the format of OpenSSF Model Signing, made and verified offline.

The signature lies in the bundle as `model.sig`: a Sigstore bundle whose in-toto statement lists the SHA-256 of every
other file, the manifest among them. `model_signing verify` reads it as well. The package `model-signing` (the extra
`trust`) does the cryptography; keys are elliptic-curve keys in PEM files, or certificates that a chain leads to.
"""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from gateway.atomic import write_bytes
from gateway.core.loading import Bundle, load_bundle
from gateway.core.manifest import MANIFEST, SIGNATURE
from gateway.errors import ConfigError, UntrustedBundle

_INSTALL = "signatures need the extra `trust`: pip install 'palisade-gateway[trust]'"
_LARGEST = 4 << 20
_BUNDLE = frozenset({"mediaType", "verificationMaterial", "dsseEnvelope"})
_ENVELOPE = frozenset({"payload", "payloadType", "signatures"})


@dataclass(frozen=True)
class Signer:
    """Who signs: a private key, and a certificate of it if others trust a root certificate and not the key itself."""

    private_key: Path
    password: str | None = None
    certificate: Path | None = None
    chain: tuple[Path, ...] = ()


def sign(folder: Path, signer: Signer) -> Path:
    """Check the bundle in `folder` and write its signature; the file's path.

    Raises `BundleError` for a bundle that is not sound, and `ConfigError` for a key that cannot be used.
    """
    load_bundle(folder)
    signing, hashing = _package("signing"), _package("hashing")
    config = signing.Config()
    try:
        if signer.certificate is None:
            # As bytes, whatever the package's annotation says: it passes them on to `cryptography`.
            password = signer.password.encode() if signer.password else None
            config.use_elliptic_key_signer(private_key=signer.private_key, password=password)
        else:
            if signer.password is not None:
                raise ConfigError("a private key with a certificate cannot have a password (model-signing 1.1)")
            config.use_certificate_signer(
                private_key=signer.private_key,
                signing_certificate=signer.certificate,
                # The package cannot read an empty chain; the certificate itself adds nothing to one.
                certificate_chain=signer.chain or (signer.certificate,),
            )
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{signer.private_key}: cannot sign: {_one_line(error)}") from None
    config.set_hashing_config(_hashing(hashing, folder))
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch, SIGNATURE)
        try:
            config.sign(folder, made)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{signer.private_key}: cannot sign: {_one_line(error)}") from None
        write_bytes(folder / SIGNATURE, made.read_bytes())
    return folder / SIGNATURE


def load_signed(folder: Path, trusted: Sequence[Path]) -> Bundle:
    """The bundle in `folder`, if the owner of one of the keys or certificates in `trusted` signed what it now holds.

    `trusted` are PEM files with public keys (P-256, P-384, P-521) or with root certificates. What is returned is what
    was signed even if files are changed meanwhile: the signature is read once, and the digests that it states are
    compared with those of the bytes that were parsed. Raises `UntrustedBundle`, `BundleError`, and `ConfigError` for a
    key that cannot be read.
    """
    signature = _read(folder)
    problems = []
    for key in trusted:
        try:
            verifier = _verifier(key)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"PALISADE_TRUST: {key}: {_one_line(error)}") from None
        try:
            _verify(folder, signature, verifier)
        except Exception as error:  # noqa: BLE001 (model-signing names no errors of its own)
            problems.append(f"{key.name}: {_one_line(error)}")
            continue
        return _as_signed(load_bundle(folder), _digests(folder, signature))
    raise UntrustedBundle(f"{folder / SIGNATURE}: {'; '.join(problems)}")


def _read(folder: Path) -> bytes:
    path = folder / SIGNATURE
    try:
        if path.is_symlink() or not path.is_file():
            raise UntrustedBundle(f"{folder}: not signed ({SIGNATURE} is missing), and PALISADE_TRUST asks for it")
        if path.stat().st_size > _LARGEST:
            raise UntrustedBundle(f"{path}: larger than any signature")
        return path.read_bytes()
    except OSError as error:
        raise UntrustedBundle(f"{path}: unreadable: {error.strerror}") from None


def _verifier(key: Path) -> Any:
    text, config = key.read_bytes(), _package("verifying").Config()
    if b"-----BEGIN CERTIFICATE-----" in text:
        return config.use_certificate_verifier(certificate_chain=[key])
    return config.use_elliptic_key_verifier(public_key=key)


def _verify(folder: Path, signature: bytes, config: Any) -> None:
    config.set_hashing_config(_hashing(_package("hashing"), folder))
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch, SIGNATURE)
        copy.write_bytes(signature)
        config.verify(folder, copy)


def _hashing(package: ModuleType, folder: Path) -> Any:
    """SHA-256 of every file but the signature, however the signer's own settings were."""
    config = package.Config().use_file_serialization(hashing_algorithm="sha256", allow_symlinks=False)
    return config.set_ignored_paths(paths=[folder / SIGNATURE], ignore_git_paths=False)


def _digests(folder: Path, signature: bytes) -> dict[str, str]:
    """SHA-256 by file, as a signature that was verified states it.

    A field of another name, or one that stands twice, might be read otherwise by the package than here: refused.
    """
    path = folder / SIGNATURE
    try:
        bundle = json.loads(signature, object_pairs_hook=_once)
        envelope = bundle["dsseEnvelope"]
        if unknown := (bundle.keys() - _BUNDLE) | (envelope.keys() - _ENVELOPE):
            raise ValueError(f"unknown fields {sorted(unknown)}")
        resources = json.loads(base64.b64decode(envelope["payload"]))["predicate"]["resources"]
        return {entry["name"]: entry["digest"] for entry in resources if entry["algorithm"] == "sha256"}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UntrustedBundle(f"{path}: its statement cannot be read: {_one_line(error)}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a field stands twice")
    return made


def _as_signed(bundle: Bundle, signed: dict[str, str]) -> Bundle:
    for name, digest in {MANIFEST: bundle.manifest_sha256, **bundle.manifest.files}.items():
        if signed.get(name) != digest:
            raise UntrustedBundle(f"{bundle.path / name}: SHA-256 is {digest}, the signature states {signed.get(name)}")
    return bundle


def _package(name: str) -> ModuleType:
    # Imported where it is needed: it is an extra, and takes a second.
    import importlib

    try:
        return importlib.import_module(f"model_signing.{name}")
    except ImportError:
        raise ConfigError(_INSTALL) from None


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:300]
