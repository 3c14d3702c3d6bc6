"""What every training command shares: errors as one line, progress bars, options."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import torch
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from gateway.errors import PalisadeError
from training.errors import TrainingError
from training.util.processes import processes

P = ParamSpec("P")
R = TypeVar("R")
console, errors = Console(), Console(stderr=True)

Runs = Annotated[Path, typer.Option(help="Folder of training runs; each run is named after its recipe.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; default: as many as torch chooses.")]
JsonPath = Annotated[Path | None, typer.Option("--json", help="Write the figures to this JSON file.")]
Subject = Annotated[Path, typer.Argument(help="Folder of a bundle or of a training run.")]
BundlePath = Annotated[Path, typer.Argument(help="Folder of a bundle.")]


def command(function: Callable[P, R]) -> Callable[P, R]:
    """Errors that the user can act on become one line and exit code 2; an interrupt states how to resume.

    So does SIGTERM, which would end the process without ending what it has started.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        _log_to_console()
        try:
            if processes() > 1 and function.__name__ != "train":
                raise TrainingError("only `palisade train` runs in several processes; run this command alone")
            with _terminable():
                return function(*args, **kwargs)
        except (TrainingError, PalisadeError) as error:
            errors.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(2) from None
        except OSError as error:
            place = f": {error.filename}" if error.filename else ""
            errors.print(f"error: {error.strerror or error}{place}", style="red", markup=False, soft_wrap=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt as stopped:
            errors.print("stopped; run the same command again to resume from the last checkpoint")
            raise typer.Exit(128 + (signal.SIGTERM if isinstance(stopped, _Terminated) else signal.SIGINT)) from None

    return run


class _Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM)."""


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM raises `_Terminated` within, so that what is open is closed; it does nothing beside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(_signal: int, _frame: object) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _ConsoleHandler(logging.Handler):
    """Records of training's modules as plain lines on stderr, above the progress bars where there are some."""

    def emit(self, record: logging.LogRecord) -> None:
        errors.print(record.getMessage(), markup=False, highlight=False, soft_wrap=True)


def _log_to_console() -> None:
    logger = logging.getLogger("training")
    if not any(isinstance(handler, _ConsoleHandler) for handler in logger.handlers):
        logger.addHandler(_ConsoleHandler())
        logger.setLevel(logging.INFO)


class Bars:
    """Progress bars of a command: one for each training run and one for each other step."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._tasks = progress, dict[str, TaskID]()

    def training(self, run: str, event: dict[str, Any]) -> None:
        if "batch" in event:
            text = f"{run}: {event['stage']}, epoch {event['of_epoch']}/{event['of_epochs']}, loss {event['loss']:.3f}"
            done = (event["of_epoch"] - 1) * event["batches"] + event["batch"]  # of the whole run, as is the time left
            self._set(run, text, done, event["of_epochs"] * event["batches"])
        elif "step" in event:
            self.step(f"{run}: {event['step']}", event["done"], event["total"])
        else:
            terms = ", ".join(f"{k} {v:.4f}" for k, v in event.items() if isinstance(v, float))
            self._progress.console.print(f"{run}: epoch {event['epoch']}/{event['epochs']} ({event['stage']}): {terms}")

    def step(self, name: str, done: int, total: int) -> None:
        self._set(name, name, done, total)

    def _set(self, key: str, text: str, done: int, total: int) -> None:
        if key not in self._tasks:
            for task in self._progress.tasks:  # steps follow one another: what came before is done
                self._progress.update(task.id, completed=task.total)
            self._tasks[key] = self._progress.add_task(text, completed=max(done - 1, 0), total=total)
            if not self._progress.console.is_terminal:  # bars are not drawn into a log file; print the step
                self._progress.console.print(text)
        self._progress.update(self._tasks[key], description=text, completed=done, total=total)


@contextmanager
def progress_bars(*, shown: bool = True) -> Iterator[Bars]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, speed_estimate_period=600, console=errors if shown else Console(quiet=True)) as progress:
        yield Bars(progress)


def use_threads(threads: int | None) -> None:
    if threads:
        torch.set_num_threads(threads)
