"""What a bundle states of the server whose answers it judges (`palisade guard`): where it is and how it is asked.

The network stays in that server. The bundle has four small graphs without it: `rows` (pixels and mask to the images
that are sent), `judge` (their logits to scores), `perturb` and `explain` (the same for an explanation).
"""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from gateway.core.preprocessing import Normalisation

UPSTREAM_FILES = ("rows.onnx", "judge.onnx", "perturb.onnx", "explain.onnx")

MOST_ROWS = 4096
"""Rows of the largest request that a bundle can state."""

Datatype = Literal["FP32", "FP16", "FP64", "UINT8"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def checked_url(url: str) -> str:
    """`url` without a slash at its end; `ValueError` unless it is http(s), can be asked and holds no password."""
    parts = urlsplit(url)
    try:
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        (parts.hostname or "").encode("idna")
    except ValueError:  # no port, or no host, that there can be
        sound = False
    if not sound:
        raise ValueError(f"{url!r}: expected http://HOST[:PORT][/PATH]")
    if not (url.isprintable() and " " not in url and f"{parts.path}{parts.query}".isascii()):
        raise ValueError(f"{url!r}: spaces and what is not ASCII have to be percent-encoded")
    if parts.username or parts.password:
        raise ValueError("a URL with a user or password would be stored: give a token by PALISADE_UPSTREAM_TOKEN")
    return url.rstrip("/")


class _Located(_Strict):
    url: str

    @field_validator("url")
    @classmethod
    def _sound(cls, url: str) -> str:
        return checked_url(url)


class Protocol2(_Located):
    """A model of a server of the Open Inference Protocol v2; `url` is `.../v2/models/NAME`, or that of a version."""

    kind: Literal["v2"] = "v2"
    input: str
    datatype: Datatype = "FP32"
    layout: Literal["nchw", "nhwc"] = "nchw"
    output: str
    binary: bool = False
    """Whether the server speaks the binary tensor data extension; else tensors are sent as JSON."""
    batch: int | None = Field(default=None, ge=1)
    """The rows of every request, where the model takes no other number."""


class PlainHttp(_Located):
    """A classifier that takes one image a request, as it is described in a file (docs/guard.md)."""

    kind: Literal["http"] = "http"
    body: Literal["png", "jpeg", "json"] = "png"
    """A PNG or JPEG body, or a JSON object with the PNG in base64 in `field`."""
    field: str = "image"
    scores: str = ""
    """Where the answer has its scores: keys and indices separated by dots; empty: the answer itself."""
    label: str | None = None
    """Where the scores are objects, the key of the class's name; unset: a list of numbers in the classes' order."""
    score: str = "score"
    connections: int = Field(default=8, ge=1, le=64)


class Upstream(_Strict):
    """The server, what its numbers mean, and how it answered `probe_image` when the bundle was calibrated."""

    protocol: Annotated[Protocol2 | PlainHttp, Field(discriminator="kind")]
    values: Literal["logits", "probabilities"]
    normalise: Normalisation = Normalisation()
    max_rows: int = Field(default=64, ge=1, le=MOST_ROWS)
    """Rows of the largest request."""
    rows: int = Field(ge=2, le=64)
    """Rows that one image takes for its verdict."""
    maps: int = Field(ge=1, le=4096)
    """Further rows that its explanation takes."""
    probe: list[float] = Field(min_length=2)
    """Probabilities of `probe_image`: a server whose answer differs serves another model than was calibrated."""


def probe_image(channels: int, height: int, width: int) -> np.ndarray:
    """An image uint8 / 255 as float32 (1, C, H, W): smooth waves, which no class of photographs owns."""
    c, y, x = np.meshgrid(np.arange(channels), np.arange(height) / height, np.arange(width) / width, indexing="ij")
    waves = 0.5 + 0.25 * np.sin(2 * np.pi * (2 * y + c / 3)) + 0.25 * np.cos(2 * np.pi * (3 * x - c / 3))
    return np.asarray(np.round(waves * 255), np.float32)[None] / np.float32(255)
