"""The console's files, read once: names, media types, hashes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "static"
PAGE = "index.html"
# The folder of assets as the page names it, with their digest, so that the file at an address never changes.
PLACEHOLDER = "{{assets}}"

_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}


@dataclass(frozen=True)
class Asset:
    body: bytes
    media_type: str
    etag: str


def load_assets(folder: Path = FOLDER) -> dict[str, Asset]:
    """Every file below `folder` by its POSIX path relative to it; `KeyError` for a suffix without a media type."""
    return {
        path.relative_to(folder).as_posix(): _asset(path.read_bytes(), _MEDIA_TYPES[path.suffix])
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def digest_of(assets: dict[str, Asset]) -> str:
    """One digest of all assets; modules import each other, so that they must be of one release."""
    names = "".join(f"{asset.etag} {name}\n" for name, asset in assets.items())
    return hashlib.sha256(names.encode()).hexdigest()[:16]


def page_of(assets: dict[str, Asset], digest: str) -> Asset:
    """The page, with relative addresses of its assets, so that it also works behind a path prefix."""
    html = assets[PAGE].body.decode().replace(PLACEHOLDER, f"console/{digest}")
    return _asset(html.encode(), _MEDIA_TYPES[".html"])


def _asset(body: bytes, media_type: str) -> Asset:
    return Asset(body, media_type, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
