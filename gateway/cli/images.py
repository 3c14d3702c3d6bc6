"""`palisade predict`: images on disk, answered in this process or by a running gateway."""

from __future__ import annotations

import json
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Column, Table

from gateway.cli.terminal import plain, reported, shown
from gateway.errors import ConfigError, PalisadeError, UnreadableFile

if TYPE_CHECKING:
    from gateway.answers.certificate_request import Asked
    from gateway.cli.files import ImageFile
    from gateway.cli.sources import Body, Source

Model = Annotated[str | None, typer.Option(help="Name of the model.")]
Models = Annotated[
    list[str] | None,
    typer.Option("--models", "-m", help="Folder of bundles, bundle, or address (s3://, oci://); may be repeated."),
]
Url = Annotated[str | None, typer.Option(help="Address of a running gateway that answers in place of this process.")]
Key = Annotated[
    str | None,
    typer.Option(
        envvar="PALISADE_KEY",
        help="API key for --url; the environment variable keeps it out of the process list.",
        show_default=False,
    ),
]

Certify = Annotated[
    Literal["none", "patch", "small_field"],
    typer.Option(
        help="Certify each label against a square patch anywhere in the image; small_field: by the bundle's network of "
        "small fields alone, in one forward pass."
    ),
]
PatchSide = Annotated[
    int | None, typer.Option(min=1, help="Side of that patch in pixels of the network's input (default: by share).")
]
CertifyLevel = Annotated[
    Literal["agreed", "proved"] | None, typer.Option(help="Highest level of certificate that is tried.")
]


@reported
def predict(
    paths: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.", metavar="FILE|DIR...")],
    model: Model = None,
    models: Models = None,
    url: Url = None,
    key: Key = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a line, in the shape of the HTTP answer.")
    ] = False,
    explain: Annotated[Literal["none", "saliency", "all"], typer.Option(help="Which maps the JSON contains.")] = "none",
    panel: Annotated[Path | None, typer.Option(help="Folder that receives a picture of each decision.")] = None,
    certify: Certify = "none",
    patch_side: PatchSide = None,
    certify_level: CertifyLevel = None,
    require: Annotated[
        Literal["agreed", "proved"] | None, typer.Option(help="Refuse answers below this level of certificate.")
    ] = None,
) -> None:
    """Classify and judge images; the exit code is 1 if one of them got no answer."""
    from gateway.answers.certificate_request import Asked
    from gateway.cli.files import find_images
    from gateway.cli.sources import SourceFailed

    asked = Asked(certify, patch_side, certify_level, require)
    asked.check()
    files = find_images(paths)
    source = choose_source(url, key, model, models, asked)
    table = Table(
        Column("file", overflow="fold"),
        "prediction",
        "probability",
        "p-value",
        "flagged",
        "first answer",
        *(["certificate"] if certify != "none" else []),
        box=None,
    )
    failed = False
    pictures: set[Path] = set()
    for file in files:
        try:
            answer = source.answer(file.read(), explain=explain, picture=panel is not None)
        except SourceFailed:
            raise
        except PalisadeError as error:
            failed = True
            message = f"[red]{plain(shown(file.path))}:[/] {plain(error.detail)}"
            Console(stderr=True, soft_wrap=True).print(message, highlight=False)
            continue
        if panel is not None and answer.picture is not None:
            _write_picture(panel, file, answer.picture, pictures)
        if as_json:
            body = {name: value for name, value in answer.body.items() if name != "id"}
            typer.echo(json.dumps({"file": str(file.path), **body}))
        else:
            table.add_row(plain(shown(file.path)), *table_cells(answer.body))
    if table.row_count:
        Console().print(table)
    if failed or not files:
        raise typer.Exit(1)


def choose_source(
    url: str | None, key: str | None, model: str | None, models: list[str] | None, asked: Asked
) -> Source:
    """What answers, with the certificate that is asked for: the gateway at `url`, or else a model in this process."""
    if url is None:
        from gateway.cli.sources import open_local

        return open_local(models, model, asked)
    from gateway.cli.remote import Remote
    from gateway.client import Gateway

    if models:
        raise ConfigError("--models is for this process: with --url the gateway has its own")
    return Remote(Gateway(url, key), model=model, asked=asked)


_LEVELS = {"flagged": "[bold red]yes[/]", "suspect": "[yellow]suspect[/]"}


def table_cells(body: Body) -> list[str]:
    """A row of the table; a dash stands for what the gateway does not disclose."""
    parts = ("prediction", "verdict", "neutralization", "pool")
    prediction, verdict, neutralization, pool = (body.get(part) or {} for part in parts)
    certificate = [f"{made['level']} ({made['patch']['side']} px)"] if (made := body.get("certificate")) else []
    before = neutralization.get("before") if neutralization.get("served") else pool.get("before")
    flagged = "-" if "flagged" not in verdict else _LEVELS.get(str(verdict.get("level")), "no")
    return [
        plain(prediction["label"]),
        f"{prediction['probability']:.1%}" if "probability" in prediction else "-",
        _against_cutoff(verdict) if "p_value" in verdict else "-",
        flagged,
        plain(before["label"]) if before else "",
        *certificate,
    ]


def _against_cutoff(verdict: Body) -> str:
    """The p-value, and the cutoff that decides on it where the gateway discloses that."""
    p = f"{verdict['p_value']:.4f}"
    return f"{p} {'<=' if verdict['flagged'] else '>'} {verdict['p_cutoff']:.4f}" if "p_cutoff" in verdict else p


def _write_picture(folder: Path, file: ImageFile, picture: bytes, before: set[Path]) -> None:
    """Write the picture below `folder`, at the path that the image has below the folder that was named.

    `before` has the pictures of this run, to which it is added: none replaces another's (of `a.png` and `a.jpg`).
    """
    place = folder / file.relative
    names = chain((place.stem, place.name), (f"{place.name}.{number}" for number in count(2)))
    target = next(path for name in names if (path := place.with_name(f"{name}.panel.png")) not in before)
    before.add(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(picture)
    except OSError as error:
        raise UnreadableFile(f"{target}: {error.strerror}") from None
