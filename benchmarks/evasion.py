"""Searches that try not to be seen: `python -m benchmarks.evasion`.

The attacker knows the source of the gateway, not its salt. Nothing that is answered tells whether a query was linked
to earlier ones, so the attacker keeps an index of their own, with another salt, and asks only what would stay in a
group too small to be judged there. As in OARS (Feng et al. 2023, arXiv 2303.06280), what is adapted is the variance of
the proposals and the size of the steps: both grow until a query is far from all earlier ones.

`film` is another way, which no published attack takes: the plain search, and after each query some frames of a film of
the same image, so that the newest images of the group look like a camera's. The gateway judges its strands, too.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from benchmarks.false_campaigns import SALT
from benchmarks.record import record
from benchmarks.searches import EPS, RADIUS, SEARCHES, eight_bit
from gateway.campaigns.analyst import Analyst
from gateway.campaigns.behaviour import EARLY, link_of
from gateway.campaigns.fingerprint import DETAIL, Fingerprinter
from gateway.campaigns.records import Query, pack
from gateway.core.engine import Engine
from gateway.core.loading import load_bundle
from gateway.core.outputs import softmax
from training.commands.terminal import JsonPath

SAFE = 1.25
"""How much farther than the gateway's radius a query stays, as distances are estimates under another salt."""
TRIES = 12
DECOYS = 4
"""Frames of a film after each query of an attacker who hides in one."""
CAPACITY = 1 << 14
console = Console()

Asked = Generator[np.ndarray, tuple[int, np.ndarray], bool]


@dataclass
class Shadow:
    """The attacker's own index: detail fingerprints of all that was asked, and the group and size of each group."""

    maker: Fingerprinter
    details: np.ndarray = field(default_factory=lambda: np.zeros((CAPACITY, DETAIL), np.float32))
    group: np.ndarray = field(default_factory=lambda: np.zeros(CAPACITY, np.int64))
    sizes: dict[int, int] = field(default_factory=dict)
    n: int = 0

    def free(self, image: np.ndarray) -> bool:
        """Whether an image could be asked without a group of as many images as are judged."""
        return sum(self.sizes[group] for group in self._near(image)[0]) + 1 < EARLY

    def asked(self, image: np.ndarray) -> None:
        """Remember an image that was asked."""
        near, detail = self._near(image)
        group = min(near, default=self.n)
        for other in near - {group}:
            self.group[self.group == other] = group
            self.sizes[group] += self.sizes.pop(other)
        self.sizes[group] = self.sizes.get(group, 0) + 1
        self.details[self.n], self.group[self.n] = detail, group
        self.n += 1

    def _near(self, image: np.ndarray) -> tuple[set[int], np.ndarray]:
        found = self.maker.make(image)
        detail = found.detail.astype(np.float32)
        distances = np.linalg.norm(self.details[: self.n] - detail, axis=1)
        return set(self.group[: self.n][distances <= SAFE * link_of(found.contrast)].tolist()), detail


def square(x: np.ndarray, label: int, rng: np.random.Generator, _other: np.ndarray, shadow: Shadow) -> Asked:
    """Square within 8/255, whose squares grow, and which begins anew, until a proposal would not be seen."""
    channels, height, width = x.shape

    def stripes() -> np.ndarray:
        return np.broadcast_to(EPS * rng.choice([-1, 1], (channels, 1, width)), x.shape).copy()

    best, lowest = stripes(), np.inf
    while True:
        for attempt in range(TRIES):
            side = min(height, 4 + 3 * attempt)
            tried = stripes() if side == height or not np.isfinite(lowest) else best.copy()
            top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
            tried[:, top : top + side, left : left + side] = EPS * rng.choice([-1, 1], (channels, 1, 1))
            if shadow.free(eight_bit(x + tried)):
                break
        else:
            return False
        found, p = yield eight_bit(x + tried)
        if found != label:
            return True
        margin = float(p[label] - np.delete(p, label).max())
        if margin < lowest:
            best, lowest = tried, margin


def hopskipjump(x: np.ndarray, label: int, rng: np.random.Generator, other: np.ndarray, shadow: Shadow) -> Asked:
    """HopSkipJump in L2, whose bisection ends and whose noise grows where a query would be seen."""
    at, spread = other.copy(), 0.03
    for number in range(1, 1000):
        at, won = yield from _bisect(x, label, at, shadow)
        if won:
            return True
        length = float(np.linalg.norm(at - x))
        direction, spread = yield from _direction(at, label, length, spread, int(30 * number**0.5), rng, shadow)
        if direction is None:
            return False
        step, before = length / number**0.5, at
        for _ in range(TRIES):
            tried = eight_bit(at + step * direction)
            if shadow.free(tried):
                found, _ = yield tried
                if found != label:
                    at = tried
                    break
            step /= 2
        if at is before and number > TRIES:
            return False
    return False


def _bisect(
    x: np.ndarray, label: int, at: np.ndarray, shadow: Shadow
) -> Generator[np.ndarray, tuple[int, np.ndarray], tuple[np.ndarray, bool]]:
    """The nearest image to x on the way from `at` that has another label, as far as one may ask; whether it is one."""
    low, high = 0.0, 1.0
    for _ in range(8):
        middle = (low + high) / 2
        tried = eight_bit(x + middle * (at - x))
        if not shadow.free(tried):
            break
        found, _ = yield tried
        if found != label and np.linalg.norm(tried - x) <= RADIUS:
            return tried, True
        low, high = (low, middle) if found != label else (middle, high)
    return eight_bit(x + high * (at - x)), False


def _direction(
    at: np.ndarray, label: int, length: float, spread: float, samples: int, rng: np.random.Generator, shadow: Shadow
) -> Generator[np.ndarray, tuple[int, np.ndarray], tuple[np.ndarray | None, float]]:
    """A direction estimated from labels about `at`, None if too few may be asked; and the spread that this took."""
    direction, asked = np.zeros_like(at), 0
    for _ in range(samples):
        noise = rng.standard_normal(at.shape).astype(np.float32)
        noise /= np.linalg.norm(noise)
        for _ in range(TRIES):
            tried = eight_bit(at + spread * length * noise)
            if shadow.free(tried):
                break
            spread *= 1.3
        else:
            break
        found, _ = yield tried
        direction += noise if found != label else -noise
        asked += 1
    return (None if asked < 2 else direction / max(float(np.linalg.norm(direction)), 1e-9)), spread


def plain(name: str) -> Callable[[np.ndarray, int, np.random.Generator, np.ndarray, Shadow], Asked]:
    """A search of `benchmarks.searches` as it is."""

    def search(x: np.ndarray, label: int, rng: np.random.Generator, other: np.ndarray, _shadow: Shadow) -> Asked:
        yield from SEARCHES[name](x, label, rng, other)
        return True

    return search


ATTACKS: dict[str, Callable[[np.ndarray, int, np.random.Generator, np.ndarray, Shadow], Asked]] = {
    "square": square,
    "hopskipjump": hopskipjump,
    "square in a film": plain("square"),
    "hopskipjump in a film": plain("hopskipjump"),
}


@dataclass
class Run:
    """One attack under way, and what the gateway's analyst makes of it."""

    search: Asked
    shadow: Shadow
    image: np.ndarray
    analyst: Analyst
    decoys: int
    still: np.ndarray
    asked: int = 0
    seen: int | None = None
    ended: bool = False
    won: bool = False

    def answer(self, p: np.ndarray, maker: Fingerprinter) -> None:
        """Take the probabilities (K,) of the image that was asked."""
        second, first = np.partition(p, -2)[-2:]
        label = int(p.argmax())
        self._ask(self.image, str(label), float(first - second), maker)
        if self.decoys:
            for _ in range(self.decoys):  # of which the answer is taken to be the image's own, a clear one
                self._ask(_frame(self.still, self.asked), "its own", 1.0, maker)
        else:
            self.shadow.asked(self.image)
        if self.seen is None and any(case.pattern == "search" for case in self.analyst.cases()):
            self.seen = self.asked
        try:
            self.image = self.search.send((label, p))
        except StopIteration as stop:
            self.ended, self.won = True, bool(stop.value)

    def _ask(self, image: np.ndarray, label: str, margin: float, maker: Fingerprinter) -> None:
        query = Query(float(self.asked), f"r{self.asked}", "m", "key", label, 0.5, flagged=False, margin=margin)
        self.analyst.take(pack([(query, maker.make(image))]))
        self.asked += 1


def _frame(image: np.ndarray, number: int) -> np.ndarray:
    """A frame of a slow pan over an image (C, H, W), to and fro by at most two pixels, with new noise in each."""
    way = 2 * abs((number / 40) % 2 - 1)
    whole, part = int(way), way - int(way)
    shifted = (1 - part) * np.roll(image, whole, 2) + part * np.roll(image, whole + 1, 2)
    noise = np.random.default_rng(number).standard_normal(image.shape).astype(np.float32)
    return eight_bit(shifted + noise / 255)


def evade(engine: Engine, images: np.ndarray, name: str, n: int, queries: int, seed: int) -> dict[str, Any]:
    """One attack on `n` images (C, H, W) in [0, 1] from `images`, `queries` each at most."""
    rng, shape = np.random.default_rng(seed), (images.shape[1], images.shape[2], images.shape[3])
    chosen = images[rng.choice(len(images), 2 * n, replace=False)]
    labels = engine.run(chosen, part="screen").logits.argmax(1)
    maker, runs = Fingerprinter(SALT, shape), []
    for i in range(n):
        other = next(j for j in range(n, 2 * n) if labels[j] != labels[i])
        shadow = Shadow(Fingerprinter(b"the attacker's own salt", shape))
        draws = np.random.default_rng([seed, i])
        search = ATTACKS[name](chosen[i], int(labels[i]), draws, chosen[other], shadow)
        decoys = DECOYS if name.endswith("film") else 0
        runs.append(Run(search, shadow, next(search), Analyst(SALT, CAPACITY), decoys, chosen[i]))
    while True:
        open_ = [run for run in runs if not run.ended and run.asked < queries]
        if not open_:
            break
        logits = engine.run(np.stack([run.image for run in open_]), part="screen").logits
        for run, row in zip(open_, logits, strict=True):
            run.answer(softmax(row), maker)
    return {
        "runs": n,
        "succeeded": sum(run.won for run in runs),
        "succeeded_unseen": sum(run.won and run.seen is None for run in runs),
        "seen": sum(run.seen is not None for run in runs),
        "gave_up": sum(run.ended and not run.won for run in runs),
        "median_queries": float(np.median([run.asked for run in runs])),
        "median_queries_until_seen": float(np.median([run.seen for run in runs if run.seen is not None] or [0])),
    }


def main(
    data: Annotated[Path, typer.Option(envvar="PALISADE_DATA", help="Folder of gtsrb32_full.npz.")],
    bundle: Annotated[Path, typer.Option(help="Bundle that is attacked.")] = Path("models/gtsrb"),
    runs: Annotated[int, typer.Option(min=1, max=32, help="Images that each search is made on.")] = 20,
    queries: Annotated[int, typer.Option(min=1, help="Queries of each search, at most.")] = 10_000,
    threads: Annotated[int, typer.Option(min=0, help="Intra-op threads; 0: the engine's default.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of every draw.")] = 0,
    json_path: JsonPath = None,
) -> None:
    """Measure how often an attacker who knows the source succeeds without being seen."""
    loaded = load_bundle(bundle)
    engine = Engine(bundle, loaded.manifest.graphs, loaded.manifest.input, threads=threads)
    test = np.load(data / "gtsrb32_full.npz")["x_test"].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    figures: dict[str, Any] = {"seed": seed, "queries": queries}
    for name in ATTACKS:
        figures[name] = evade(engine, test, name, runs, queries, seed)
        console.print(name, figures[name])
    if json_path is not None:
        record(json_path, "query campaigns: an attacker who adapts not to be seen", figures)


if __name__ == "__main__":
    typer.run(main)
