"""`palisade predict` and `palisade scan`: images on disk, answered in this process or by a running gateway."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from gateway.cli.terminal import plain, reported, shown
from gateway.errors import ConfigError, PalisadeError, UnreadableFile

if TYPE_CHECKING:
    from gateway.cli.files import ImageFile
    from gateway.cli.scan import Row, Tally
    from gateway.cli.sources import Body, Source

LOCAL_BATCH, REMOTE_BATCH = 32, 8
INTERRUPTED = 130

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
    certify: Annotated[
        Literal["none", "patch"], typer.Option(help="Certify each label against a square patch anywhere in the image.")
    ] = "none",
    patch_side: Annotated[
        int | None, typer.Option(min=1, help="Side of that patch in pixels of the network's input (default: by share).")
    ] = None,
    certify_level: Annotated[
        Literal["agreed", "proved"] | None, typer.Option(help="Highest level of certificate that is tried.")
    ] = None,
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
    source = _source(url, key, model, models)
    table = Table(
        Column("file", overflow="fold"),
        "prediction",
        "probability",
        "p-value",
        "flagged",
        "before neutralisation",
        *(["certificate"] if certify != "none" else []),
        box=None,
    )
    failed = False
    for file in files:
        try:
            answer = source.answer(file.read(), explain=explain, picture=panel is not None, asked=asked)
        except SourceFailed:
            raise
        except PalisadeError as error:
            failed = True
            message = f"[red]{plain(shown(file.path))}:[/] {plain(error.detail)}"
            Console(stderr=True, soft_wrap=True).print(message, highlight=False)
            continue
        if panel is not None and answer.picture is not None:
            _write_picture(panel, file, answer.picture)
        if as_json:
            body = {name: value for name, value in answer.body.items() if name != "id"}
            typer.echo(json.dumps({"file": str(file.path), **body}))
        else:
            table.add_row(plain(shown(file.path)), *table_cells(answer.body))
    if table.row_count:
        Console().print(table)
    if failed or not files:
        raise typer.Exit(1)


@reported
def scan(
    paths: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.", metavar="DIR...")],
    out: Annotated[Path, typer.Option(help="Report with one JSON object a line; an existing report is resumed.")],
    model: Model = None,
    models: Models = None,
    url: Url = None,
    key: Key = None,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            help="Number of images in a batch (default 32); with --url, number of concurrent requests (default 8).",
        ),
    ] = None,
    only_flagged: Annotated[
        bool, typer.Option("--only-flagged", help="Print each flagged file when it is found.")
    ] = False,
) -> None:
    """Judge folders of images into a report; a second run adds what is new or has changed.

    The exit code is 1 if a file could not be read or decoded, and 130 after Ctrl-C; both leave a report to resume.
    """
    from gateway.cli.files import find_images
    from gateway.cli.scan import Report, Tally
    from gateway.cli.scan import scan as run
    from gateway.core.cores import usable_cores

    for path in paths:
        if not path.exists():
            raise ConfigError(f"{path}: no such file or folder")
    files = find_images(paths)
    if not files:
        raise ConfigError(f"no images in {', '.join(map(str, paths))}")
    source = _source(url, key, model, models)
    batch = batch or (REMOTE_BATCH if url else LOCAL_BATCH)
    report = Report(out)
    tally, interrupted, todo = Tally(), False, []
    for file in files:
        row = report.find(file, source.setup)
        if row is None:
            todo.append(file)
        else:
            tally.add(row)
    before = tally.files
    try:
        with _progress(len(todo)) as (advance, echo):

            def on_rows(rows: list[Row]) -> None:
                for row in rows:
                    tally.add(row)
                    if only_flagged and row["flagged"]:
                        echo(_flagged_line(row))
                advance(len(rows), tally)

            run(todo, source, report, batch=batch, threads=batch if url else usable_cores(), on_rows=on_rows)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        report.close()
        _summarize(tally, before, len(files), source.setup.alpha, out)
    if interrupted:
        raise typer.Exit(INTERRUPTED)
    if tally.errors:
        raise typer.Exit(1)


def _source(url: str | None, key: str | None, model: str | None, models: list[str] | None) -> Source:
    if url is None:
        from gateway.cli.sources import open_local

        return open_local(models, model)
    from gateway.cli.remote import Remote
    from gateway.client import Gateway

    if models:
        raise ConfigError("--models is for this process: with --url the gateway has its own")
    return Remote(Gateway(url, key), model=model)


_LEVELS = {"flagged": "[bold red]yes[/]", "suspect": "[yellow]suspect[/]"}


def table_cells(body: Body) -> list[str]:
    """A row of the table; a dash stands for what the gateway does not disclose."""
    prediction, verdict, neutralization = (body.get(part) or {} for part in ("prediction", "verdict", "neutralization"))
    certificate = [f"{made['level']} ({made['patch']['side']} px)"] if (made := body.get("certificate")) else []
    before = neutralization.get("before") if neutralization.get("served") else None
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


def _write_picture(folder: Path, file: ImageFile, picture: bytes) -> None:
    """Write the picture below `folder`, at the path that the image has below the folder that was named."""
    place = folder / file.relative
    target = place.with_name(f"{place.stem}.panel.png")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(picture)
    except OSError as error:
        raise UnreadableFile(f"{target}: {error.strerror}") from None


def _flagged_line(row: Row) -> str:
    p_value = "" if row["p_value"] is None else f"{row['p_value']:.4g}"
    return f"{shown(Path(row['path']))}\t{row['label'] or ''}\t{p_value}"


def _summarize(tally: Tally, before: int, total: int, alpha: float | None, out: Path) -> None:
    lines = [f"{total} images: {tally.files - before} new, {before} in {out} before, {tally.judged} judged"]
    if tally.files < total:
        lines.append(f"{total - tally.files} are left: run the same command again to resume")
    if tally.judged:
        expected = "" if alpha is None else f"; of benign images at most {alpha:.2%} are"
        lines.append(f"{tally.flagged} flagged ({tally.flagged / tally.judged:.2%}{expected})")
        lines.append(f"{tally.suspect} suspect, not flagged ({tally.suspect / tally.judged:.2%})")
        lines.append(f"{tally.neutralized} neutralized")
    lines += [f"{count} failed: {code}" for code, count in sorted(tally.errors.items())]
    Console(stderr=True, soft_wrap=True, highlight=False).print("\n".join(plain(line) for line in lines))


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.1f} images/s" if task.speed else "")


@contextmanager
def _progress(total: int) -> Iterator[tuple[Callable[[int, Tally], None], Callable[[str], Any]]]:
    """A bar on the terminal's error stream, and a way to print lines past it; without a terminal, lines alone."""
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(
        *columns, console=console, disable=not console.is_terminal, redirect_stdout=sys.stdout.isatty()
    ) as bar:
        task = bar.add_task("", total=total)

        def advance(count: int, tally: Tally) -> None:
            bar.update(task, advance=count, description=f"{tally.flagged} flagged, {tally.errors.total()} failed")

        yield advance, typer.echo
