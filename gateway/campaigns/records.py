"""The bytes of a batch of decided images, as workers write them to the store: fixed records, nothing pickled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gateway.campaigns.fingerprint import COARSE, DETAIL, Fingerprint

RECORD = np.dtype(
    [
        ("time", "<f8"),  # seconds since the epoch
        ("request", "S30"),
        ("exact", "<u8"),
        ("coarse", "i1", (COARSE,)),
        ("detail", "<f2", (DETAIL,)),
        ("contrast", "<f4"),
        ("model", "<u2"),  # number of the name in the batch's list
        ("key", "<u2"),  # the same; number 0 is nobody
        ("label", "<u2"),  # the same
        ("p_value", "<f4"),
        ("margin", "u1"),  # in steps of 1/255
        ("flagged", "?"),
    ]
)


@dataclass(frozen=True)
class Query:
    """What is known of one decided image, beside its fingerprint; `time` in seconds since the epoch.

    `margin` is the probability of the label that was answered less that of the runner-up, in [0, 1].
    """

    time: float
    request: str
    model: str
    key: str | None
    label: str
    p_value: float
    flagged: bool
    margin: float = 1.0


@dataclass(frozen=True)
class Batch:
    """Records (n,) of `RECORD`, the names that they number, and the number of the batch (0 before it is stored)."""

    records: np.ndarray
    models: list[str]
    keys: list[str | None]
    labels: list[str]
    seq: int = 0

    @property
    def names(self) -> dict[str, Any]:
        """The names, as JSON holds them."""
        return {"models": self.models, "keys": self.keys, "labels": self.labels}


def pack(queries: Sequence[tuple[Query, Fingerprint]]) -> Batch:
    """The records of decided images, in their order."""
    records = np.zeros(len(queries), RECORD)
    models: dict[str, int] = {}
    keys: dict[str | None, int] = {None: 0}
    labels: dict[str, int] = {}
    columns: dict[str, list[Any]] = {
        "time": [query.time for query, _ in queries],
        "request": [query.request.encode("ascii", "replace") for query, _ in queries],
        "exact": [found.exact for _, found in queries],
        "coarse": [found.coarse for _, found in queries],
        "detail": [found.detail for _, found in queries],
        "contrast": [found.contrast for _, found in queries],
        "model": [models.setdefault(query.model, len(models)) for query, _ in queries],
        "key": [keys.setdefault(query.key, len(keys)) for query, _ in queries],
        "label": [labels.setdefault(query.label, len(labels)) for query, _ in queries],
        "p_value": [query.p_value for query, _ in queries],
        "margin": [round(255 * min(max(query.margin, 0.0), 1.0)) for query, _ in queries],
        "flagged": [query.flagged for query, _ in queries],
    }
    for name, column in columns.items():
        records[name] = column
    return Batch(records, list(models), list(keys), list(labels))


def unpack(payload: bytes, names: dict[str, Any], seq: int) -> Batch:
    """The batch that was stored; `ValueError` for bytes that are not whole records."""
    return Batch(np.frombuffer(payload, RECORD), list(names["models"]), list(names["keys"]), list(names["labels"]), seq)
