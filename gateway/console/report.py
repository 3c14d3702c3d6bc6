"""The report of a bundle: a page with every measurement, for readers of the robustness card."""

from __future__ import annotations

import hashlib

from gateway.core.loading import Bundle
from gateway.core.manifest import REPORT
from gateway.errors import NotFound


def report_of(bundle: Bundle) -> bytes:
    """The bytes of the bundle's `report.html`, as the manifest lists it.

    Raises `NotFound` if the bundle ships none, or if the file is no longer the one whose hash was checked when the
    bundle was loaded.
    """
    expected = bundle.manifest.files.get(REPORT)
    if expected is None:
        raise NotFound(f"model {bundle.name!r} has no report")
    try:
        body = (bundle.path / REPORT).read_bytes()
    except OSError:
        body = b""
    if hashlib.sha256(body).hexdigest() != expected:
        raise NotFound(f"the report of model {bundle.name!r} was changed or removed after the bundle was loaded")
    return body
