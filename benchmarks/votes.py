"""What votes and the pool cost over HTTP: `python -m benchmarks.votes`.

Three gateways, one without either, one with the pool (the default) and one with `PALISADE_VOTES` as well, answer the
same images in turns, one at a time while the others rest: images a second and p50, with one client and with several.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.loadgen import drive, request_bytes
from benchmarks.record import record
from benchmarks.servers import ROOT, images_to_send, palisade
from gateway.core.loading import load_bundle
from training.commands.terminal import JsonPath

SERVED: dict[str, dict[str, bool]] = {"neither": {"pool": False}, "the pool": {}, "the pool and votes": {"votes": True}}
"""Settings of each gateway."""


def main(
    bundle: Annotated[Path, typer.Option(help="Bundle to serve, with votes calibrated.")] = ROOT / "models" / "gtsrb",
    images: Annotated[Path | None, typer.Option(help="Folder of images (default: traffic signs).")] = None,
    threads: Annotated[int, typer.Option(help="Engine threads; 0: every core.")] = 0,
    clients: Annotated[int, typer.Option(min=1, help="Clients, beside a turn with one.")] = 32,
    seconds: Annotated[float, typer.Option(min=1, help="Seconds of each turn.")] = 5.0,
    turns: Annotated[int, typer.Option(min=1, help="Turns of each.")] = 3,
    json_path: JsonPath = None,
) -> None:
    """Throughput and latency with votes and the pool, and without."""
    sent, loaded = images_to_send(images), load_bundle(bundle)
    seen: dict[tuple[str, int], list[tuple[float, float]]] = {}
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(palisade(bundle, path="/v1/predict", threads=threads, audit=False, **settings))
            for name, settings in SERVED.items()
        }
        for turn in range(turns + 1):
            for name, server in servers.items():
                requests = [request_bytes(server.url + server.path, image) for image in sent]
                for some in (1, clients):
                    tally = asyncio.run(drive(server.url, requests, clients=some, seconds=seconds))
                    if turn:  # the first warms up
                        seen.setdefault((name, some), []).append((tally.rate(), tally.quantiles_ms()["p50"]))
    figures: dict[str, Any] = {"bundle": f"{loaded.name} {loaded.version}", "turns": turns, "seconds": seconds}
    for (name, some), rows in seen.items():
        rate, p50 = np.median(rows, axis=0)
        figures[f"{name}, {some} clients"] = {
            "images_per_second": round(float(rate), 1),
            "p50_ms": round(float(p50), 1),
        }
    print(json.dumps(figures, indent=1))
    if json_path is not None:
        record(json_path, "votes and the pool over HTTP", figures)


if __name__ == "__main__":
    typer.run(main)
