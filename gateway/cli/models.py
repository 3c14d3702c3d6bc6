"""`palisade models`: which versions a running gateway serves, and switching between them."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from gateway.cli.terminal import plain, reported
from gateway.client import Gateway
from gateway.errors import BadParameter

app = typer.Typer(no_args_is_help=True, help="Show and switch the versions of models of a running gateway.")

Url = Annotated[str, typer.Option(envvar="PALISADE_URL", help="Address of the gateway.")]
Key = Annotated[
    str | None, typer.Option(envvar="PALISADE_KEY", help="API key with the role `admin`.", show_default=False)
]
Wait = Annotated[float, typer.Option(min=0.0, max=60.0, help="Seconds to wait until every worker runs the change.")]
Name = Annotated[str, typer.Argument(help="Name of the model.")]
Version = Annotated[str, typer.Argument(help="Version that the bundle's manifest states.")]

_URL = "http://127.0.0.1:3000"
_WAIT = 30.0
# A bundle is loaded and warmed up before the gateway answers.
_LOAD_SECONDS = 120.0


@app.command("list")
@reported
def list_models(url: Url = _URL, key: Key = None) -> None:
    """Print every version on disk and in memory."""
    _print(Gateway(url, key).call("GET", "v1", "admin", "models"))


@app.command()
@reported
def scan(url: Url = _URL, key: Key = None) -> None:
    """Check the files of every bundle again, then list the versions."""
    _print(Gateway(url, key).call("POST", "v1", "admin", "models", "scan", timeout=_LOAD_SECONDS))


@app.command()
@reported
def load(name: Name, version: Version, url: Url = _URL, key: Key = None, wait: Wait = _WAIT) -> None:
    """Keep a version loaded and warm beside the active one."""
    _change(Gateway(url, key), name, "load", {"version": version}, wait)


@app.command()
@reported
def activate(name: Name, version: Version, url: Url = _URL, key: Key = None, wait: Wait = _WAIT) -> None:
    """Let a version answer; requests in flight finish on the one before."""
    _change(Gateway(url, key), name, "activate", {"version": version}, wait)


@app.command()
@reported
def rollback(name: Name, url: Url = _URL, key: Key = None, wait: Wait = _WAIT) -> None:
    """Let the version answer that did so before."""
    _change(Gateway(url, key), name, "rollback", None, wait)


@app.command()
@reported
def shadow(
    name: Name,
    version: Annotated[str | None, typer.Argument(help="Version that is scored on the same images.")] = None,
    off: Annotated[bool, typer.Option("--off", help="End shadow mode for this model.")] = False,
    url: Url = _URL,
    key: Key = None,
    wait: Wait = _WAIT,
) -> None:
    """Score a second version on the same images; it never answers, and only the comparison is counted."""
    if (version is None) != off:
        raise BadParameter("shadow needs a version, or --off")
    _change(Gateway(url, key), name, "shadow", {"version": version}, wait)


@app.command()
@reported
def unload(name: Name, version: Version, url: Url = _URL, key: Key = None, wait: Wait = _WAIT) -> None:
    """End what `load` began: the version is no longer kept loaded."""
    _change(Gateway(url, key), name, "unload", {"version": version}, wait)


def _change(gateway: Gateway, name: str, what: str, body: object, wait: float) -> None:
    path = ("v1", "admin", "models", name, what)
    _print(gateway.call("POST", *path, query={"wait": wait}, body=body, timeout=wait + _LOAD_SECONDS))


def _print(state: dict[str, Any]) -> None:
    console = Console()
    table = Table("model", "version", "state", "created", "", box=None)
    for model in state["models"]:
        for version in model["versions"]:
            shown = "[bold green]active[/]" if version["state"] == "active" else version["state"]
            before = "previous" if version["version"] == model["previous"] else ""
            created = version["created"] or "folder is gone"
            table.add_row(plain(model["name"]), plain(version["version"]), shown, created, before)
    console.print(table)
    for refused in state["refused"]:
        console.print(f"[yellow]refused[/] {plain(refused['reason'])}", soft_wrap=True, highlight=False)
    behind = [worker for worker in state["workers"] if worker["generation"] < state["generation"]]
    for worker in behind:
        why = worker["problem"] or ("it is loading the change" if worker["ready"] else "it is starting")
        console.print(f"[yellow]behind[/]  worker {worker['pid']}: {plain(why)}", soft_wrap=True, highlight=False)
    workers = len(state["workers"])
    if state["converged"]:
        console.print(f"{workers} worker(s), all run this state", highlight=False)
    elif not behind:
        console.print(f"{workers} worker(s), others are being started", highlight=False)
