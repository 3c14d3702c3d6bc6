"""What looking for campaigns costs a gateway under load: `python -m benchmarks.campaigns_load`.

Two gateways, one with `campaigns` and one without, are loaded in turns by as many clients; the ratio is of each turn.
Every image is sent to each gateway once, as far as they last: the frames of the traffic signs in random order, which
are near-duplicates of each other by track, so that nearly every query is compared with a group of earlier ones.
"""

from __future__ import annotations

import asyncio
import io
import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from benchmarks.loadgen import drive, request_bytes
from benchmarks.record import record
from benchmarks.servers import Server, palisade
from training.commands.terminal import JsonPath


def main(
    data: Annotated[Path, typer.Option(envvar="PALISADE_DATA", help="Folder of gtsrb32_full.npz.")],
    bundle: Annotated[Path, typer.Option(help="Bundle that is served.")] = Path("models/gtsrb"),
    images: Annotated[int, typer.Option(min=1, help="Different images that are sent in turn.")] = 51_000,
    clients: Annotated[int, typer.Option(min=1, help="Clients at once.")] = 32,
    turns: Annotated[int, typer.Option(min=2, help="Turns of each gateway.")] = 12,
    seconds: Annotated[float, typer.Option(min=1, help="Seconds of a turn.")] = 5.0,
    json_path: JsonPath = None,
) -> None:
    """Images a second with and without campaigns, and the share that they cost."""
    with np.load(data / "gtsrb32_full.npz") as found:
        frames = np.concatenate([found["x_test"], found["x_train"]])
    chosen = frames[np.random.default_rng(0).choice(len(frames), min(images, len(frames)), replace=False)]
    bodies = [_png(image) for image in chosen]
    with tempfile.TemporaryDirectory() as folder:
        common: dict[str, Any] = {"path": "/v1/predict", "threads": 1}
        on = palisade(bundle, data_dir=Path(folder) / "on", **common)
        off = palisade(bundle, data_dir=Path(folder) / "off", campaigns=False, **common)
        with on as seen, off as unseen:
            senders = _Sender(seen, bodies), _Sender(unseen, bodies)
            rates = np.array(
                [
                    [sender.rate(clients, seconds) for sender in order]
                    for order in [senders, senders[::-1]] * ((turns + 1) // 2)
                ]
            )
    rates[1::2] = rates[1::2, ::-1]
    lost = 1 - rates[1:, 0] / rates[1:, 1]  # the first turn is for warmth
    figures = {
        "clients": clients,
        "images": len(bodies),
        "turns": len(lost),
        "per_second": {"with": float(np.median(rates[1:, 0])), "without": float(np.median(rates[1:, 1]))},
        "lost": {"mean": float(lost.mean()), "standard_error": float(lost.std(ddof=1) / len(lost) ** 0.5)},
    }
    print(json.dumps(figures, indent=1))
    if json_path is not None:
        record(json_path, "what looking for query campaigns costs under load", figures)


class _Sender:
    """Loads a server, each time from the image on where it ended."""

    def __init__(self, server: Server, bodies: list[bytes]) -> None:
        self._server = server
        self._requests = [request_bytes(server.url + server.path, body) for body in bodies]
        self._sent = 0

    def rate(self, clients: int, seconds: float) -> float:
        """Answers a second."""
        start = self._sent % len(self._requests)
        requests = self._requests[start:] + self._requests[:start]
        found = asyncio.run(drive(self._server.url, requests, clients=clients, seconds=seconds))
        self._sent += found.statuses.total()
        return found.rate()


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


if __name__ == "__main__":
    typer.run(main)
