from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from training.errors import TrainingError
from training.loop.early_stopping import best_epoch, exhausted
from training.loop.logs import log_epoch, open_tensorboard, write_metrics

HISTORY = [{"stage": "a", "loss": 1.5, "ce": 1.5}, {"stage": "b", "loss": 0.5, "kl": 0.25}]


def test_metrics_have_a_row_an_epoch_and_a_column_for_every_term(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    write_metrics(path, HISTORY[:1])
    write_metrics(path, HISTORY)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"epoch": "1", "stage": "a", "loss": "1.5", "ce": "1.5", "kl": ""},
        {"epoch": "2", "stage": "b", "loss": "0.5", "ce": "", "kl": "0.25"},
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.csv"]


def test_tensorboard_that_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(TrainingError, match=r"pip install 'palisade-gateway\[tensorboard\]'"):
        open_tensorboard(tmp_path, done=0)


def test_numbers_alone_are_logged() -> None:
    told = []

    class Writer:
        def add_scalar(self, tag: str, value: float, step: int, /) -> None:
            told.append((tag, value, step))

        def close(self) -> None: ...

    log_epoch(Writer(), 2, HISTORY[1])
    assert told == [("loss", 0.5, 2), ("kl", 0.25, 2)]


@pytest.mark.parametrize(
    ("watched", "best", "stop"),
    [
        ([0.5], 0, False),
        ([0.5, 0.4], 0, False),
        ([0.5, 0.4, 0.5], 0, True),  # no better is not better
        ([0.5, 0.4, 0.6], 2, False),
        ([0.5, 0.6, 0.4, 0.3], 1, True),
    ],
)
def test_stopping_after_two_epochs_without_gain(watched: list[float], best: int, stop: bool) -> None:
    assert best_epoch(watched) == best
    assert exhausted(watched, patience=2) is stop


def test_nothing_watched_nothing_stopped() -> None:
    assert not exhausted([], patience=1)
