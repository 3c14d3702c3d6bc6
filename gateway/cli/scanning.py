"""`palisade scan`: images of folders, tar shards and object stores, judged into a report."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from gateway.cli.images import Certify, CertifyLevel, Key, Model, Models, PatchSide, Url, choose_source
from gateway.cli.terminal import plain, reported, shown
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from gateway.answers.certificate_request import Asked
    from gateway.cli.files import Image
    from gateway.cli.scan import Report, Row, Scanner, Tally
    from gateway.cli.sources import Setup

LOCAL_BATCH, REMOTE_BATCH = 32, 8
INTERRUPTED = 130


@reported
def scan(
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Image files, folders, tar shards (.tar), or addresses of object stores (s3://BUCKET/PATH).",
            metavar="PATH...",
        ),
    ],
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
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS|local",
            help="Judge by workers on Ray (extra `ray`): a cluster's address, or `local` for this machine alone.",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Number of workers on Ray (default: one for each core that Ray has).")
    ] = None,
    certify: Certify = "none",
    patch_side: PatchSide = None,
    certify_level: CertifyLevel = None,
    only_flagged: Annotated[
        bool, typer.Option("--only-flagged", help="Print each flagged file when it is found.")
    ] = False,
) -> None:
    """Judge images of folders, tar shards and object stores into a report; a second run adds what is new or changed.

    The exit code is 1 if a file or shard could not be read or decoded, and 130 after Ctrl-C; both leave a report to
    resume. Addresses need the extra `remote`; credentials are those of the environment (AWS_...).
    """
    from gateway.answers.certificate_request import Asked
    from gateway.cli.archives import find_members, find_places
    from gateway.cli.scan import Report

    if ray is None and workers is not None:
        raise ConfigError("--workers is for scans on Ray: it needs --ray")
    if ray is not None and url is not None:
        raise ConfigError("--ray judges by workers of its own, --url by a gateway: choose one of them")
    asked = Asked(certify, patch_side, certify_level)
    asked.check()
    places = find_places(paths)
    if not places:
        raise ConfigError(f"no images in {', '.join(paths)}")
    with ExitStack() as stack:
        if ray is None:
            scanner: Scanner = _here(url, key, model, models, asked, batch)
        else:
            from gateway.cli.ray_workers import make_job, on_ray

            scanner = stack.enter_context(on_ray(ray, make_job(models, model, asked, batch or LOCAL_BATCH), workers))
        files = find_members(places, scanner.members)
        if not files:
            raise ConfigError(f"no images in {', '.join(paths)}")
        _run(files, scanner, Report(out), out, only_flagged=only_flagged)


def _here(
    url: str | None, key: str | None, model: str | None, models: list[str] | None, asked: Asked, batch: int | None
) -> Scanner:
    from gateway.cli.scan import Here
    from gateway.core.cores import usable_cores

    batch = batch or (REMOTE_BATCH if url else LOCAL_BATCH)
    return Here(choose_source(url, key, model, models, asked), batch, batch if url else usable_cores())


def _run(files: list[Image], scanner: Scanner, report: Report, out: Path, *, only_flagged: bool) -> None:
    """Judge what the report does not have yet, and sum up; raises `typer.Exit` with the command's code."""
    from gateway.cli.scan import Tally

    tally, interrupted, todo = Tally(), False, []
    for file in files:
        row = report.find(file, scanner.setup)
        if row is None:
            todo.append(file)
        else:
            tally.add(row)
    before = tally.files
    try:
        with _progress(len(todo)) as (advance, echo):
            for rows in scanner.rows(todo):
                report.append(rows)
                for row in rows:
                    tally.add(row)
                    if only_flagged and row["flagged"]:
                        echo(_flagged_line(row))
                advance(len(rows), tally)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        report.close()
        _summarize(tally, before, len(files), scanner.setup, out)
    if interrupted:
        raise typer.Exit(INTERRUPTED)
    if tally.errors:
        raise typer.Exit(1)


def _flagged_line(row: Row) -> str:
    p_value = "" if row["p_value"] is None else f"{row['p_value']:.4g}"
    return f"{shown(row['path'])}\t{row['label'] or ''}\t{p_value}"


def _summarize(tally: Tally, before: int, total: int, setup: Setup, out: Path) -> None:
    lines = [f"{total} images: {tally.files - before} new, {before} in {out} before, {tally.judged} judged"]
    if tally.files < total:
        lines.append(f"{total - tally.files} are left: run the same command again to resume")
    if tally.judged:
        expected = "" if setup.alpha is None else f"; of benign images at most {setup.alpha:.2%} are"
        lines.append(f"{tally.flagged} flagged ({tally.flagged / tally.judged:.2%}{expected})")
        lines.append(f"{tally.suspect} suspect, not flagged ({tally.suspect / tally.judged:.2%})")
        lines.append(f"{tally.neutralized} neutralized")
        counts = tally.certificates
        if counts:
            levels = (
                f"{counts[level]} {level} ({counts[level] / counts.total():.2%})"
                for level in ("proved", "agreed", "none")
            )
            lines.append(f"certificates ({setup.certified}): {', '.join(levels)}")
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
