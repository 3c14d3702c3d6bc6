"""The index: bounded, finds near-duplicates, forgets the oldest."""

from __future__ import annotations

import numpy as np

from gateway.campaigns.fingerprint import Fingerprinter
from gateway.campaigns.index import Index
from gateway.campaigns.records import RECORD, Query, pack
from tests.gateway.campaigns.sequences import SALT, base, eight_bit


def records(images: np.ndarray) -> np.ndarray:
    make = Fingerprinter(SALT, (3, 32, 32)).make
    query = Query(time=0.0, request="r", model="m", key=None, label="a", p_value=0.5, flagged=False)
    return pack([(query, make(image.astype(np.float32) / np.float32(255))) for image in images]).records


def test_near_duplicates_share_a_slot_and_others_rarely_do() -> None:
    rng = np.random.default_rng(0)
    index = Index(1000, SALT)
    bases = eight_bit([base(i) for i in range(100)])
    noisy = eight_bit([image + rng.normal(size=image.shape) * 4 for image in bases.astype(float)])
    for record in records(bases):
        index.add(record, index.places(record["coarse"][None], record["model"][None])[0])
    changed = records(noisy)
    found = [index.candidates(at) for at in index.places(changed["coarse"], changed["model"])]
    assert np.mean([i in numbers for i, numbers in enumerate(found)]) > 0.95
    assert np.mean([len(set(numbers) - {i}) for i, numbers in enumerate(found)]) < 1.0


def test_models_are_told_apart() -> None:
    index = Index(1000, SALT)
    coarse = records(eight_bit([base(0)]))["coarse"]
    a, b = index.places(coarse, np.array([0])), index.places(coarse, np.array([1]))
    assert not (a == b).any()


def test_the_oldest_is_forgotten_and_memory_is_fixed() -> None:
    index = Index(64, SALT)
    size = index.nbytes
    rng = np.random.default_rng(0)
    for i in range(1000):
        record = np.zeros(1, RECORD)[0]
        record["exact"], record["coarse"] = i, rng.integers(-100, 100, 64)
        places = index.places(record["coarse"][None], record["model"][None])[0]
        index.add(record, places)
        assert index.candidates(places)[0] == i
        assert all(index.alive(number) for number in index.candidates(places))
    assert (index.next, index.nbytes) == (1000, size)
    assert index.alive(936)
    assert not index.alive(935)
    assert index.record(999)["exact"] == 999
    assert size < 1000 * 600


def test_a_million_queries_take_at_most_600_bytes_each_with_their_row_in_the_store() -> None:
    assert (Index(1_000_000, SALT).nbytes + 1_000_000 * RECORD.itemsize) / 1_000_000 <= 600
