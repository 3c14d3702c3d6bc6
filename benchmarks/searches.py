"""Black-box searches as generators: each yields an image (C, H, W) and is sent the label and probabilities (K,) for it.

Plain versions, written to see how their queries look and not to be the strongest of their kind: `square` (score-based,
Andriushchenko et al. 2020), `nes` (score-based, Ilyas et al. 2018), `boundary` (decision-based, Brendel et al. 2018),
`hopskipjump` (decision-based, Chen et al. 2020) and `rays` (decision-based, Chen and Gu 2020). Every image is a
multiple of 1/255. A search ends when an image with another label lies within its norm's radius.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from itertools import pairwise
from typing import Literal

import numpy as np

Search = Generator[np.ndarray, tuple[int, np.ndarray], None]
Norm = Literal["linf", "l2"]
EPS = 8 / 255
RADIUS = 1.0
"""Radius in L2, that of the bundle's card."""
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries


def eight_bit(x: np.ndarray) -> np.ndarray:
    """The image that a PNG of `x` holds."""
    levels: np.ndarray = np.rint(np.clip(x, 0, 1) * 255).astype(np.float32) / np.float32(255)
    return levels


def square(x: np.ndarray, label: int, rng: np.random.Generator, _other: np.ndarray, *, planned: int = 1000) -> Search:
    """Squares of one colour at random places, kept where they lower the margin."""
    channels, height, width = x.shape
    best = np.broadcast_to(EPS * rng.choice([-1, 1], (channels, 1, width)), x.shape)
    _, p = yield eight_bit(x + best)
    lowest, number = _margin(p, label), 1
    while lowest > 0:
        top, left, side = _window(rng, number, planned, height, width)
        tried = best.copy()
        tried[:, top : top + side, left : left + side] = EPS * rng.choice([-1, 1], (channels, 1, 1))
        _, p = yield eight_bit(x + tried)
        number += 1
        if (margin := _margin(p, label)) < lowest:
            best, lowest = tried, margin


def square_l2(
    x: np.ndarray, label: int, rng: np.random.Generator, _other: np.ndarray, *, planned: int = 1000
) -> Search:
    """The same within an L2 ball: a square gets a larger share of a change of constant norm."""
    channels, height, width = x.shape
    best = _unit(rng.choice([-1.0, 1.0], (channels, height // 4, width // 4)).repeat(4, 1).repeat(4, 2)) * RADIUS
    _, p = yield eight_bit(x + best)
    lowest, number = _margin(p, label), 1
    while lowest > 0:
        top, left, side = _window(rng, number, planned, height, width)
        tried = best.copy()
        inside = tried[:, top : top + side, left : left + side]
        inside[:] = inside / 2 + 2 * RADIUS / x.size**0.5 * rng.choice([-1, 1], (channels, 1, 1))
        tried = _unit(tried) * RADIUS
        _, p = yield eight_bit(x + tried)
        number += 1
        if (margin := _margin(p, label)) < lowest:
            best, lowest = tried, margin


def nes(
    x: np.ndarray, label: int, rng: np.random.Generator, _other: np.ndarray, *, pairs: int = 10, norm: Norm = "linf"
) -> Search:
    """Steps along gradients that are estimated from pairs of noisy images."""
    at = x.copy()
    while True:
        gradient = np.zeros_like(x)
        for _ in range(pairs):
            noise = rng.standard_normal(x.shape).astype(np.float32)
            for sign in (1, -1):
                _, p = yield eight_bit(at + sign * 0.01 * noise)
                gradient += sign * np.float32(np.log(p[label] + 1e-9)) * noise
        if norm == "linf":
            at = np.clip(np.clip(at - np.sign(gradient) / 255, x - EPS, x + EPS), 0, 1)
        else:
            change = at - _unit(gradient) * RADIUS / 8 - x
            at = np.clip(x + change * min(1.0, RADIUS / max(float(np.linalg.norm(change)), 1e-9)), 0, 1)
        found, _ = yield eight_bit(at)
        if found != label:
            return


def boundary(x: np.ndarray, label: int, rng: np.random.Generator, other: np.ndarray) -> Search:
    """A walk from `other`, which has another label, towards x along the boundary."""
    at, sideways, towards = other.copy(), 0.1, 0.1
    while _apart(at, x, "l2") > RADIUS:
        way = x - at
        length = float(np.linalg.norm(way))
        noise = rng.standard_normal(x.shape).astype(np.float32)
        tried = x - _unit(x - (at + _unit(noise) * sideways * length)) * length
        found, _ = yield eight_bit(tried)
        if found == label:
            sideways *= 0.9
            continue
        sideways *= 1.02
        nearer = tried + towards * (x - tried)
        found, _ = yield eight_bit(nearer)
        if found == label:
            towards *= 0.9
        else:
            at, towards = eight_bit(nearer), towards * 1.05


def hopskipjump(
    x: np.ndarray,
    label: int,
    rng: np.random.Generator,
    other: np.ndarray,
    *,
    first: int = 30,
    sample: float = 0.03,
    norm: Norm = "l2",
) -> Search:
    """Bisection to the boundary, a direction estimated from labels around it, a step, again."""
    at, number = other.copy(), 1
    while True:
        low, high = 0.0, 1.0 if norm == "l2" else _apart(at, x, norm)
        for _ in range(8):
            middle = (low + high) / 2
            found, _ = yield eight_bit(_between(x, at, middle, norm))
            low, high = (low, middle) if found != label else (middle, high)
        at = eight_bit(_between(x, at, high, norm))
        if _apart(at, x, norm) <= (RADIUS if norm == "l2" else EPS + 1e-4):
            return
        length = float(np.linalg.norm(at - x))
        direction = np.zeros_like(x)
        for _ in range(int(first * number**0.5)):
            noise = _unit(rng.standard_normal(x.shape).astype(np.float32))
            found, _ = yield eight_bit(at + sample * length * noise)
            direction += noise if found != label else -noise
        way = _unit(direction) if norm == "l2" else np.sign(direction)
        step = _apart(at, x, norm) / number**0.5
        while step > 1 / 255:
            found, _ = yield eight_bit(at + step * way)
            if found != label:
                at = eight_bit(at + step * way)
                break
            step /= 2
        number += 1


def rays(x: np.ndarray, label: int, rng: np.random.Generator, _other: np.ndarray) -> Search:
    """A vector of signs, whose blocks are flipped where that shortens the way along it to another label."""
    signs = np.full(x.size, rng.choice([-1.0, 1.0]), np.float32)
    radius = yield from _reach(x, label, signs, 1.0)
    level = 0
    while radius > EPS + 1e-4:
        blocks = min(2**level, x.size)
        for start, stop in pairwise(x.size * i // blocks for i in range(blocks + 1)):
            tried = signs.copy()
            tried[start:stop] *= -1
            found, _ = yield eight_bit(x + radius * tried.reshape(x.shape))
            if found != label:
                signs, radius = tried, (yield from _reach(x, label, tried, radius))
                if radius <= EPS + 1e-4:
                    return
        level = level + 1 if blocks < x.size else 0


def _reach(
    x: np.ndarray, label: int, signs: np.ndarray, radius: float
) -> Generator[np.ndarray, tuple[int, np.ndarray], float]:
    """Shorten `radius`, by bisection to a level of 255, while the label is another."""
    low, high = 0.0, radius
    while high - low > 1 / 255:
        middle = (low + high) / 2
        found, _ = yield eight_bit(x + middle * signs.reshape(x.shape))
        low, high = (low, middle) if found != label else (middle, high)
    return high


SEARCHES: dict[str, Callable[[np.ndarray, int, np.random.Generator, np.ndarray], Search]] = {
    "square": square,
    "square_l2": square_l2,
    "nes": nes,
    "nes_l2": partial(nes, norm="l2"),
    "boundary": boundary,
    "hopskipjump": hopskipjump,
    "hopskipjump_linf": partial(hopskipjump, norm="linf"),
    "rays": rays,
}


def _window(rng: np.random.Generator, number: int, planned: int, height: int, width: int) -> tuple[int, int, int]:
    """Top, left and side of the square of a proposal, smaller the later it is."""
    share = 0.8 / 2 ** sum(number * 10_000 / planned > at for at in _HALVINGS)
    side = max(1, min(round((share * height * width) ** 0.5), height))
    return int(rng.integers(0, height - side + 1)), int(rng.integers(0, width - side + 1)), side


def _between(x: np.ndarray, at: np.ndarray, way: float, norm: Norm) -> np.ndarray:
    """From x (`way` 0) towards `at`: along a line, or as far in each pixel as `way` allows."""
    return (1 - way) * x + way * at if norm == "l2" else np.clip(at, x - way, x + way)


def _apart(a: np.ndarray, b: np.ndarray, norm: Norm) -> float:
    return float(np.linalg.norm(a - b)) if norm == "l2" else float(np.abs(a - b).max())


def _margin(p: np.ndarray, label: int) -> float:
    others = np.delete(p, label)
    return float(np.log(p[label] + 1e-9) - np.log(others.max() + 1e-9))


def _unit(x: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = x / max(float(np.linalg.norm(x)), 1e-9)
    return scaled
