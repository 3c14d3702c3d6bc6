"""Level 5: an attacker who can only ask a running gateway, at each level of disclosure."""

from __future__ import annotations

import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from gateway.access.keys import ApiKey, hash_key, new_key, write_keys
from gateway.client import Gateway, GatewayAnswer, GatewayUnreachable
from gateway.process.serving import server_command, server_environment
from gateway.settings import Settings
from training.attacks.endpoint import Endpoint
from training.attacks.rays import rays
from training.attacks.square import square
from training.errors import TrainingError
from training.evaluate.harness.attacked import flags
from training.evaluate.harness.bench import Bench, as_images
from training.evaluate.harness.found import Found
from training.evaluate.harness.section import Interval, Section
from training.evaluate.harness.shown import Body, Table, ranged
from training.evaluate.harness.store import Arrays
from training.evaluate.harness.unit import Place, Unit
from training.served.answers import serve
from training.util.statistics import interval

Disclosure = Literal["label", "verdict", "full"]
CHUNK, EPS, START_SECONDS = 10, 8, 120.0


class Asked(Section):
    """One attack at one level of disclosure: share of images won, median of queries (budget where the image stood)."""

    attack: str
    won: float
    won_interval: Interval
    median: float


class Queries(Section):
    """At most `budget` queries for each of `n` images, within Linf `eps` / 255; a row for each level of disclosure."""

    n: int
    eps: float
    budget: int
    label: Asked
    verdict: Asked
    full: Asked


def queries(bench: Bench) -> Found:
    """Queries until an answer is wrong and not flagged, over HTTP, 8/255: Square where the verdict is shown, else RayS.

    The gateway is started here with its default policy and without keys; `won` is the share of images
    for which the budget was enough, `median` the median of queries where an image that stood counts as the budget.
    """
    settings = bench.settings
    clean = bench.test.take(bench.right_first(settings.queried))
    asked = {}
    for disclosure in get_args(Disclosure):

        def make(start: int, stop: int, generator: torch.Generator, shown: Disclosure = disclosure) -> Arrays:
            part = clean.take(np.arange(start, stop))
            x, y = bench.pixels(part.x), bench.targets(part.y)
            progress = partial(bench.progress, f"queries over HTTP, disclosure {shown}, images {start}-{stop}")
            with tempfile.TemporaryDirectory() as folder, gateway(bench.bundle.path, shown, Path(folder)) as (url, key):
                endpoint = Endpoint(url, key)
                if shown == "label":
                    done = rays(
                        endpoint.fooled,
                        x,
                        y,
                        confirmed=partial(_unflagged, bench),
                        eps=EPS / 255,
                        queries=settings.queries,
                        generator=generator,
                        progress=progress,
                    )
                else:
                    done = square(
                        endpoint.score,
                        x,
                        y,
                        eps=EPS / 255,
                        queries=settings.queries,
                        generator=generator,
                        progress=progress,
                    )
            return {"won": done.succeeded.cpu().numpy(), "queries": done.queries.cpu().numpy()}

        rows = bench.rows(
            f"queries, {disclosure}",
            f"queries-{disclosure}",
            {"budget": settings.queries},
            len(clean),
            CHUNK,
            make,
            served=True,
        )
        spent = np.where(rows["won"], rows["queries"], settings.queries)
        asked[disclosure] = Asked(
            attack="RayS" if disclosure == "label" else "Square",
            won=float(rows["won"].mean()),
            won_interval=interval(rows["won"], clean.group),
            median=float(np.median(spent)),
        )
    return Found(Queries(n=len(clean), eps=EPS, budget=settings.queries, **asked))


def _unflagged(bench: Bench, images: Tensor, labels: Tensor) -> Tensor:
    """What the attacker cannot see: which of the images are answered wrong and not flagged."""
    answers, alpha = serve(bench.pipeline, as_images(images)), bench.bundle.manifest.policy.alpha
    wrong = answers.served != labels.cpu().numpy()
    return torch.from_numpy(wrong & ~flags(bench, answers, alpha)).to(images.device)


@contextmanager
def gateway(bundle: Path, disclosure: Disclosure, folder: Path) -> Iterator[tuple[str, str]]:
    """A gateway that serves `bundle` for the context: its address, and the key of a client who sees that much.

    `folder` has its keys and log. Raises `TrainingError` with the end of its log if it does not start.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    key = new_key()
    entry = ApiKey(
        id="attacker", sha256=hash_key(key), role="client", disclosure=disclosure, rate=0, created=datetime.now(UTC)
    )
    write_keys(folder / "keys.json", [entry])
    chosen = Settings(
        models=[bundle],
        port=port,
        keys_file=folder / "keys.json",
        data_dir=folder / "data",
        audit=False,
        label_quantum=0.01,
    )
    log = folder / "gateway.log"
    with log.open("wb") as file:
        process = subprocess.Popen(  # noqa: S603  # our own command
            server_command(chosen),
            env=server_environment(chosen) | {"BENTOML_HOME": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(process, url, log)
        yield url, key
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            Gateway(url).send("GET", "readyz", timeout=5.0)
            return
        except (GatewayAnswer, GatewayUnreachable):
            time.sleep(0.2)
    tail = log.read_text("utf-8", errors="replace").strip().splitlines()[-1:]
    raise TrainingError(f"the gateway did not start: {' '.join(tail) or 'it printed nothing'}")


def _show(found: Queries) -> Body:
    levels: dict[Disclosure, Asked] = {"label": found.label, "verdict": found.verdict, "full": found.full}
    rows = [
        (level, row.attack, ranged(row.won, row.won_interval), f"{row.median:,.0f}") for level, row in levels.items()
    ]
    return [
        f"At {found.eps:g}/255, n = {found.n}, at most {found.budget:,} queries an image.",
        Table(("disclosed", "attack", "images won", "median of queries (budget where it stood)"), rows),
        (
            "One query is enough to send an image made on networks of one's own: the rows of transferred attacks "
            "above. Where a row here is below those, its sample was too small or the attack too weak to show it; an "
            "attacker has both. Callers at `full` see maps too, which these attacks do not use."
        ),
    ]


UNIT = Unit(
    "queries",
    "5",
    "queries over HTTP",
    queries,
    Queries,
    ("queries",),
    (
        Place(
            "queries",
            "Queries over HTTP",
            "Queries to a running gateway until one answer is wrong and not flagged, by what the gateway discloses.",
            "seen",
            Queries,
            _show,
        ),
    ),
    count="queried",
    depends=("queries",),
    seconds=60,
)
