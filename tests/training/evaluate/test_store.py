from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from training.errors import TrainingError
from training.evaluate.harness.store import Store, digest


class Maker:
    """Rows whose value is their number; fails from `limit` on, as a killed run does."""

    def __init__(self, limit: int = 10**9) -> None:
        self.asked: list[tuple[int, int]] = []
        self.limit = limit

    def __call__(self, start: int, stop: int) -> dict[str, np.ndarray]:
        if stop > self.limit:
            raise KeyboardInterrupt
        self.asked.append((start, stop))
        return {"row": np.arange(start, stop), "name": np.array([f"r{i}" for i in range(start, stop)])}


def test_a_killed_run_goes_on_where_it_was(tmp_path) -> None:
    store, first, second = Store(tmp_path), Maker(limit=8), Maker()
    with pytest.raises(KeyboardInterrupt):
        store.rows("a", "k", 10, 4, first)
    rows = Store(tmp_path).rows("a", "k", 10, 4, second)
    assert first.asked == [(0, 4), (4, 8)]
    assert second.asked == [(8, 10)]
    assert rows["row"].tolist() == list(range(10))
    assert rows["name"][9] == "r9"
    assert not list(tmp_path.rglob("*.part"))


def test_more_rows_go_on_from_the_last_chunk_and_fewer_use_a_part(tmp_path) -> None:
    store, more, fewer = Store(tmp_path), Maker(), Maker()
    store.rows("a", "k", 6, 4, Maker())
    assert store.rows("a", "k", 12, 4, more)["row"].tolist() == list(range(12))
    assert more.asked == [(6, 10), (10, 12)]
    assert store.rows("a", "k", 5, 4, fewer)["row"].tolist() == list(range(5))
    assert fewer.asked == []


def test_of_chunks_from_the_same_row_the_longest_is_used(tmp_path) -> None:
    store, other = Store(tmp_path), Maker()
    store.rows("a", "k", 2, 2, Maker())
    longer = tmp_path / "a-k" / "0-5.npz"
    made: dict[str, Any] = {**Maker()(0, 5)}
    np.savez_compressed(longer, **made)
    assert store.rows("a", "k", 7, 2, other)["row"].tolist() == list(range(7))
    assert other.asked == [(5, 7)]
    longer.write_bytes(b"PK\x03\x04 half a file")
    assert store.rows("a", "k", 2, 2, other)["row"].tolist() == [0, 1]
    assert other.asked == [(5, 7)]


def test_no_rows_are_no_chunk_to_go_on_from(tmp_path) -> None:
    store = Store(tmp_path)
    assert store.rows("a", "k", 0, 4, Maker())["row"].tolist() == []
    assert store.rows("a", "k", 3, 4, Maker())["row"].tolist() == [0, 1, 2]


def test_other_names_and_keys_are_apart(tmp_path) -> None:
    store, other = Store(tmp_path), Maker()
    store.rows("a", "k", 4, 4, Maker())
    store.rows("a", "l", 4, 4, other)
    store.rows("b", "k", 4, 4, other)
    assert len(other.asked) == 2


def test_a_chunk_that_cannot_be_read_is_made_again(tmp_path) -> None:
    store, again = Store(tmp_path), Maker()
    store.rows("a", "k", 4, 4, Maker())
    next(tmp_path.rglob("*.npz")).write_bytes(b"PK\x03\x04 half a file")
    assert store.rows("a", "k", 4, 4, again)["row"].tolist() == [0, 1, 2, 3]
    assert again.asked == [(0, 4)]


def test_results(tmp_path) -> None:
    store = Store(tmp_path)
    assert store.result("u") is None
    store.finish("u", {"n": 3})
    assert Store(tmp_path).result("u") == {"n": 3}
    (tmp_path / "units" / "u.json").write_text("{half")
    assert store.result("u") is None


def test_a_file_is_no_work_folder(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="is a file"):
        Store(tmp_path / "file")


def test_digest_tells_contents_apart_and_not_orders() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})
