"""Sequences of images (n, 3, 32, 32) uint8, as attacks, cameras and clients send them."""

from __future__ import annotations

from functools import cache

import numpy as np

from gateway.campaigns.analyst import Analyst
from gateway.campaigns.case import Case
from gateway.campaigns.fingerprint import Fingerprinter
from gateway.campaigns.records import Query, pack

SALT = b"a salt for tests"
SIDE = 32
_MAKER = Fingerprinter(SALT, (3, SIDE, SIDE))


@cache
def scene(seed: int, side: int = 4 * SIDE) -> np.ndarray:
    """A picture (3, side, side) in [0, 255]: smooth colours with edges."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:side, 0:side] / side
    picture = np.stack([128 + 60 * np.sin(6 * (a * rows + b * columns)) for a, b in rng.normal(size=(3, 2))])
    for _ in range(12):
        top, left = rng.integers(0, side - side // 6, 2)
        height, width = rng.integers(side // 10, side // 3, 2)
        picture[:, top : top + height, left : left + width] += rng.uniform(-80, 80, (3, 1, 1))
    return np.clip(picture, 0, 255)


def view(picture: np.ndarray, top: float, left: float, size: float) -> np.ndarray:
    """A square part of a picture at the network's size: bilinear, of four points a pixel."""
    at = (np.arange(2 * SIDE) + 0.5) * size / (2 * SIDE)
    rows, columns = np.clip(top + at, 0, picture.shape[1] - 2), np.clip(left + at, 0, picture.shape[2] - 2)
    r, c = rows.astype(int), columns.astype(int)
    u, v = (rows - r)[:, None], (columns - c)[None]
    corners = [picture[:, r + i][:, :, c + j] for i in (0, 1) for j in (0, 1)]
    weights = [(1 - u) * (1 - v), (1 - u) * v, u * (1 - v), u * v]
    fine = sum(w * corner for w, corner in zip(weights, corners, strict=True))
    return fine.reshape(3, SIDE, 2, SIDE, 2).mean((2, 4))


def eight_bit(images: list[np.ndarray]) -> np.ndarray:
    return np.clip(np.rint(np.array(images)), 0, 255).astype(np.uint8)


@cache
def base(seed: int) -> np.ndarray:
    return view(scene(seed), 16, 16, 96)


def pan(seed: int, n: int, step: float = 0.4) -> np.ndarray:
    return eight_bit([view(scene(seed), 20, 4 + step * t, 80) for t in range(n)])


def zoom(seed: int, n: int, factor: float = 0.99) -> np.ndarray:
    edges = [64 - 56 * factor**t for t in range(n)]
    return eight_bit([view(scene(seed), edge, edge, 128 - 2 * edge) for edge in edges])


def estimates(seed: int, n: int, sigma: float = 2.5) -> np.ndarray:
    """What an attack by estimated gradients (NES) asks: pairs around a point that moves every 20 queries."""
    rng, at = np.random.default_rng(seed), base(seed)
    found: list[np.ndarray] = []
    while len(found) < n:
        for _ in range(10):
            noise = rng.normal(size=at.shape) * sigma
            found += [at + noise, at - noise]
        at = at + np.sign(rng.normal(size=at.shape))
    return eight_bit(found[:n])


def squares(seed: int, n: int) -> np.ndarray:
    """What a random search by squares asks; one in six proposals is kept."""
    rng, x, found = np.random.default_rng(seed), base(seed), []
    at = np.broadcast_to(8 * rng.choice([-1, 1], (3, 1, SIDE)), x.shape).copy()
    for _ in range(n):
        side = 10
        top, left = rng.integers(0, SIDE - side, 2)
        tried = at.copy()
        tried[:, top : top + side, left : left + side] = 8 * rng.choice([-1, 1], (3, 1, 1))
        found.append(x + tried)
        if rng.random() < 1 / 6:
            at = tried
    return eight_bit(found)


def noisy(seed: int, n: int, sigma: float = 0.7) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return eight_bit([base(seed) + rng.normal(size=(3, SIDE, SIDE)) * sigma for _ in range(n)])


def ask(
    analyst: Analyst,
    images: np.ndarray,
    *,
    keys: tuple[str | None, ...] = ("alice",),
    labels: tuple[str, ...] = ("stop",),
    seconds: float = 1.0,
    start: float = 0.0,
    name: str = "q",
    margin: float = 1.0,
) -> list[Case]:
    """Let an analyst see images, one every `seconds`, with keys and labels in turn; the case files that it has then."""
    make = cache(lambda image: _MAKER.make(np.frombuffer(image, np.uint8).reshape(3, SIDE, SIDE) / np.float32(255)))
    queries = [
        (
            Query(
                time=start + i * seconds,
                request=f"{name}{i}",
                model="signs",
                key=keys[i % len(keys)],
                label=labels[i % len(labels)],
                p_value=1 / (i + 2),
                flagged=False,
                margin=margin,
            ),
            make(image.tobytes()),
        )
        for i, image in enumerate(images)
    ]
    analyst.take(pack(queries))
    return analyst.cases()


def film(seed: int, n: int) -> np.ndarray:
    """A slow pan to and fro over the image that searches begin with, by two pixels at most; noise in each frame."""
    found = []
    for number in range(n):
        way = 2 * abs((number / 32) % 2 - 1)
        whole, part = int(way), way - int(way)
        shifted = (1 - part) * np.roll(base(seed), whole, 2) + part * np.roll(base(seed), whole + 1, 2)
        found.append(shifted + np.random.default_rng([seed, number]).normal(size=shifted.shape))
    return eight_bit(found)
