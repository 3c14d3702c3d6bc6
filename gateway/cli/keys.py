"""`palisade keys` makes, lists and revokes API keys."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from gateway.access.keys import ApiKey, Disclosure, Role, hash_key, new_key, read_keys, write_keys
from gateway.cli.terminal import reported
from gateway.errors import ConfigError
from gateway.settings import load_settings

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys.")

File = Annotated[Path | None, typer.Option("--file", help="Keys file (default: PALISADE_KEYS_FILE, else keys.json).")]


@app.command()
@reported
def create(
    key_id: Annotated[str, typer.Option("--id", help="Name of the key, of letters, digits and . _ -")],
    role: Annotated[Role, typer.Option(help="Role: what the holder of the key may do.")] = "client",
    disclosure: Annotated[
        Disclosure | None,
        typer.Option(help="Disclosure: what the holder sees of a decision (default: depends on the role)."),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Requests a second in the long run; 0 is unlimited (default: the gateway's).")
    ] = None,
    burst: Annotated[
        int | None, typer.Option(help="Requests that may be sent at once (default: the gateway's).")
    ] = None,
    file: File = None,
) -> None:
    """Make a key and print it: it cannot be shown again. Servers accept it within a second."""
    path = _path(file)
    entries = read_keys(path) if path.exists() else []
    if any(entry.id == key_id for entry in entries):
        raise ConfigError(
            f"{path} already has a key {key_id}; choose another --id (the id of a revoked key is not reused)"
        )
    key = new_key()
    try:
        entry = ApiKey(
            id=key_id,
            sha256=hash_key(key),
            role=role,
            disclosure=disclosure,
            rate=rate,
            burst=burst,
            created=datetime.now(UTC).replace(microsecond=0),
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"--{first['loc'][0]}: {first['msg']}") from None
    _write(path, [*entries, entry])
    typer.echo(f"{path}: {role} {key_id}; keep the key, it is not shown again", err=True)
    typer.echo(key)


@app.command("list")
@reported
def list_keys(file: File = None) -> None:
    """List the entries of the keys file, which holds hashes and never the keys themselves."""
    table = Table("id", "role", "disclosure", "rate", "burst", "created", "state", box=None)
    for entry in read_keys(_path(file)):
        limits = ("" if value is None else f"{value:g}" for value in (entry.rate, entry.burst))
        state = "revoked" if entry.disabled else "valid"
        table.add_row(entry.id, entry.role, entry.disclosure or "", *limits, f"{entry.created:%Y-%m-%d}", state)
    Console().print(table)


@app.command()
@reported
def revoke(key_id: Annotated[str, typer.Argument(metavar="ID")], file: File = None) -> None:
    """Disable a key, and its sessions, within a second."""
    path = _path(file)
    entries = read_keys(path)
    if all(entry.id != key_id for entry in entries):
        raise ConfigError(f"{path} has no key {key_id}; `palisade keys list` shows the ids")
    _write(path, [entry.model_copy(update={"disabled": entry.disabled or entry.id == key_id}) for entry in entries])
    typer.echo(f"{path}: {key_id} is revoked")


def _path(given: Path | None) -> Path:
    return given or load_settings().keys_file or Path("keys.json")


def _write(path: Path, entries: list[ApiKey]) -> None:
    try:
        write_keys(path, entries)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
