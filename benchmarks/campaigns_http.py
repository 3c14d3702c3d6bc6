"""Searches against a real gateway with two workers: when each campaign is known: `python -m benchmarks.campaigns_http`.

Every run attacks an image of another inferred track, so that no two runs are near-duplicates of each other, and has its
own keys. Score-based searches ask at disclosure `verdict`, decision-based ones at `label`.
"""

from __future__ import annotations

import io
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import typer
from PIL import Image
from rich.console import Console

from benchmarks.record import record
from benchmarks.searches import SEARCHES
from benchmarks.servers import free_port, running
from gateway.access.keys import ApiKey, Disclosure, Role, hash_key, new_key, write_keys
from gateway.process.serving import server_command, server_environment
from gateway.settings import Settings
from training.commands.terminal import JsonPath
from training.evaluate.harness.tracks import inferred_tracks

SCORE_BASED = ("square", "square_l2", "nes", "nes_l2")
SPREAD = 10
"""Keys of a run that is spread over several."""
_QUIET_SECONDS = 6.0
console = Console()


@dataclass
class Run:
    """One attack over HTTP: what it asked, as ids of requests in their order."""

    name: str
    keys: list[str]
    image: np.ndarray
    other: np.ndarray
    seed: int
    requests: list[str] = field(default_factory=list)
    succeeded: bool = False

    @property
    def disclosure(self) -> Disclosure:
        return "verdict" if self.name in SCORE_BASED else "label"

    def go(self, client: httpx.Client, queries: int) -> None:
        """Ask until the attack ends, or `queries` times."""
        label, _ = self._ask(client, self.image)
        search = SEARCHES[self.name](self.image, label, np.random.default_rng(self.seed), self.other)
        image = next(search)
        while len(self.requests) < queries:
            try:
                image = search.send(self._ask(client, image))
            except StopIteration:
                self.succeeded = True
                return

    def _ask(self, client: httpx.Client, image: np.ndarray) -> tuple[int, np.ndarray]:
        file = io.BytesIO()
        Image.fromarray(np.rint(image * 255).astype(np.uint8).transpose(1, 2, 0)).save(file, "PNG")
        key = self.keys[len(self.requests) % len(self.keys)]
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "image/png"}
        answer = client.post("/v1/predict", params={"top_k": 43}, content=file.getvalue(), headers=headers)
        answer.raise_for_status()
        self.requests.append(answer.headers["X-Request-Id"])
        body = answer.json()
        probabilities = np.zeros(43)
        for each in body.get("top") or []:
            probabilities[each["index"]] = each["probability"]
        return body["prediction"]["index"], probabilities


def plan(data: Path, names: list[str], one_key: int, ten_keys: int, seed: int) -> tuple[list[Run], list[ApiKey], str]:
    """The runs, the keys file's entries, and a reviewer's key."""
    held_out = np.load(data / "gtsrb32_full.npz")
    x, y = held_out["x_test"], held_out["y_test"]
    track, rng = inferred_tracks(x, y, frames=30), np.random.default_rng(seed)
    free = [int(rng.choice(np.flatnonzero(track == number))) for number in rng.permutation(track.max() + 1)]
    pixels = x[free].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    labels, at = y[free], 0
    runs: list[Run] = []
    entries: list[ApiKey] = []
    for keys, count in ((1, one_key), (SPREAD, ten_keys)):
        for name in names:
            for _ in range(count):
                started = name in ("boundary", "hopskipjump", "hopskipjump_linf")
                other = at + 1 + int(np.flatnonzero(labels[at + 1 :] != labels[at])[0])
                run = Run(name, [], pixels[at], pixels[other], seed + len(runs))
                for _ in range(keys):
                    run.keys.append(_key(entries, "client", run.disclosure))
                runs.append(run)
                at = other + 1 if started else at + 1
    return runs, entries, _key(entries, "reviewer", "full")


def _key(entries: list[ApiKey], role: Role, disclosure: Disclosure) -> str:
    key = new_key()
    name = f"{role}-{len(entries)}"
    created = datetime.now(UTC)
    entries.append(ApiKey(id=name, sha256=hash_key(key), role=role, disclosure=disclosure, rate=0.0, created=created))
    return key


def cases(client: httpx.Client, key: str) -> list[dict[str, Any]]:
    """All campaigns, once their number of queries has been the same for a while."""
    before = -1
    while True:
        found = list(_pages(client, key))
        queries = sum(case["queries"] for case in found)
        if queries == before:
            return found
        before = queries
        time.sleep(_QUIET_SECONDS)


def _pages(client: httpx.Client, key: str) -> Iterator[dict[str, Any]]:
    cursor: float | None = None
    while True:
        params = {"limit": 200} if cursor is None else {"limit": 200, "cursor": cursor}
        answer = client.get("/v1/campaigns", params=params, headers={"Authorization": f"Bearer {key}"})
        page = answer.raise_for_status().json()
        yield from page["campaigns"]
        cursor = page["next"]
        if cursor is None:
            return


def summary(runs: list[Run], found: list[dict[str, Any]], queries: int) -> dict[str, Any]:
    """By attack and number of keys: queries until the campaign was known, and what it was said to resemble.

    `median_success`: queries until half of the runs had succeeded, None where fewer did; `succeeded_unknown`: runs that
    succeeded and were in no campaign.
    """
    first: dict[str, dict[str, Any]] = {case["path"][0]["request"]: case for case in found}
    table: dict[str, Any] = {}
    for keys in (1, SPREAD):
        for name in SEARCHES:
            some = [run for run in runs if run.name == name and len(run.keys) == keys]
            known, kinds, attributed = [], Counter[str](), 0
            needed = [float(len(run.requests)) if run.succeeded else np.inf for run in some]
            early = 0
            for run in some:
                ended = len(run.requests) < 50 and run.succeeded
                mine = [(at, first[request]) for at, request in enumerate(run.requests) if request in first]
                if mine:
                    at, case = min(mine, key=lambda pair: pair[0] + pair[1]["known_after"])
                    known.append(at + case["known_after"])
                    kinds[case["resembles"]] += 1
                    attributed += len(case["keys"]) == min(keys, case["queries"])
                elif not ended:
                    known.append(queries + 1)
                early += run.succeeded and not mine
            if some:
                table[f"{name}, {keys} keys" if keys > 1 else f"{name}, 1 key"] = {
                    "disclosure": some[0].disclosure,
                    "runs": len(some),
                    "runs_of_50_queries_or_known": len(known),
                    "known": sum(at <= queries for at in known),
                    "within_50": sum(at <= 50 for at in known),
                    "median": float(np.median(known)) if known else None,
                    "p95": float(np.percentile(known, 95, method="higher")) if known else None,
                    "resembles": dict(kinds),
                    "every_key_named": attributed,
                    "succeeded": sum(run.succeeded for run in some),
                    "succeeded_unknown": early,
                    "median_success": float(np.median(needed)) if np.isfinite(np.median(needed)) else None,
                }
    return table


def main(
    data: Annotated[Path, typer.Option(envvar="PALISADE_DATA", help="Folder of gtsrb32_full.npz.")],
    bundle: Annotated[Path, typer.Option(help="Bundle that is attacked.")] = Path("models/gtsrb"),
    search: Annotated[list[str] | None, typer.Option(help="A search of `benchmarks.searches`; all by default.")] = None,
    one_key: Annotated[int, typer.Option(min=0, help="Runs of each search with one key.")] = 20,
    ten_keys: Annotated[int, typer.Option(min=0, help="Runs of each search spread over ten keys.")] = 5,
    queries: Annotated[int, typer.Option(min=50, help="Queries of each run, at most.")] = 100,
    workers: Annotated[int, typer.Option(min=1, help="Workers of the gateway.")] = 2,
    clients: Annotated[int, typer.Option(min=1, help="Runs at once.")] = 8,
    seed: Annotated[int, typer.Option(help="Seed of every draw.")] = 0,
    json_path: JsonPath = None,
) -> None:
    """Attack a gateway over HTTP, and read its case files."""
    runs, entries, reviewer = plan(data, search or list(SEARCHES), one_key, ten_keys, seed)
    with tempfile.TemporaryDirectory() as folder:
        keys_file = Path(folder) / "keys.json"
        write_keys(keys_file, entries)
        port = free_port()
        settings = Settings(
            models=[bundle], port=port, workers=workers, threads=1, keys_file=keys_file, data_dir=Path(folder) / "data"
        )
        server = running(
            server_command(settings), server_environment(settings), path="/v1/predict", ready="/readyz", port=port
        )
        with server as gateway, httpx.Client(base_url=gateway.url, timeout=120) as client:
            began = time.monotonic()

            def go(run: Run) -> None:
                run.go(client, queries)
                console.print(f"{time.monotonic() - began:.0f} s: {run.name}, {len(run.requests)} queries")

            with ThreadPoolExecutor(clients) as pool:
                list(pool.map(go, runs))
            found = cases(client, reviewer)
    figures: dict[str, Any] = {"seed": seed, "workers": workers, "queries": queries, "campaigns": len(found)}
    figures["attacks"] = summary(runs, found, queries)
    console.print(json.dumps(figures, indent=1))
    if json_path is not None:
        record(json_path, "query campaigns over HTTP: queries until known", figures)


if __name__ == "__main__":
    typer.run(main)
