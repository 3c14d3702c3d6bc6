"""The newest queries in a ring, and tables that find near-duplicates among them in a fixed number of steps.

Locality-sensitive hashing (Charikar 2002): the code of a table is the signs of some numbers of the coarse fingerprint,
and two images have it in common with probability (1 - angle / pi) to the power of how many. Each slot of a table knows
the newest query alone: memory is fixed, and old queries need no removal.
"""

from __future__ import annotations

import hashlib

import numpy as np

from gateway.campaigns.fingerprint import COARSE
from gateway.campaigns.records import RECORD

TABLES = 8
BITS = 22
"""Signs in the code of a table."""
_MIX = np.uint64(0x9E3779B97F4A7C15)


class Index:
    """The last `capacity` queries. A query is known by its number, which grows by one with each."""

    def __init__(self, capacity: int, salt: bytes) -> None:
        self.capacity = capacity
        # Zeros are not memory yet: the system gives pages when they are first written.
        self._ring = np.zeros(capacity, RECORD)
        self._exact, self._model = self._ring["exact"], self._ring["model"]
        self._group = np.zeros(capacity, np.int32)
        self._strand = np.zeros(capacity, np.int32)
        self._next = 0
        self._bits = max(10, int(2 * capacity - 1).bit_length())
        self._slots = np.zeros(TABLES << self._bits, np.int32)
        self._tables = np.arange(TABLES) << self._bits
        self._signs = _choice(salt)

    @property
    def next(self) -> int:
        """The number that the next query gets."""
        return self._next

    @property
    def nbytes(self) -> int:
        """Bytes of memory once every page was written."""
        return self._ring.nbytes + self._group.nbytes + self._strand.nbytes + self._slots.nbytes

    def places(self, coarse: np.ndarray, models: np.ndarray) -> np.ndarray:
        """The slots (n, TABLES) of coarse fingerprints (n, COARSE) of models (n,), which are told apart."""
        codes = ((coarse > 0).astype(np.float64) @ self._signs).astype(np.uint64)
        codes += (models.astype(np.uint64)[:, None] << np.uint64(BITS + 1)) + np.uint64(1)
        found: np.ndarray = ((codes * _MIX) >> np.uint64(64 - self._bits)).astype(np.int64) + self._tables
        return found

    def candidates(self, places: np.ndarray) -> list[int]:
        """Numbers of queries (at most TABLES, the newest first) that share a slot of `places` (TABLES,)."""
        last, capacity = self._next - 1, self.capacity
        found = set()
        for at in self._slots[places].tolist():
            if at:  # a slot holds the ring's place, plus one
                found.add(last - (last - (at - 1)) % capacity)
        return sorted(found, reverse=True)

    def add(self, record: np.void, places: np.ndarray) -> int:
        """Remember a query in place of the oldest; returns its number."""
        number, self._next = self._next, self._next + 1
        at = number % self.capacity
        self._ring[at] = record
        self._group[at] = self._strand[at] = 0
        self._slots[places] = at + 1
        return number

    @property
    def oldest(self) -> int:
        """The number from which queries are alive; below zero until the ring is full."""
        return self._next - self.capacity

    def alive(self, number: int) -> bool:
        return number >= self._next - self.capacity

    def record(self, number: int) -> np.void:
        """The record of a query that is alive."""
        row: np.void = self._ring[number % self.capacity]
        return row

    def is_image(self, number: int, exact: int, model: int) -> bool:
        """Whether a query that is alive was of this very image, asked of this model."""
        at = number % self.capacity
        return bool(self._exact.item(at) == exact and self._model.item(at) == model)

    def records(self, numbers: list[int]) -> np.ndarray:
        """The records (n,) of queries that are alive."""
        rows: np.ndarray = self._ring.take(self._at(numbers))
        return rows

    def details(self, numbers: list[int]) -> np.ndarray:
        """Detail fingerprints (n, DETAIL) float32 of queries."""
        rows: np.ndarray = self.records(numbers)["detail"].astype(np.float32)
        return rows

    def contrasts(self, numbers: list[int]) -> np.ndarray:
        rows: np.ndarray = self._ring["contrast"][self._at(numbers)]
        return rows

    def margins(self, numbers: list[int]) -> np.ndarray:
        """Margins (n,) in [0, 1] of queries."""
        rows: np.ndarray = self._ring["margin"][self._at(numbers)] / 255
        return rows

    def group(self, number: int) -> int:
        """The group that a query was put in; 0 for none."""
        return self._group.item(number % self.capacity)

    def put(self, number: int, group: int) -> None:
        self._group[number % self.capacity] = group

    def strand(self, number: int) -> int:
        """The strand of its group that a query was put in; 0 for none."""
        return self._strand.item(number % self.capacity)

    def put_strand(self, number: int, strand: int) -> None:
        self._strand[number % self.capacity] = strand

    def _at(self, numbers: list[int]) -> np.ndarray:
        places: np.ndarray = np.asarray(numbers, np.int64) % self.capacity
        return places


def _choice(salt: bytes) -> np.ndarray:
    """The matrix (COARSE, TABLES) that turns signs into codes: BITS of them for each table, which the salt chooses."""
    weights = np.zeros((COARSE, TABLES))
    for table in range(TABLES):
        keys = np.frombuffer(hashlib.shake_256(salt + b"table%d" % table).digest(8 * COARSE), np.uint64)
        weights[np.argsort(keys, kind="stable")[:BITS], table] = 2.0 ** np.arange(BITS)
    return weights
