"""One image a request to a classifier over plain HTTP, as its description says, and its scores back."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from gateway.core.upstream import PlainHttp
from gateway.errors import UpstreamInvalid
from gateway.upstream.connection import Connection

_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "json": "application/json"}
_JPEG_QUALITY = 95


class PlainPeer:
    """Such a classifier; the rows of a batch are sent over several connections at once."""

    def __init__(self, spec: PlainHttp, classes: Sequence[str], connection: Connection) -> None:
        self.spec = spec
        self._classes = {name: k for k, name in enumerate(classes)}
        self._connection = connection
        self._pool = ThreadPoolExecutor(spec.connections, thread_name_prefix="palisade-upstream")

    def values(self, rows: np.ndarray, *, deadline: float = math.inf) -> np.ndarray:
        """Scores (M, K) of `rows` float32 (M, C, H, W) in [0, 1]; raises as `Protocol2Peer.values` does."""
        futures = [self._pool.submit(self._one, row, deadline) for row in rows]
        try:
            return np.stack([future.result() for future in futures])
        finally:
            for future in futures:
                future.cancel()

    def _one(self, row: np.ndarray, deadline: float) -> np.ndarray:
        headers = {"Content-Type": _TYPES[self.spec.body], "Accept": "application/json"}
        answer = self._connection.post(self.spec.url, self._body(row), headers, deadline=deadline)
        return scores_of(self.spec, self._classes, answer.json())

    def _body(self, row: np.ndarray) -> bytes:
        pixels = np.rint(row * 255.0).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
        image, buffer = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels), io.BytesIO()
        if self.spec.body == "jpeg":
            image.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
        else:
            image.save(buffer, "PNG", compress_level=1)
        if self.spec.body != "json":
            return buffer.getvalue()
        return json.dumps({self.spec.field: base64.b64encode(buffer.getvalue()).decode("ascii")}).encode()


def scores_of(spec: PlainHttp, classes: dict[str, int], answer: Any) -> np.ndarray:
    """The scores (K,) float32 in an answer; classes that a list of objects leaves out share what the others leave."""
    found = answer
    for key in spec.scores.split(".") if spec.scores else []:
        try:
            found = found[int(key)] if isinstance(found, list) else found[key]
        except (KeyError, IndexError, TypeError, ValueError):
            raise UpstreamInvalid(f"the upstream's answer has no {spec.scores!r}") from None
    if not isinstance(found, list) or not found:
        raise UpstreamInvalid(f"the upstream's {spec.scores or 'whole'!r} is no list of scores")
    try:
        if spec.label is None:
            values = np.array([_number(value) for value in found], np.float32)
        else:
            values = _named(spec, classes, found)
    except (KeyError, TypeError, OverflowError) as error:
        raise UpstreamInvalid(f"the upstream's scores cannot be read: {str(error)[:100]}") from None
    if values.shape != (len(classes),):
        raise UpstreamInvalid(f"the upstream's answer has {len(values)} scores, the model {len(classes)} classes")
    return values


def _named(spec: PlainHttp, classes: dict[str, int], found: list[Any]) -> np.ndarray:
    assert spec.label is not None  # noqa: S101  # the caller has looked
    values, named = np.zeros(len(classes), np.float32), np.zeros(len(classes), bool)
    for entry in found:
        at = classes[entry[spec.label]]
        values[at], named[at] = _number(entry[spec.score]), True
    if not named.all():
        left = 1.0 - float(values[named].sum())
        # Of logits nobody knows what is left.
        if (values[named] < -1e-3).any() or left < -1e-3:
            raise UpstreamInvalid("the upstream's answer leaves out classes, and its scores are no probabilities")
        values[~named] = max(0.0, left) / (~named).sum()
    return values


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{str(value)[:40]!r} is no number")
    return float(value)
