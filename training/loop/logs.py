"""Metrics of a run beside its checkpoints: `metrics.csv`, and TensorBoard where it is asked for."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any, Protocol

from training.errors import TrainingError
from training.util.checkpoint import write_text


class Writer(Protocol):
    """What we use of torch's SummaryWriter."""

    def add_scalar(self, tag: str, value: float, step: int, /) -> None: ...
    def close(self) -> None: ...


def write_metrics(path: Path, history: list[dict[str, Any]]) -> None:
    """One row an epoch, counted from 1; a column for every metric of any stage, empty where an epoch has none."""
    columns = list(dict.fromkeys(name for row in history for name in row))
    text = io.StringIO()
    table = csv.DictWriter(text, ["epoch", *columns], lineterminator="\n")
    table.writeheader()
    for number, row in enumerate(history, start=1):
        table.writerow({"epoch": number, **row})
    write_text(path, text.getvalue())


def open_tensorboard(folder: Path, *, done: int) -> Writer:
    """A writer of events below `folder`; those of epochs after `done` (a run that was killed) are dropped.

    `TrainingError` where TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise TrainingError(
            f"--tensorboard needs TensorBoard ({error}): pip install 'palisade-gateway[tensorboard]'"
        ) from None
    return SummaryWriter(str(folder), purge_step=done + 1)


def log_epoch(writer: Writer, number: int, metrics: dict[str, Any]) -> None:
    """The numbers among `metrics`, of epoch `number` (from 1)."""
    for name, value in metrics.items():
        if isinstance(value, float):
            writer.add_scalar(name, value, number)
