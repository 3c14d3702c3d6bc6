"""`palisade bundle`: what a bundle states, whether it is sound and answers as it did, and who signed it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from gateway.cli.terminal import plain, reported
from gateway.core.loading import read_manifest
from gateway.core.manifest import MANIFEST
from gateway.errors import ConfigError
from gateway.settings import load_settings

app = typer.Typer(no_args_is_help=True, help="Show, verify and sign bundles.")

Folder = Annotated[Path, typer.Argument(help="Folder of a bundle.")]
Pem = Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Private key (PEM; P-256, P-384 or P-521).")]
_PASSWORD = "PALISADE_KEY_PASSWORD"  # noqa: S105 (the name of a variable)


@app.command()
@reported
def show(path: Folder) -> None:
    """Print the contents of a bundle's manifest."""
    manifest = read_manifest(path)
    table = Table(show_header=False, box=None)
    size, layers = manifest.input, ", ".join(layer.name for layer in manifest.layers)
    rows = {
        "name": f"{manifest.name} {manifest.version}",
        "description": manifest.description,
        "created": manifest.created.isoformat(),
        "classes": f"{len(manifest.classes)}: {', '.join(manifest.classes[:4])}, ...",
        "input": f"{size.height} x {size.width}, {size.channels} channel(s), resize {size.resize.rule}",
        **({} if manifest.upstream is None else {"upstream": manifest.upstream.protocol.url}),
        "scores": ", ".join(manifest.scores),
        "layers": layers,
        "companion": "yes" if manifest.companion else "no",
        "calibrated": "; ".join(
            f"{c.key}, n {c.n}, alpha {', '.join(f'{cutoff.alpha:g}' for cutoff in c.cutoffs)}"
            for c in manifest.calibrations
        ),
        "policy": f"{manifest.policy.action} at alpha {manifest.policy.alpha:g}",
    }
    for name, value in rows.items():
        table.add_row(name, plain(value))
    Console().print(table)


@app.command("verify")
@reported
def verify_bundle(
    path: Folder,
    trust: Annotated[
        list[Path] | None,
        typer.Option(
            "--trust", help="Public key or root certificate (PEM) that must have signed it (default: PALISADE_TRUST)."
        ),
    ] = None,
) -> None:
    """Check hashes, schema, calibration and graph signature, run the graph, and answer the samples again.

    With --trust (or PALISADE_TRUST) the bundle's signature is checked as well, and PALISADE_REQUIRE_CARD asks for a
    card. The exit code is 1 if an answer differs from the one that the bundle states, 2 if the bundle is refused.
    """
    from gateway.upstream.opening import open_engine
    from gateway.versions.replay import replay

    demands = (load_settings(trust=trust) if trust else load_settings()).demands
    bundle = demands.load(path)
    engine = open_engine(bundle, device="cpu")
    seconds = engine.warm_up()
    count, differences = replay(bundle, engine)
    files = len(bundle.manifest.files)
    what = f"{bundle.name} {bundle.version}, {files} files intact" + (
        ", signed by a trusted key" if demands.trusted else ""
    )
    typer.echo(f"{path / MANIFEST}: {what}, graph runs ({seconds * 1e3:.1f} ms), {count} samples answered again")
    for difference in differences:
        sample, field = difference.sample, difference.field
        typer.echo(
            f"{path}: {sample}: {field} is {difference.found!r}, the bundle states {difference.stated!r}", err=True
        )
    if differences:
        raise typer.Exit(1)


@app.command()
@reported
def sign(
    path: Folder,
    key: Pem,
    certificate: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Certificate of the key, if a root is trusted.")
    ] = None,
    chain: Annotated[
        list[Path] | None, typer.Option(exists=True, dir_okay=False, help="Certificates between it and the root.")
    ] = None,
) -> None:
    """Check a bundle and sign its files (OpenSSF Model Signing, offline); the signature is put beside them.

    A key that is encrypted is opened with the password in PALISADE_KEY_PASSWORD. Anyone can check the signature:
    `palisade bundle verify --trust`, `PALISADE_TRUST` when serving, `model_signing verify key`.
    """
    from gateway.trust.signatures import Signer
    from gateway.trust.signatures import sign as sign_bundle

    if chain and certificate is None:
        raise ConfigError("--chain needs --certificate")
    signer = Signer(key, os.environ.get(_PASSWORD), certificate, tuple(chain or ()))
    typer.echo(f"{sign_bundle(path, signer)}: signed")
