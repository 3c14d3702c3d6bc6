"""`palisade certificate check`: whether a certificate holds, without the gateway that made it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.terminal import reported

app = typer.Typer(no_args_is_help=True, help="Check certificates against patches.")


@app.callback()
def group() -> None:
    """Check certificates against patches."""


@app.command()
@reported
def check(
    answer: Annotated[Path, typer.Argument(help="Answer of /v1/predict?certify=patch (JSON).")],
    image: Annotated[Path, typer.Argument(help="The image file that was sent.")],
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle that answered.")],
) -> None:
    """Repeat a certificate from the answer's own record.

    The exit code is 1 if it does not hold (`certificate_refused`, `certificate_invalid`), and 2 if the bundle or a file
    cannot be read.
    """
    from gateway.answers.certificate_check import CertificateInvalid, CertificateRefused, check_certificate, read_answer
    from gateway.cli.files import ImageFile
    from gateway.opening import load_pipeline

    try:
        stated = read_answer(ImageFile(answer, answer).read())
        pipeline = load_pipeline(bundle)
        found = check_certificate(stated, ImageFile(image, image).read(), pipeline)
    except (CertificateInvalid, CertificateRefused) as error:
        typer.echo(f"{answer}: {error.code}: {error.detail}", err=True)
        raise typer.Exit(1) from None
    record, patch = stated.certificate.record, found.masks.patch
    where, here = (f"{each.provider}-{each.precision}" for each in (record, pipeline.engine))
    again = "" if here == where else f" (made on {where}, repeated on {here})"
    passes = "1 forward pass" if found.forwards == 1 else f"{found.forwards} forward passes"
    typer.echo(
        f"{answer}: {found.level}: {stated.label!r} against any patch of {patch} x {patch} pixels "
        f"({found.masks.share:.1%} of the image), {passes}{again}"
    )
