"""Black-box searches as generators: each yields an image (C, H, W) and is sent the label and probabilities (K,) for it.

Plain versions, written to see how their queries look and not to be the strongest of their kind: `square` (score-based,
Andriushchenko et al. 2020), `nes` (score-based, Ilyas et al. 2018), `boundary` (decision-based, Brendel et al. 2018)
and `hopskipjump` (decision-based, Chen et al. 2020). Every image is a multiple of 1/255.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

import numpy as np

Search = Generator[np.ndarray, tuple[int, np.ndarray], None]
EPS = 8 / 255
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries


def eight_bit(x: np.ndarray) -> np.ndarray:
    """The image that a PNG of `x` holds."""
    levels: np.ndarray = np.rint(np.clip(x, 0, 1) * 255).astype(np.float32) / np.float32(255)
    return levels


def square(x: np.ndarray, label: int, rng: np.random.Generator, _other: np.ndarray, *, planned: int = 1000) -> Search:
    """Squares of one colour at random places, kept where they lower the margin; ends with another label."""
    channels, height, width = x.shape
    best = np.broadcast_to(EPS * rng.choice([-1, 1], (channels, 1, width)), x.shape)
    _, p = yield eight_bit(x + best)
    lowest, number = _margin(p, label), 1
    while lowest > 0:
        share = 0.8 / 2 ** sum(number * 10_000 / planned > at for at in _HALVINGS)
        side = max(1, min(round((share * height * width) ** 0.5), height))
        top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
        tried = best.copy()
        tried[:, top : top + side, left : left + side] = EPS * rng.choice([-1, 1], (channels, 1, 1))
        _, p = yield eight_bit(x + tried)
        number += 1
        if (margin := _margin(p, label)) < lowest:
            best, lowest = tried, margin


def nes(x: np.ndarray, label: int, rng: np.random.Generator, _other: np.ndarray, *, pairs: int = 10) -> Search:
    """Signed steps along gradients that are estimated from pairs of noisy images; ends with another label."""
    at = x.copy()
    while True:
        gradient = np.zeros_like(x)
        for _ in range(pairs):
            noise = rng.standard_normal(x.shape).astype(np.float32)
            for sign in (1, -1):
                _, p = yield eight_bit(at + sign * 0.01 * noise)
                gradient += sign * np.float32(np.log(p[label] + 1e-9)) * noise
        at = np.clip(np.clip(at - np.sign(gradient) / 255, x - EPS, x + EPS), 0, 1)
        found, _ = yield eight_bit(at)
        if found != label:
            return


def boundary(x: np.ndarray, label: int, rng: np.random.Generator, other: np.ndarray) -> Search:
    """A walk from `other`, which has another label, towards x along the boundary."""
    at, sideways, towards = other.copy(), 0.1, 0.1
    while True:
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


def hopskipjump(x: np.ndarray, label: int, rng: np.random.Generator, other: np.ndarray, *, first: int = 30) -> Search:
    """Bisection to the boundary, a direction estimated from labels around it, a step, again."""
    at, number = other.copy(), 1
    while True:
        low, high = 0.0, 1.0
        for _ in range(8):
            middle = (low + high) / 2
            found, _ = yield eight_bit((1 - middle) * x + middle * at)
            low, high = (low, middle) if found != label else (middle, high)
        at = eight_bit((1 - high) * x + high * at)
        length = float(np.linalg.norm(at - x))
        direction = np.zeros_like(x)
        for _ in range(int(first * number**0.5)):
            noise = _unit(rng.standard_normal(x.shape).astype(np.float32))
            found, _ = yield eight_bit(at + 0.03 * length * noise)
            direction += noise if found != label else -noise
        step = length / number**0.5
        while step > 1 / 255:
            found, _ = yield eight_bit(at + step * _unit(direction))
            if found != label:
                at = eight_bit(at + step * _unit(direction))
                break
            step /= 2
        number += 1


SEARCHES: dict[str, Callable[[np.ndarray, int, np.random.Generator, np.ndarray], Search]] = {
    "square": square,
    "nes": nes,
    "boundary": boundary,
    "hopskipjump": hopskipjump,
}


def _margin(p: np.ndarray, label: int) -> float:
    others = np.delete(p, label)
    return float(np.log(p[label] + 1e-9) - np.log(others.max() + 1e-9))


def _unit(x: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = x / max(float(np.linalg.norm(x)), 1e-9)
    return scaled
