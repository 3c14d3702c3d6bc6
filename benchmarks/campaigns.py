"""What seeing campaigns costs, how soon, and what is mistaken for one: `python -m benchmarks.campaigns`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from threadpoolctl import threadpool_limits

from benchmarks.false_campaigns import SALT, held_out_tracks, moved, named, patterns, training_tracks
from benchmarks.record import record
from benchmarks.searches import SEARCHES, Search
from gateway.campaigns.analyst import Analyst
from gateway.campaigns.fingerprint import Fingerprint, Fingerprinter
from gateway.campaigns.records import RECORD, Query, pack
from gateway.campaigns.watch import TOGETHER, query_of
from gateway.core.decision import Decision
from gateway.core.engine import Engine
from gateway.core.loading import load_bundle
from gateway.core.pipeline import Pipeline
from training.commands.terminal import JsonPath

MILLION = 1_000_000
_BATCH = 32
console = Console()


def cost(stored: int, shape: tuple[int, int, int], rng: np.random.Generator) -> dict[str, float]:
    """Processor time of a query while `stored` unlike queries are in the index, and its bytes."""
    analyst, maker = Analyst(SALT, stored), Fingerprinter(SALT, shape)
    records = pack([(_query("a", i), maker.make(rng.random(shape, np.float32))) for i in range(1000)]).records
    index = analyst.index
    for start in range(0, stored, len(records)):
        records["coarse"] = rng.integers(-60, 60, records["coarse"].shape)
        records["exact"] = np.arange(start, start + len(records))
        for row, places in zip(records, index.places(records["coarse"], records["model"]), strict=True):
            index.add(row, places)
    images = rng.random((500, *shape), np.float32)
    begin = time.process_time()
    made = [one for at in range(0, len(images), TOGETHER) for one in maker.make_all(list(images[at : at + TOGETHER]))]
    fingerprint = (time.process_time() - begin) / len(images)
    search = [(_query("a", i), found) for i, found in enumerate(_around(images[0], maker, rng, 500))]
    times = {}
    for name, queries in (("unlike", [(_query("b", i), found) for i, found in enumerate(made)]), ("search", search)):
        begin = time.process_time()
        for at in range(0, len(queries), 10):
            analyst.take(pack(queries[at : at + 10]))
        times[name] = (time.process_time() - begin) / len(queries)
    return {
        "stored": stored,
        "fingerprint_ms": 1e3 * fingerprint,
        "analysis_unlike_ms": 1e3 * times["unlike"],
        "analysis_search_ms": 1e3 * times["search"],
        "store_bytes": RECORD.itemsize,
        "index_bytes": analyst.nbytes / stored,
    }


def _around(image: np.ndarray, maker: Fingerprinter, rng: np.random.Generator, n: int) -> Iterator[Fingerprint]:
    for _ in range(n):
        noise = rng.normal(size=image.shape).astype(np.float32) * np.float32(0.01)
        yield maker.make(np.clip(image + noise, 0, 1))


def _query(key: str, number: int, label: str = "a", p: float = 0.5) -> Query:
    return Query(float(number), f"{key}-{number}", "m", key, label, p, flagged=False)


@dataclass
class Run:
    """One attack under way: its next image, and how many it asked until it ended or its campaign was known."""

    search: Search
    image: np.ndarray
    analyst: Analyst
    maker: Fingerprinter
    keys: int
    asked: int = 0
    known: int | None = None
    kind: str | None = None
    ended: bool = False

    def answer(self, decision: Decision) -> None:
        prediction = decision.served.prediction
        key = f"key-{self.asked % self.keys}"
        query = replace(query_of(decision, None, f"r{self.asked}"), time=float(self.asked), key=key)
        self.analyst.take(pack([(query, self.maker.make(decision.pixels))]))
        self.asked += 1
        found = [case for case in self.analyst.cases() if case.pattern == "search"]
        if found and self.known is None:
            self.known, self.kind = self.asked, found[0].resembles
        try:
            self.image = self.search.send((prediction.index, decision.served.probabilities))
        except StopIteration:
            self.ended = True


def attacks(pipeline: Pipeline, images: np.ndarray, n: int, queries: int, keys: int, seed: int) -> dict[str, Any]:
    """Each search on `n` images, `queries` at most: after how many the campaign is known, and what it resembles."""
    rng = np.random.default_rng(seed)
    shape = (images.shape[1], images.shape[2], images.shape[3])
    maker = Fingerprinter(SALT, shape)
    chosen = images[rng.choice(len(images), 2 * n, replace=False)]
    labels = [decision.served.prediction.index for decision in answers(pipeline, chosen)]
    runs: dict[str, list[Run]] = {}
    for name, begin in SEARCHES.items():
        runs[name] = []
        for i in range(n):
            other = next(j for j in range(2 * n) if labels[(i + 1 + j) % (2 * n)] != labels[i])
            search = begin(chosen[i], labels[i], np.random.default_rng([seed, i]), chosen[(i + 1 + other) % (2 * n)])
            runs[name].append(Run(search, next(search), Analyst(SALT, 1 << 14), maker, keys))
    every = [run for some in runs.values() for run in some]
    for asked in range(queries):
        open_ = [run for run in every if not run.ended]
        console.print(f"query {asked + 1}: {len(open_)} attacks", end="\r")
        for run, decision in zip(open_, answers(pipeline, [run.image for run in open_]), strict=True):
            run.answer(decision)
    return {name: _summary(some, queries) for name, some in runs.items()}


def _summary(runs: Sequence[Run], queries: int) -> dict[str, Any]:
    # A search that succeeded earlier than a campaign needs has asked too little to be one.
    long = [run for run in runs if run.known is not None or run.asked >= 50]
    known = sorted(run.known if run.known is not None else queries + 1 for run in long)
    won = sorted(run.asked if run.ended else queries + 1 for run in runs)
    return {
        "runs": len(runs),
        "runs_of_50_queries": len(long),
        "known": sum(run.known is not None for run in long),
        "within_50": sum(at <= 50 for at in known),
        "median": float(np.median(known)) if known else None,
        "p95": float(np.percentile(known, 95, method="higher")) if known else None,
        "resembles": dict(Counter(run.kind for run in long if run.kind)),
        "succeeded": sum(run.ended for run in runs),
        "median_success": float(np.median(won)) if np.median(won) <= queries else None,
        "succeeded_before_known": sum(run.ended and run.known is None for run in runs),
    }


def answers(pipeline: Pipeline, images: Sequence[np.ndarray] | np.ndarray) -> list[Decision]:
    """The decisions on images (C, H, W) in [0, 1]."""
    return [
        decision
        for at in range(0, len(images), _BATCH)
        for decision in pipeline.decide_images(list(images[at : at + _BATCH]), explain=False)
    ]


def main(
    bundle: Annotated[Path, typer.Option(help="Bundle that is attacked.")] = Path("models/gtsrb"),
    data: Annotated[
        Path | None, typer.Option(envvar="PALISADE_DATA", help="Folder of gtsrb32_full.npz and photos.")
    ] = None,
    stored: Annotated[int, typer.Option(min=10_000, help="Queries in the index while costs are measured.")] = MILLION,
    runs: Annotated[int, typer.Option(min=0, help="Images that each search is made on.")] = 20,
    queries: Annotated[int, typer.Option(min=50, help="Queries of each search, at most.")] = 100,
    keys: Annotated[int, typer.Option(min=1, help="Keys that a search is spread over.")] = 1,
    frames: Annotated[int, typer.Option(min=0, help="Frames of tracks, at most.")] = 100_000,
    photographs: Annotated[int, typer.Option(min=0, help="Photographs that are moved.")] = 700,
    threads: Annotated[int, typer.Option(min=0, help="Intra-op threads; 0: the engine's default.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of every draw.")] = 0,
    json_path: JsonPath = None,
) -> None:
    """Measure cost, queries until a campaign is known, and false campaigns."""
    threadpool_limits(1, user_api="blas")  # as in the gateway
    rng = np.random.default_rng(seed)
    figures: dict[str, Any] = {"seed": seed, "cost": cost(stored, (3, 32, 32), rng)}
    figures["cost_at_224"] = cost(min(stored, 10_000), (3, 224, 224), rng)
    console.print(figures)
    one = rng.integers(0, 256, (3, 32, 32)).astype(np.uint8)
    figures["stuck_camera"] = patterns(named([one] * 5000, seconds=1.0))
    figures["retries"] = patterns(named([one] * 5, seconds=2.0))
    if data is not None:
        loaded = load_bundle(bundle)
        engine = Engine(bundle, loaded.manifest.graphs, loaded.manifest.input, threads=threads)
        pipeline = Pipeline.on(engine, loaded)
        if runs:
            test = np.load(data / "gtsrb32_full.npz")["x_test"].transpose(0, 3, 1, 2).astype(np.float32) / 255
            figures["attacks"] = {"keys": keys, **attacks(pipeline, test, runs, queries, keys, seed)}
            console.print(figures["attacks"])
        frames_of = np.load(data / "gtsrb32_full.npz")
        if frames:
            figures["training_tracks"] = training_tracks(engine, frames_of, frames)
            figures["test_tracks"] = held_out_tracks(engine, frames_of, frames, rng)
            console.print(figures["training_tracks"], figures["test_tracks"])
        figures["photographs"] = moved(engine, data, 60, photographs, rng)
    console.print(figures)
    if json_path is not None:
        record(json_path, "query campaigns: cost, queries until known, false campaigns", figures)


if __name__ == "__main__":
    typer.run(main)
