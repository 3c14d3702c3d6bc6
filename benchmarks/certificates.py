"""Certificates over HTTP: `python -m benchmarks.certificates`; at 224 pixels with `--bundle` and `--images`.

One client asks for certificates, up to `agreed` and up to `proved`, and where the bundle has a network of small fields
by that alone: milliseconds of whole answers and forward passes by the level that they end at. Then ordinary requests
are counted with nobody beside them, and beside that client. What the network of small fields costs is also measured
without HTTP, in forward passes of the answering network alone, both in turns.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import httpx
import numpy as np
import onnx
import typer
from onnx import numpy_helper

from benchmarks.loadgen import drive, request_bytes
from benchmarks.record import record
from benchmarks.servers import ROOT, Server, images_to_send, palisade
from benchmarks.serving import bare_network
from gateway.core.engine import Engine
from gateway.core.loading import load_bundle
from gateway.core.masks import default_patch
from gateway.core.pipeline import Pipeline
from gateway.core.small_field import SMALL_FIELD, windows_for
from training.commands.terminal import JsonPath
from training.export.macs import macs
from training.export.parts import cut

Highest = Literal["agreed", "proved"]
ROUNDS = 60


def main(
    bundle: Annotated[Path, typer.Option(help="Bundle to serve.")] = ROOT / "models" / "gtsrb",
    images: Annotated[Path | None, typer.Option(help="Folder of images (default: traffic signs).")] = None,
    n: Annotated[int, typer.Option(min=1, help="Images that are certified, at each of both levels.")] = 60,
    threads: Annotated[int, typer.Option(help="Engine threads; 0: every core.")] = 0,
    clients: Annotated[int, typer.Option(min=1, help="Ordinary clients beside the one that is certified.")] = 8,
    seconds: Annotated[float, typer.Option(min=1, help="Seconds of each turn of ordinary requests.")] = 5.0,
    turns: Annotated[int, typer.Option(min=1, help="Turns with and without certificates beside them.")] = 3,
    json_path: JsonPath = None,
) -> None:
    """Time and forward passes of certificates, and what they take from others."""
    sent, loaded = images_to_send(images), load_bundle(bundle)
    some = list(itertools.islice(itertools.cycle(sent), n))
    with palisade(bundle, path="/v1/predict", threads=threads, audit=False) as server:
        figures: dict[str, Any] = {
            "bundle": f"{loaded.name} {loaded.version}",
            "up_to": {
                highest: certified(server, some, f"?certify=patch&certify_level={highest}")
                for highest in get_args(Highest)
            },
        }
        if loaded.manifest.small_field is not None:
            figures["by_small_field"] = certified(server, some, "?certify=small_field")
        figures["beside"] = beside(server, sent, clients=clients, seconds=seconds, turns=turns)
    if loaded.manifest.small_field is not None:
        figures["small_field_in_forwards"] = in_forwards(bundle, threads) | {"counted": counted(bundle)}
    print(json.dumps(figures, indent=1))
    if json_path is not None:
        record(json_path, "certificates over HTTP", figures)


def counted(path: Path) -> float:
    """Multiply-accumulates of the network of small fields with its proof, in those of the bare answering network."""
    bundle = load_bundle(path)
    manifest = bundle.manifest
    assert manifest.small_field is not None
    size, model = manifest.input, onnx.load(str(path / SMALL_FIELD))
    windows = windows_for(manifest.small_field, size.height, size.width, default_patch(size.height, size.width))
    given = {"windows": windows.windows, "kept": windows.kept}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in given.items())
    for value in [each for each in model.graph.input if each.name in given]:
        model.graph.input.remove(value)
    answering = cut(onnx.load(str(path / manifest.graphs["full"].file)), ["logits"])
    return round(macs(model, 1, products=True) / macs(answering, 1, products=True), 2)


def in_forwards(path: Path, threads: int) -> dict[str, dict[str, float]]:
    """By batch size: milliseconds of the network of small fields and of the bare answering network, and their ratio."""
    bundle = load_bundle(path)
    pipeline = Pipeline.on(Engine.open(bundle, device="cpu", threads=threads), bundle)
    small_field, size = pipeline.small_field, bundle.manifest.input
    if small_field is None:
        raise SystemExit(f"{path} has no network of small fields")
    patch = default_patch(size.height, size.width)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        bare = bare_network(path, pipeline.engine.threads, Path(folder))
        for batch in (1, 8, 32):
            pixels = np.random.default_rng(0).random((batch, size.channels, size.height, size.width), np.float32)
            taken: dict[str, list[float]] = {"small_field": [], "forward": []}
            ways: dict[str, Callable[[], object]] = {
                "small_field": partial(small_field.prove, pixels, patch),
                "forward": partial(bare, pixels),
            }
            for _, (name, run) in itertools.product(range(ROUNDS), ways.items()):
                start = time.perf_counter()
                run()
                taken[name].append(1e3 * (time.perf_counter() - start))
            ms = {name: float(np.median(values)) for name, values in taken.items()}
            found[str(batch)] = {
                **{f"{name}_ms": round(value, 3) for name, value in ms.items()},
                "forwards": round(ms["small_field"] / ms["forward"], 2),
            }
    return found


def certified(server: Server, images: list[bytes], query: str) -> dict[str, Any]:
    """Of answers with a certificate, one after the other, by level: how many, milliseconds and forward passes."""
    found: dict[str, list[tuple[float, int]]] = {}
    with httpx.Client(timeout=60) as client:
        for number, image in enumerate([images[0], *images]):
            start = time.perf_counter()
            answer = client.post(server.url + server.path + query, content=image).raise_for_status().json()
            taken, made = 1e3 * (time.perf_counter() - start), answer["certificate"]
            if number:  # the first opens the part of the graph that masks need
                found.setdefault(made["level"], []).append((taken, made["forwards"]))
    return {
        level: {
            "images": len(rows),
            "ms": dict(
                zip(("p50", "p95"), np.percentile([ms for ms, _ in rows], [50, 95]).round(1).tolist(), strict=True)
            ),
            "forwards": round(float(np.mean([forwards for _, forwards in rows])), 1),
        }
        for level, rows in sorted(found.items())
    }


def beside(server: Server, images: list[bytes], *, clients: int, seconds: float, turns: int) -> dict[str, Any]:
    """Ordinary images a second and p50 in ms, alone and while one client asks for certificates without a pause."""
    requests = [request_bytes(server.url + server.path, image) for image in images]
    asyncio.run(drive(server.url, requests, clients=clients, seconds=2.0))
    rows: dict[str, list[tuple[float, float]]] = {"alone": [], "beside": []}
    for _ in range(turns):
        for name, seen in rows.items():
            stop = threading.Event()
            thread = threading.Thread(target=_certify, args=(server, images, stop)) if name == "beside" else None
            if thread:
                thread.start()
            tally = asyncio.run(drive(server.url, requests, clients=clients, seconds=seconds))
            stop.set()
            if thread:
                thread.join()
            seen.append((tally.rate(), tally.quantiles_ms()["p50"]))
    return {
        name: {"images_per_second": round(float(rate), 1), "p50_ms": round(float(p50), 1)}
        for name, seen in rows.items()
        for rate, p50 in [np.median(seen, axis=0)]
    } | {"clients": clients}


def _certify(server: Server, images: list[bytes], stop: threading.Event) -> None:
    with httpx.Client(timeout=60) as client:
        for image in itertools.cycle(images):
            if stop.is_set():
                return
            client.post(f"{server.url}{server.path}?certify=patch", content=image)


if __name__ == "__main__":
    typer.run(main)
