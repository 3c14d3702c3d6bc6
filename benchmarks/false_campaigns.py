"""What is mistaken for a query campaign: frames of tracks, photographs that move, cameras that are noisy or stuck."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gateway.campaigns.analyst import Analyst
from gateway.campaigns.case import Case
from gateway.campaigns.fingerprint import Fingerprinter
from gateway.campaigns.records import Query, pack
from gateway.core.engine import Engine
from gateway.core.outputs import softmax
from training.evaluate.harness.tracks import inferred_tracks

SALT = b"a salt of the benchmark"
SPEEDS = (0.1, 0.3, 1.0)
"""Pixels of the network's 32 that a photograph moves by in a step."""
FRAMES = 30
_BATCH = 30

# Labels and margins (N,) of images (N, C, H, W) uint8.
Answers = tuple[np.ndarray, np.ndarray]


def answered(engine: Engine, images: np.ndarray) -> Answers:
    """What the answering network says to images (N, C, H, W) uint8: labels, and margins in [0, 1]."""
    labels, margins = np.zeros(len(images), np.int64), np.zeros(len(images))
    for at in range(0, len(images), _BATCH):
        pixels = images[at : at + _BATCH].astype(np.float32) / np.float32(255)
        for i, logits in enumerate(engine.run(pixels, part="screen").logits, at):
            p = softmax(logits)
            labels[i] = p.argmax()
            second, first = np.partition(p, -2)[-2:]
            margins[i] = first - second
    return labels, margins


def named(images: Iterable[np.ndarray], answers: Answers | None = None, *, seconds: float) -> list[Case]:
    """What an analyst calls images (C, H, W) uint8 of one caller, in this order; all of one sure label by default."""
    analyst, maker = Analyst(SALT, 1 << 16), None
    cases: dict[str, Case] = {}
    for i, image in enumerate(images):
        maker = maker or Fingerprinter(SALT, (image.shape[0], image.shape[1], image.shape[2]))
        label, margin = ("a", 1.0) if answers is None else (str(answers[0][i]), float(answers[1][i]))
        query = Query(i * seconds, f"q{i}", "m", "camera", label, 0.5, flagged=False, margin=margin)
        analyst.take(pack([(query, maker.make(image.astype(np.float32) / np.float32(255)))]))
        cases.update({case.id: case for case in analyst.cases()})
        analyst.written()
    return list(cases.values())


def patterns(cases: Iterable[Case]) -> dict[str, int]:
    """How many case files have which pattern."""
    return dict(Counter(case.pattern for case in cases))


def training_tracks(engine: Engine, data: np.lib.npyio.NpzFile, limit: int) -> dict[str, Any]:
    """The training tracks of the traffic signs, one after another, frame by frame."""
    order = np.lexsort((data["frame_train"], data["track_train"], data["y_train"]))[:limit]
    images = data["x_train"][order].transpose(0, 3, 1, 2)
    return {"frames": len(images), "patterns": patterns(named(images, answered(engine, images), seconds=0.1))}


def held_out_tracks(engine: Engine, data: np.lib.npyio.NpzFile, limit: int, rng: np.random.Generator) -> dict[str, Any]:
    """The test frames by inferred track, whose order is not published: from each to the most alike, and at random."""
    x, y = data["x_test"][:limit], data["y_test"][:limit]
    track = inferred_tracks(x, y, frames=FRAMES)
    images = x.transpose(0, 3, 1, 2)
    labels, margins = answered(engine, images)
    found: dict[str, Any] = {"frames": len(x), "tracks": int(track.max()) + 1}
    for name in ("in order of likeness", "in random order"):
        order = np.concatenate(
            [_ordered(images, np.flatnonzero(track == t), name, rng) for t in range(track.max() + 1)]
        )
        cases = named(images[order], (labels[order], margins[order]), seconds=0.1)
        found[name] = patterns(cases)
    return found


def _ordered(images: np.ndarray, members: np.ndarray, name: str, rng: np.random.Generator) -> np.ndarray:
    if name == "in random order":
        return rng.permutation(members)
    flat = images[members].reshape(len(members), -1).astype(np.float32)
    squares = (flat * flat).sum(1)
    distances = squares[:, None] + squares[None] - 2 * flat @ flat.T
    at = int(distances.sum(1).argmax())
    path = [at]
    while len(path) < len(members):
        away = distances[at].copy()
        away[path] = np.inf
        at = int(away.argmin())
        path.append(at)
    return members[path]


def moved(engine: Engine, folder: Path, steps: int, limit: int, rng: np.random.Generator) -> dict[str, Any]:
    """Photographs panned and zoomed for `steps` frames, at three speeds, and shaken by a camera that is noisy."""
    found: Counter[str] = Counter()
    files = sorted((folder / "photos").glob("*.jpg"))[:limit]
    for file in files:
        photo = Image.open(file).convert("RGB")
        films = {f"{kind} {speed:g}": make(photo, steps, speed) for kind, make in _MOTIONS for speed in SPEEDS}
        films["still, noise of 0.7 levels"] = _shaken(photo, steps, 0.0, 0.7, rng)
        films["still, noise of 2 levels"] = _shaken(photo, steps, 0.0, 2.0, rng)
        films["shaken by 0.1 pixels, noise of 0.7 levels"] = _shaken(photo, steps, 0.1, 0.7, rng)
        for name, frames in films.items():
            images = np.array(list(frames))
            for pattern in patterns(named(images, answered(engine, images), seconds=0.1)):
                found[f"{name}: {pattern}"] += 1
    return {"photographs": len(files), "steps": steps, "pixels_a_step": list(SPEEDS), "patterns": dict(found)}


def _view(photo: Image.Image, across: float, down: float, share: float) -> np.ndarray:
    width, height = photo.size
    side = share * min(width, height)
    left, top = across * (width - side), down * (height - side)
    box = (left, top, left + side, top + side)
    return np.asarray(photo.resize((32, 32), Image.Resampling.BICUBIC, box=box)).transpose(2, 0, 1)


def _pan(photo: Image.Image, steps: int, speed: float) -> Iterator[np.ndarray]:
    share = 0.4
    stretch = min(photo.size) * share / 32 * speed / max(1.0, max(photo.size) - share * min(photo.size))
    for step in range(steps):
        yield _view(photo, min(1.0, step * stretch), 0.5, share)


def _zoom(photo: Image.Image, steps: int, speed: float) -> Iterator[np.ndarray]:
    for step in range(steps):
        yield _view(photo, 0.5, 0.5, max(0.15, (1 + speed / 16) ** -step))


def _shaken(
    photo: Image.Image, steps: int, pixels: float, levels: float, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """A camera that points at one place: it trembles by `pixels` and adds noise of `levels` of 255 to every frame."""
    share = 0.4
    for _ in range(steps):
        across, down = 0.5 + pixels * share / 32 / (1 - share) * rng.standard_normal(2)
        frame = _view(photo, float(across), float(down), share) + levels * rng.standard_normal((3, 32, 32))
        yield np.clip(np.rint(frame), 0, 255).astype(np.uint8)


_MOTIONS = (("pan", _pan), ("zoom", _zoom))
