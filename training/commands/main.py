"""All commands of training as one Typer application, for tests; users call them as `palisade COMMAND`."""

from __future__ import annotations

import typer

from gateway.cli.plugins import add
from training.commands import COMMANDS

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
for _name, _plugin in COMMANDS.items():
    add(app, _name, _plugin)
