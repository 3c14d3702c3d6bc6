"""`palisade serve` and `palisade guard`: check everything that a server needs, then become the server."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from gateway import __version__
from gateway.cli.plugins import Commands
from gateway.cli.terminal import fail, reported
from gateway.settings import load_settings
from gateway.upstream.opening import address_of

Models = Annotated[
    list[str] | None,
    typer.Option("--models", "-m", help="Folder of bundles, bundle, or address (s3://, oci://); may be repeated."),
]
Host = Annotated[str | None, typer.Option(help="Address to listen on (default 127.0.0.1).")]
Port = Annotated[int | None, typer.Option(help="Port to listen on (default 3000).")]
Device = Annotated[
    Literal["auto", "cpu", "cuda"] | None, typer.Option(help="Device that runs the graph (default auto).")
]
Precision = Annotated[
    Literal["auto", "fp32", "fp16"] | None, typer.Option(help="Precision of the graph (default auto).")
]
Threads = Annotated[int | None, typer.Option(help="Threads of each worker (default: cores divided by workers).")]
Policy = Annotated[
    Literal["observe", "sanitize", "block"] | None,
    typer.Option(help="Action on flagged inputs (default: the bundle's)."),
]
Alpha = Annotated[
    float | None,
    typer.Option(help="False-positive rate of flags, one that the bundle was calibrated for (default: the bundle's)."),
]
_GUARDED = Path("models/guarded")


class _Guard(Commands):
    group_of_plugins = "guard"


guard_app = typer.Typer(cls=_Guard, invoke_without_command=True, add_completion=False)


@reported
def serve(
    models: Models = None,
    host: Host = None,
    port: Port = None,
    workers: Annotated[
        int | None, typer.Option(help="Number of worker processes (default 1); with CUDA each has one GPU.")
    ] = None,
    device: Device = None,
    precision: Precision = None,
    threads: Threads = None,
    policy: Policy = None,
    alpha: Alpha = None,
) -> None:
    """Serve bundles over HTTP; each option can also be set by the environment variable PALISADE_<OPTION>."""
    _start(
        models=models,
        host=host,
        port=port,
        workers=workers,
        device=device,
        precision=precision,
        threads=threads,
        policy=policy,
        alpha=alpha,
    )


@guard_app.callback()
@reported
def guard(
    ctx: typer.Context,
    upstream: Annotated[
        str | None,
        typer.Option(
            help="The server whose answers are judged, as http://HOST:PORT (default: where it was calibrated)."
        ),
    ] = None,
    models: Models = None,
    host: Host = None,
    port: Port = None,
    workers: Annotated[int | None, typer.Option(help="Number of worker processes (default 1).")] = None,
    threads: Threads = None,
    policy: Policy = None,
    alpha: Alpha = None,
) -> None:
    """Stand before another model server, and flag, explain and neutralise attacks on the model that it serves.

    First `palisade guard calibrate` makes the bundle (default: models/guarded). The server stays as it is; without its
    answers the gateway is not ready. A token for it is read from PALISADE_UPSTREAM_TOKEN.
    """
    if ctx.invoked_subcommand is not None:
        if upstream is not None:
            fail(f"options of `guard {ctx.invoked_subcommand}` stand behind its name")
        return
    if models is None and not _GUARDED.is_dir():
        fail(f"{_GUARDED}: no such folder: make it by `palisade guard calibrate`, or name a bundle with --models")
    _start(
        upstream=upstream,
        models=models or [_GUARDED],
        host=host,
        port=port,
        workers=workers,
        threads=threads,
        policy=policy,
        alpha=alpha,
    )


def _start(**given: Any) -> None:
    """Become the server with these settings, those that are not None; raises `PalisadeError` where it could not run."""
    from gateway.access.auth import check_access
    from gateway.audit.trail import check_audit
    from gateway.process.home import bentoml_home
    from gateway.process.serving import free_port, run_server, sample_image
    from gateway.pulling.cache import fetch_sources
    from gateway.replicas.exchange import check_replicas
    from gateway.telemetry.tracing import tracing_options
    from gateway.versions.registry import load_registry, opened
    from gateway.versions.rollout import stored_wanted

    settings = load_settings(**{name: value for name, value in given.items() if value is not None})
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    check_access(settings)
    check_audit(settings)
    check_replicas(settings)
    tracing_options(settings)
    fetch_sources(settings)
    # Opening the bundles once here reports an error in one line with an exit code, before workers start and warm up.
    registry = load_registry(settings, stored_wanted(settings), load=opened)
    free_port(settings)
    home = bentoml_home(settings)
    where = f"http://{settings.host}:{settings.port}"
    served = ", ".join(f"{pipeline.bundle.name} {pipeline.bundle.version}" for pipeline in registry)
    typer.echo(f"palisade {__version__} serves {served} on {where}")
    for pipeline in registry:
        if (upstream := address_of(pipeline.engine)) is not None:
            typer.echo(f"  before   {upstream}")
    sample = sample_image(registry.get().bundle.path)
    typer.echo(f"  try      curl -s --data-binary @{sample} -H 'Content-Type: image/png' '{where}/v1/predict'")
    typer.echo(f"  see      {where}/ in a browser; {where}/docs.json, {where}/metrics")
    run_server(settings, home)
