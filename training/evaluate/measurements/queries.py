"""Level 4: an attacker who can only ask a running gateway, at each level of disclosure."""

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
from typing import Any, Literal, get_args

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
from training.evaluate.harness.bench import Bench, as_images
from training.evaluate.harness.found import Found
from training.evaluate.harness.store import Arrays
from training.evaluate.measurements.benign import flags
from training.served.answers import serve
from training.util.statistics import interval

Disclosure = Literal["label", "verdict", "full"]
CHUNK, EPS, START_SECONDS = 10, 8, 120.0


def queries(bench: Bench) -> Found:
    """Queries until one answer is wrong and not flagged, over HTTP, 8/255: Square where the verdict is told, else RayS.

    The gateway is started here with its default policy and without keys; `won` is the share of images
    for which the budget was enough, `median` the median of queries where an image that stood counts as the budget.
    """
    settings = bench.settings
    clean = bench.test.take(bench.right_first(settings.queried))
    section: dict[str, Any] = {"n": len(clean), "eps": EPS, "budget": settings.queries}
    for disclosure in get_args(Disclosure):

        def make(start: int, stop: int, generator: torch.Generator, told: Disclosure = disclosure) -> Arrays:
            part = clean.take(np.arange(start, stop))
            x, y = bench.pixels(part.x), bench.targets(part.y)
            progress = partial(bench.progress, f"queries over HTTP, told {told}, images {start}-{stop}")
            with tempfile.TemporaryDirectory() as folder, gateway(bench.bundle.path, told, Path(folder)) as (url, key):
                endpoint = Endpoint(url, key)
                if told == "label":
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
        section[disclosure] = {
            "attack": "RayS" if disclosure == "label" else "Square",
            "won": float(rows["won"].mean()),
            "won_interval": interval(rows["won"], clean.group),
            "median": float(np.median(spent)),
        }
    return Found(section)


def _unflagged(bench: Bench, images: Tensor, labels: Tensor) -> Tensor:
    """What the attacker cannot see: which of the images are answered wrong and not flagged."""
    said, alpha = serve(bench.pipeline, as_images(images)), bench.bundle.manifest.policy.alpha
    wrong = said.served != labels.cpu().numpy()
    return torch.from_numpy(wrong & ~flags(bench, said, alpha)).to(images.device)


@contextmanager
def gateway(bundle: Path, disclosure: Disclosure, folder: Path) -> Iterator[tuple[str, str]]:
    """A gateway that serves `bundle` for the context: its address, and the key of a client who sees that much.

    `folder` has its keys and log. Raises `TrainingError` with the end of its log if it does not come up.
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
    raise TrainingError(f"the gateway did not come up: {' '.join(tail) or 'no word from it'}")
