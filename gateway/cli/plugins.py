"""Commands that other packages add to `palisade`, found by the entry point group `palisade.commands`.

An entry point of that group names a mapping from a command's name to its `Plugin`; a name of two words is a command of
the group `palisade <first word>`. The mapping is read to list the
commands; the module behind a command is imported only when the command is run, since it may import torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any, NamedTuple

import typer
from typer.core import TyperGroup

from gateway.cli.terminal import fail

GROUP = "palisade.commands"


class Plugin(NamedTuple):
    """One command: `target` is `package.module:attribute`, a function or a Typer application; `help` describes it."""

    target: str
    help: str


class Commands(TyperGroup):
    """A group's own commands and those that other packages add to it."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *self._added()]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        added = self._added().get(cmd_name)
        return super().get_command(ctx, cmd_name) if added is None else placeholder(added)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = self._added().get(args[0])
        if name is None:
            return super().resolve_command(ctx, args)
        try:
            return args[0], load(name), args[1:]
        except ImportError as error:
            fail(f"{name} needs the training extra ({error}): pip install 'palisade-gateway[training]'")

    def _added(self) -> dict[str, str]:
        """The plugins' names by the word that calls them here."""
        ours = [name for name in plugins() if name.rpartition(" ")[0] == self.group_of_plugins]
        return {name.rpartition(" ")[2]: name for name in ours}

    group_of_plugins = ""
    """First word of the names of this group's plugins; empty of the whole command's."""


@cache
def plugins() -> Mapping[str, Plugin]:
    """Every added command by name; the first entry point that names a command wins."""
    found: dict[str, Plugin] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.value):
        for name, plugin in entry.load().items():
            found.setdefault(name, Plugin(*plugin))
    return found


def placeholder(name: str) -> Any:
    """A command that only shows the help line of the added command `name`."""
    stub = typer.Typer(add_completion=False)
    stub.command(name.rpartition(" ")[2], help=plugins()[name].help)(lambda: None)
    return typer.main.get_command(stub)


def load(name: str) -> Any:
    """The click command behind `name`; raises `ImportError` if something that it needs is not installed."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    add(app, name, plugins()[name])
    command = typer.main.get_command(app)
    return getattr(command, "commands", {}).get(name, command)


def add(app: typer.Typer, name: str, plugin: Plugin) -> None:
    """Import the command `plugin` and add it to `app` as `name`; raises `ImportError`."""
    module, _, attribute = plugin.target.partition(":")
    target = getattr(importlib.import_module(module), attribute)
    if isinstance(target, typer.Typer):
        app.add_typer(target, name=name)
    else:
        app.command(name)(target)
