"""The commands report errors in one line, with exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import NoReturn, ParamSpec

from rich.console import Console

from gateway.errors import PalisadeError

P = ParamSpec("P")


def fail(message: str) -> NoReturn:
    """Print an error and end the command."""
    Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {plain(message)}", highlight=False)
    sys.exit(2)


def plain(text: str) -> str:
    """Text that Rich prints as it is."""
    return text.replace("[", r"\[")


def shown(path: Path | str) -> str:
    """A file's name or address without characters that steer the terminal or that no encoding has."""
    text = str(path)
    return text if text.isprintable() else repr(text)[1:-1]


def reported(command: Callable[P, None]) -> Callable[P, None]:
    """A command that reports a `PalisadeError` in one line and ends with exit code 2."""

    @wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except PalisadeError as error:
            fail(error.detail)

    return wrapper
