"""`palisade settings`: every setting of the gateway, where it stands now, its default, and its meaning."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_args

import orjson
import typer
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.table import Table

from gateway.cli.terminal import plain, reported
from gateway.settings import Settings, load_settings

_HEAD = """# Settings

Environment variables of the gateway. `palisade settings` prints them with the values that they have now; one that is
not allowed is refused at the start with the name of its variable. (This page is `palisade settings --form markdown`.)

| variable | default | allowed | meaning |
| --- | --- | --- | --- |
"""


class Form(StrEnum):
    """How settings are printed."""

    TABLE = "table"
    JSON = "json"
    MARKDOWN = "markdown"


@dataclass(frozen=True)
class Setting:
    """One setting; `value` is None in place of a secret that is set."""

    variable: str
    default: str
    allowed: str
    meaning: str
    value: Any
    given: bool


@reported
def settings(
    form: Annotated[Form, typer.Option(help="`markdown` has defaults alone, as docs/settings.md.")] = Form.TABLE,
) -> None:
    """Print every setting of the gateway: its variable, value, default and meaning."""
    if form is Form.MARKDOWN:
        typer.echo(markdown(), nl=False)
        return
    found = described(load_settings())
    if form is Form.JSON:
        rows = [{"variable": s.variable, "value": s.value, "given": s.given, "meaning": s.meaning} for s in found]
        typer.echo(orjson.dumps(rows, option=orjson.OPT_INDENT_2).decode())
        return
    table = Table("variable", "now", "meaning", box=None, show_edge=False)
    for one in found:
        value = "(secret)" if one.given and one.value is None else _shown(one.value)
        table.add_row(one.variable, plain(f"{value}{'' if one.given else ' (default)'}"), plain(one.meaning))
    Console().print(table)


def described(now: Settings) -> list[Setting]:
    """Every setting of `now`, in the order of the class."""
    return [_described(name, field, getattr(now, name)) for name, field in Settings.model_fields.items()]


def markdown() -> str:
    """The page docs/settings.md."""
    rows = []
    for name, field in Settings.model_fields.items():
        one = _described(name, field, None)
        rows.append(f"| `{one.variable}` | {one.default} | {one.allowed} | {one.meaning} |\n".replace("||", "|"))
    return _HEAD + "".join(rows)


def _described(name: str, field: FieldInfo, value: Any) -> Setting:
    variable = f"PALISADE_{name.upper()}"
    default = "`models`" if name == "models" else _shown(field.get_default(call_default_factory=True))
    secret = field.repr is False
    return Setting(
        variable=variable,
        default="" if default == "unset" else default if default.startswith("`") else f"`{default}`",
        allowed=_allowed(field),
        meaning=" ".join((field.description or "").split()),
        value=None if secret else _plain(value),
        given=bool(os.environ.get(variable)),
    )


def _allowed(field: FieldInfo) -> str:
    """The values, or the bounds, that a setting may have."""
    parts = (field.annotation, *get_args(field.annotation))  # of `Literal[...] | None`, too
    choices = [choice for part in parts for choice in get_args(part) if isinstance(choice, str)]
    if choices:
        return ", ".join(f"`{choice}`" for choice in dict.fromkeys(choices))
    signs = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    bounds = [
        f"{words} {getattr(bound, sign):,}".replace(",", " ")
        for bound in field.metadata
        for sign, words in signs.items()
        if getattr(bound, sign, None) is not None
    ]
    return ", ".join(bounds)


def _shown(value: Any) -> str:
    if value is None or value == []:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    return os.pathsep.join(map(str, value)) if isinstance(value, list) else str(value)


def _plain(value: Any) -> Any:
    """A value that JSON holds."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value
