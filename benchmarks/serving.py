"""Throughput and latency over HTTP, against the engine's own limit and against what a user would assemble today.

`python -m benchmarks.serving` starts each server in turn on the loopback, sends the committed test images (clean ones)
as PNG from 1, 8, 32 and 128 connections in a closed loop, and reads the server's own metrics and processor time. The
load generator shares the machine, and its processor time is printed too.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.cost import open_served
from benchmarks.loadgen import drive, request_bytes
from benchmarks.peers.servers import assembled_mlserver
from benchmarks.record import record
from benchmarks.servers import ROOT, Server, assembled, images_to_send, palisade
from gateway.core.decode import to_pixels
from gateway.core.engine import Engine
from gateway.core.loading import load_bundle
from gateway.core.manifest import Part
from gateway.core.pipeline import Pipeline
from training.export.parts import cut

CLIENTS = (1, 8, 32, 128)
STAGES = ("decode", "queue", "engine", "respond")


def bodies(server: Server, images: list[bytes]) -> list[bytes]:
    """Requests for the server: raw bodies, a form for BentoML's own image input, or JSON for MLServer."""
    url = server.url + server.path
    if server.path.endswith("/infer"):
        return [request_bytes(url, _inference(image), content_type="application/json") for image in images]
    if server.path != "/predict":
        return [request_bytes(url, image) for image in images]
    boundary = "palisade"
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n'
        "Content-Type: image/png\r\n\r\n"
    )
    forms = [head.encode() + image + f"\r\n--{boundary}--\r\n".encode() for image in images]
    return [request_bytes(url, form, content_type=f"multipart/form-data; boundary={boundary}") for form in forms]


def _inference(image: bytes) -> bytes:
    """A request of the Open Inference Protocol with one image file, as MLServer's codec for bytes reads it."""
    data = [base64.b64encode(image).decode()]
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1, 1], "parameters": {"content_type": "base64"}}
    return json.dumps({"inputs": [tensor | {"data": data}]}).encode()


def measure(server: Server, images: list[bytes], clients: int, seconds: float) -> dict[str, Any]:
    """One load: rate, latency, processor time a request, batch size and seconds by stage."""
    requests = bodies(server, images)
    asyncio.run(drive(server.url, requests, clients=clients, seconds=min(2.0, seconds)))
    before, cpu, own = server.metrics(), server.cpu_seconds(), time.process_time()
    tally = asyncio.run(drive(server.url, requests, clients=clients, seconds=seconds))
    own = time.process_time() - own
    cpu, after = server.cpu_seconds() - cpu, server.metrics()
    n = sum(tally.statuses.values())
    result: dict[str, Any] = {
        "clients": clients,
        "images_per_second": round(tally.rate(), 1),
        **{f"{name}_ms": value for name, value in tally.quantiles_ms().items()},
        "statuses": {str(status): count for status, count in tally.statuses.items()},
        "broken": tally.broken,
        "server_cpu_ms": round(cpu / n * 1e3, 3),
        "generator_cpu_ms": round(own / n * 1e3, 3),
        "memory_mb": round(server.memory_mb()),
    }

    def grown(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    batches = grown("palisade_batch_size_count")
    if batches:
        result["batch_size"] = round(grown("palisade_batch_size_sum") / batches, 2)
        result["passes"] = round(grown("palisade_batch_size_sum") / n, 3)
        for stage in STAGES:
            count = grown(f'palisade_stage_seconds_count{{stage="{stage}"}}')
            if count:
                total = grown(f'palisade_stage_seconds_sum{{stage="{stage}"}}')
                result[f"{stage}_ms"] = round(total / count * 1e3, 3)
    return result


def bare_network(bundle: Path, threads: int, folder: Path) -> Callable[[np.ndarray], object]:
    """The network that a bundle defends, alone, in ONNX Runtime with the engine's options: pixels in, logits out."""
    served = open_served(bundle=bundle, graph=None, provider="cpu", threads=threads, folder=folder)
    session = served.stage("bare", cut(served.model, ["logits"]), folder)
    return lambda pixels: session.run(["logits"], {"pixels": pixels})


def limit(
    run: Callable[[np.ndarray], object], decoded: np.ndarray, buckets: Sequence[int], seconds: float
) -> dict[str, dict[str, float]]:
    """By batch size: images a second of `run` alone, and processor milliseconds an image."""
    limits = {}
    for batch in buckets:
        pixels = to_pixels(decoded[np.arange(batch) % len(decoded)])
        for _ in range(3):
            run(pixels)
        done, start, cpu = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - start < seconds:
            run(pixels)
            done += batch
        elapsed, used = time.perf_counter() - start, time.process_time() - cpu
        limits[str(batch)] = {
            "images_per_second": round(done / elapsed, 1),
            "ms": round(elapsed / done * batch * 1e3, 3),
            "cpu_ms_per_image": round(used / done * 1e3, 4),
        }
    return limits


def main(
    bundle: Annotated[Path, typer.Option(help="Bundle to serve.")] = ROOT / "models" / "gtsrb",
    seconds: Annotated[float, typer.Option(help="Duration of each load in seconds.")] = 8.0,
    threads: Annotated[int, typer.Option(help="Engine threads; 0: every core.")] = 0,
    compare: Annotated[bool, typer.Option(help="Also serve what a user would assemble from libraries.")] = True,  # noqa: FBT002
    mlserver: Annotated[
        Path | None, typer.Option(help="Executable of an MLServer (with onnxruntime and pillow) that also serves that.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of images that are sent as they are (default: traffic signs).")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file.")] = None,
) -> None:
    """Measure the shipped gateway over HTTP."""
    console = Console(width=None if sys.stdout.isatty() else 200)
    sent = images_to_send(images)
    loaded = load_bundle(bundle)
    engine = Engine.open(loaded, device="auto", threads=threads)
    pipeline = Pipeline.on(engine, loaded)
    decoded = np.stack([pipeline.decode(image) for image in sent[: engine.buckets[-1]]])
    limits: dict[str, dict[str, dict[str, float]]] = {
        part: limit(partial(engine.run, part=part), decoded, engine.buckets, 2.0) for part in engine.parts
    }
    with tempfile.TemporaryDirectory() as folder:
        bare = bare_network(bundle, engine.threads, Path(folder))
        limits["bare network"] = limit(bare, decoded, engine.buckets, 2.0)
    _print_limits(console, limits)
    servers: dict[str, tuple[contextlib.AbstractContextManager[Server], Part | None, tuple[int, ...]]] = {
        "verdict": (palisade(bundle, path="/v1/predict", threads=threads), "verdict", CLIENTS),
        # The same answer: a query that the front door does not know goes through BentoML's and FastAPI's layers.
        "verdict, by the routes": (
            palisade(bundle, path="/v1/predict?certify=none", threads=threads),
            "verdict",
            CLIENTS,
        ),
        "verdict + saliency": (
            palisade(bundle, path="/v1/predict?explain=saliency", threads=threads),
            "full",
            CLIENTS,
        ),
    }
    if pipeline.can_screen:
        screened = palisade(bundle, path="/v1/predict", threads=threads, cascade=True, cascade_audit=0.0)
        servers["verdict, cascade on"] = (screened, None, CLIENTS)
    if compare:
        for kind in ("torch", "onnx"):
            servers[f"assembled: {kind}"] = (assembled(bundle, kind, threads=engine.threads), None, CLIENTS[:3])
    if mlserver is not None:
        peer = assembled_mlserver(mlserver, bundle, threads=engine.threads)
        servers["assembled: MLServer"] = (peer, None, CLIENTS[:3])
    results: dict[str, list[dict[str, Any]]] = {}
    for name, (context, part, clients) in servers.items():
        with context as server:
            rows = []
            for count in clients:
                row = measure(server, sent, count, seconds)
                if part is not None:
                    _add_overhead(row, limits[part])
                rows.append(row)
                console.print(f"{name}, {count} clients: {row['images_per_second']} images/s", highlight=False)
        results[name] = rows
    _print_results(console, results)
    figures = {
        "bundle": f"{loaded.name} {loaded.version}",
        "threads": engine.threads,
        "engine": limits,
        "http": results,
        "ratios": _ratios(results),
    }
    console.print_json(json.dumps(figures["ratios"]))
    if out is not None:
        record(out, "serving", figures)


def _add_overhead(row: dict[str, Any], limits: dict[str, dict[str, float]]) -> None:
    """The cost beyond the engine's: processor time beyond its own at this batch size, and its limit's share."""
    size = min(limits, key=lambda batch: abs(float(batch) - row.get("batch_size", 1.0)))
    row["overhead_cpu_ms"] = round(row["server_cpu_ms"] - row["passes"] * limits[size]["cpu_ms_per_image"], 3)
    best = max(limit["images_per_second"] for limit in limits.values())
    row["share_of_engine_limit"] = round(row["images_per_second"] * row["passes"] / best, 3)
    if row["clients"] == 1:
        row["p50_over_engine_ms"] = round(row["p50_ms"] - limits["1"]["ms"], 3)


def _ratios(results: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Images a second of `verdict + saliency` over those of each assembled service, by number of clients."""
    ours = {row["clients"]: row["images_per_second"] for row in results["verdict + saliency"]}
    return {
        name: {str(row["clients"]): round(ours[row["clients"]] / row["images_per_second"], 2) for row in rows}
        for name, rows in results.items()
        if name.startswith("assembled")
    }


def _print_limits(console: Console, limits: dict[str, dict[str, dict[str, float]]]) -> None:
    table = Table("engine alone", *(f"batch {batch}" for batch in next(iter(limits.values()))), box=None)
    for part, rows in limits.items():
        table.add_row(part, *(f"{row['images_per_second']:.0f}/s" for row in rows.values()))
    console.print(table)


def _print_results(console: Console, results: dict[str, list[dict[str, Any]]]) -> None:
    columns = (
        "clients",
        "images_per_second",
        "p50_ms",
        "p95_ms",
        "p99_ms",
        "batch_size",
        "passes",
        "server_cpu_ms",
        "memory_mb",
        "overhead_cpu_ms",
        "share_of_engine_limit",
        *(f"{stage}_ms" for stage in STAGES),
    )
    table = Table("over HTTP", *(column.replace("_", " ") for column in columns), box=None)
    for name, rows in results.items():
        for row in rows:
            table.add_row(name, *(str(row.get(column, "")) for column in columns))
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
