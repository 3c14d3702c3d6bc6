"""Commands as a user calls them."""

from __future__ import annotations

from typer.testing import CliRunner

from training.commands.main import app


def run(*arguments: object) -> tuple[int, str]:
    """The exit code of `palisade ARGUMENTS`, and what it said, on one line."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return done.exit_code, " ".join(done.output.split())
