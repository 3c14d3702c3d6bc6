"""Flame graphs of the worker that answers, by the routes and by the front door: `python -m benchmarks.flame`.

What Python code takes while it holds the interpreter is drawn (py-spy, `pip install py-spy` anywhere): the engine runs
without it. `?certify=none` asks for the same answer by the routes (`gateway.front_door`). The SVG files open in a
browser, where frames can be clicked and searched.
"""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path
from typing import Annotated

import psutil
import typer

from benchmarks.loadgen import drive, request_bytes
from benchmarks.servers import Server, images_to_send, palisade

WAYS = {"routes": "/v1/predict?certify=none", "front-door": "/v1/predict"}
_WARM_SECONDS = 3.0


def worker(server: Server) -> int:
    """The process of the server that has taken the most processor time."""
    processes = psutil.Process(server.process.pid).children(recursive=True)
    return max(processes, key=lambda process: process.cpu_times().user).pid


def main(
    py_spy: Annotated[Path, typer.Option(help="The executable `py-spy`.")] = Path("py-spy"),
    bundle: Annotated[Path, typer.Option(help="Bundle that is served.")] = Path("models/gtsrb"),
    clients: Annotated[int, typer.Option(min=1)] = 8,
    seconds: Annotated[int, typer.Option(min=1, help="Seconds that are drawn.")] = 15,
    out: Annotated[Path, typer.Option(help="Folder of the SVG files.")] = Path("docs/images"),
) -> None:
    """Draw both ways, each in a gateway of its own."""
    images = images_to_send(None)
    for name, path in WAYS.items():
        with palisade(bundle, path=path, threads=1) as server:
            requests = [request_bytes(server.url + path, image) for image in images]
            asyncio.run(drive(server.url, requests, clients=clients, seconds=_WARM_SECONDS))
            file = out / f"flame-{name}.svg"
            command = [
                str(py_spy),
                "record",
                "--gil",
                "--rate",
                "200",
                "--duration",
                str(seconds),
                "--output",
                str(file),
            ]
            drawing = subprocess.Popen([*command, "--pid", str(worker(server))], stdout=subprocess.DEVNULL)  # noqa: S603
            tally = asyncio.run(drive(server.url, requests, clients=clients, seconds=seconds + 1.0))
            if drawing.wait(60):
                raise SystemExit(f"py-spy ended with {drawing.returncode}")
            print(f"{file}: {tally.rate():.1f} images a second while it was drawn")


if __name__ == "__main__":
    typer.run(main)
