"""Fetching a bundle: whole, sound and trusted, or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from gateway.core.loading import file_sha256, load_bundle, read_manifest
from gateway.core.manifest import DRAFT, MANIFEST, SIGNATURE, Manifest
from gateway.errors import BundleError, PullFailed, PullTimeout, UntrustedBundle
from gateway.pulling.hurry import Hurried, Hurry
from gateway.pulling.sources import Source, open_source
from gateway.trust.admission import Demands

MAX_BYTES = 4 << 30
"""Bytes of the largest bundle that is fetched, unless another bound is given."""
MAX_SECONDS = 3600.0
"""Seconds that fetching one bundle may take, unless another bound is given."""
_SMALL = 16 << 20
_TRIES = 3
_PAUSE = 0.5
_ABANDONED = 24 * 3600.0
"""Seconds after which a draft is taken for one whose process was killed."""

T = TypeVar("T")
Progress = Callable[[str, int, int], None]
"""Told the file that comes next, its number (from 1) and how many there are."""


@dataclass(frozen=True)
class Pulled:
    """Where the bundle lies now, and whether anything but its manifest had to be fetched for that."""

    folder: Path
    manifest: Manifest
    fetched: bool


def pull(
    url: str,
    into: Path,
    demands: Demands | None = None,
    *,
    max_bytes: int = MAX_BYTES,
    max_seconds: float = MAX_SECONDS,
    progress: Progress | None = None,
    source: Source | None = None,
    replace: bool = False,
) -> Pulled:
    """Fetch the bundle at `url` to `into/NAME/VERSION`, and check it as a gateway does before it can be found there.

    Only files that the bundle's manifest lists are fetched, and each must have the SHA-256 stated there. A bundle that
    lies there already is checked and not fetched again, but for its signature if it is not trusted by the one that it
    has; with `replace`, what lies there and is not sound is replaced. Until all is well it lies in a folder whose name
    ends in `.part`, which no gateway reads; a stop in the middle leaves nothing that is served.

    Raises `PullFailed` (the source does not answer, is not done in `max_seconds`, or sends something else),
    `BundleError` and its subclasses (what it sent must not be served), and `ConfigError` (the address or a key cannot
    be used).
    """
    hurry, demands = Hurry(url, max_seconds), demands or Demands()
    source = Hurried(source or _again(partial(hurry.result, partial(open_source, url))), hurry)
    into.mkdir(parents=True, exist_ok=True)
    _sweep(into)
    draft = into / f".{os.getpid()}-{time.monotonic_ns():x}{DRAFT}"
    draft.mkdir()
    try:
        _again(partial(_fetch, source, url, MANIFEST, draft, None, _SMALL))
        manifest, sha256 = read_manifest(draft), file_sha256(draft / MANIFEST)
        folder = into / manifest.name / manifest.version
        if folder.exists() and not (replace and not _sound(folder)):
            return _kept(source, url, folder, draft, demands)
        left = max_bytes
        for number, (name, digest) in enumerate(sorted(manifest.files.items()), start=1):
            if progress is not None:
                progress(name, number, len(manifest.files))
            left -= _again(partial(_fetch, source, url, name, draft, digest, left))
        _fetch_signature(source, url, draft)
        if demands.load(draft).manifest_sha256 != sha256:
            raise BundleError(f"{url}/{MANIFEST}: a file of the bundle has taken its place")
        folder.parent.mkdir(exist_ok=True)
        if replace and folder.exists() and not _sound(folder):
            shutil.rmtree(folder)
        try:
            draft.rename(folder)
        except OSError:  # another process has just put it there
            demands.load(folder)
        return Pulled(folder, manifest, fetched=True)
    except FileNotFoundError as error:
        raise PullFailed(f"{url}: no file {error.args[0] if len(error.args) == 1 else error.filename}") from None
    except BundleError as error:  # names the file where it was found; nothing is left of that
        raise type(error)(error.detail.replace(str(draft), url)) from None
    except OSError as error:
        raise PullFailed(f"{into}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _sweep(into: Path) -> None:
    """Remove what killed processes left. Their ids say nothing: containers that share a folder have the same ones."""
    for old in into.glob(f".*-*{DRAFT}"):
        with suppress(OSError):  # it was finished just now
            if time.time() - old.stat().st_mtime > _ABANDONED:
                shutil.rmtree(old, ignore_errors=True)


def _sound(folder: Path) -> bool:
    try:
        load_bundle(folder)
    except BundleError:
        return False
    return True


def _fetch_signature(source: Source, url: str, draft: Path) -> bool:
    """Whether the source has a signature, which `Demands` may ask for."""
    try:
        _again(partial(_fetch, source, url, SIGNATURE, draft, None, _SMALL))
    except FileNotFoundError:
        (draft / SIGNATURE).unlink()
        return False
    return True


def _kept(source: Source, url: str, folder: Path, draft: Path, demands: Demands) -> Pulled:
    """The bundle that lies in `folder`, if it is that of the manifest in `draft`; with a signature that is trusted."""
    if load_bundle(folder).manifest_sha256 != file_sha256(draft / MANIFEST):
        raise BundleError(f"{folder}: another bundle of that name and version than the one at {url}")
    try:
        return Pulled(folder, demands.load(folder).manifest, fetched=False)
    except UntrustedBundle:
        shutil.copytree(folder, draft, dirs_exist_ok=True)
        if not _fetch_signature(source, url, draft):
            raise
    manifest = demands.load(draft).manifest
    (draft / SIGNATURE).replace(folder / SIGNATURE)
    return Pulled(folder, manifest, fetched=True)


def _fetch(source: Source, url: str, name: str, draft: Path, digest: str | None, most: int) -> int:
    """Write one file and return its size."""
    path, found, size = draft / name, hashlib.sha256(), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for piece in _pieces(source, name):
            size += len(piece)
            if size > most:
                raise BundleError(f"{url}/{name}: more than the {most} bytes that are left for it")
            found.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    if digest not in (None, found.hexdigest()):
        raise BundleError(f"{url}/{name}: SHA-256 is {found.hexdigest()}, the manifest states {digest}")
    return size


def _pieces(source: Source, name: str) -> Iterator[bytes]:
    try:
        yield from source.open(name)
    except FileNotFoundError:
        raise FileNotFoundError(name) from None


def _again(fetch: Callable[[], T]) -> T:
    """The result of `fetch`, which is tried again where the source fails; what is wrong stays wrong."""
    for last in range(_TRIES):
        try:
            return fetch()
        except PullTimeout:
            raise
        except PullFailed:
            if last == _TRIES - 1:
                raise
            time.sleep(_PAUSE * 2**last)
    raise AssertionError
