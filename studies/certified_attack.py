"""An attacker of certificates: a square patch at every place, with random and with gradient contents.

On images whose right label is proved (or agreed) the attacker puts a patch of the certified size at each place in turn
and wins if the image then has another label *with* a certificate. By the theorem that cannot happen; this looks for the
mistake in the code that would let it. The same attack on images without a certificate shows what it can do there.

Contents by place: black, white, noise (a fresh one each), and at every second place steps of signed gradient from noise
against the label's margin, as the image is and under a mask that does not hide the patch.

`python -m studies.certified_attack BUNDLE --n 40 --patch 5`
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.table import Table
from torch import Tensor

from gateway.core.certificate import CertificateWanted, Level
from gateway.core.decode import to_pixels
from gateway.core.engine import Engine
from gateway.core.masks import MaskSet, default_k
from gateway.core.pipeline import Pipeline
from training.attacks.margin import margin
from training.bundling.networks import load_defence
from training.commands.figures import today, with_data, write_json
from training.commands.terminal import BundlePath, JsonPath, Threads, command, console, progress_bars, use_threads
from training.data.dataset import Split
from training.imaging.inpaint import inpaint
from training.util.module_modes import frozen
from training.util.signatures import Predict, StepProgress, silent

LEVELS: tuple[Level, ...] = ("proved", "agreed", "none")
STEPS = 3
STEP = 0.4
_BATCH = 196


def places(size: int, patch: int, stride: int) -> list[tuple[int, int]]:
    """Upper left corners of a patch at every `stride` pixels, and at the far edges."""
    starts = sorted({*range(0, size - patch + 1, stride), size - patch})
    return [(y, x) for y in starts for x in starts]


def patched(image: np.ndarray, where: list[tuple[int, int]], contents: np.ndarray) -> np.ndarray:
    """The image float32 (C, H, W) with `contents` (N, C, p, p) at N places."""
    made, side = np.repeat(image[None], len(where), axis=0), contents.shape[-1]
    for each, (y, x), content in zip(made, where, contents, strict=True):
        each[:, y : y + side, x : x + side] = content
    return made


def gradient_contents(
    network: Predict, image: np.ndarray, label: int, where: list[tuple[int, int]], masks: MaskSet, start: np.ndarray
) -> np.ndarray:
    """Contents (N, C, p, p) after `STEPS` steps of signed gradient from `start`; see the module's docstring."""
    found = []
    for first in range(0, len(where), _BATCH):
        some = where[first : first + _BATCH]
        contents = torch.from_numpy(start[first : first + _BATCH].copy())
        hidden = torch.from_numpy(np.stack([_mask_beside(masks, place) for place in some]))
        for _ in range(STEPS):
            contents.requires_grad_()
            seen = _pasted(image, some, contents)
            y = torch.full((len(some),), label)
            loss = margin(network(seen), y).sum() + margin(network(inpaint(seen, hidden)), y).sum()
            (gradient,) = torch.autograd.grad(loss, contents)
            contents = (contents.detach() - STEP * gradient.sign()).clamp(0, 1)
        found.append(contents.numpy())
    return np.concatenate(found)


def _pasted(image: np.ndarray, where: list[tuple[int, int]], contents: Tensor) -> Tensor:
    side = contents.shape[-1]
    made = torch.from_numpy(np.repeat(image[None], len(where), axis=0))
    rows = torch.tensor([y for y, _ in where])[:, None] + torch.arange(side)
    columns = torch.tensor([x for _, x in where])[:, None] + torch.arange(side)
    index = torch.arange(len(where))[:, None, None]
    made = made.movedim(1, -1).clone()
    made[index, rows[:, :, None], columns[:, None, :]] = contents.movedim(1, -1)
    return made.movedim(-1, 1)


def _mask_beside(masks: MaskSet, place: tuple[int, int]) -> np.ndarray:
    """A mask (H, W) that leaves a patch there visible: the one that is farthest away."""
    boxes = masks.boxes
    far = max(range(len(boxes)), key=lambda i: abs(boxes[i][0] - place[0]) + abs(boxes[i][1] - place[1]))
    return masks.singles()[far]


def attack(
    pipeline: Pipeline, network: Predict, image: np.ndarray, label: int, masks: MaskSet, rng: np.random.Generator
) -> dict[str, int]:
    """Images tried, those with another label, and those of them that are agreed and proved, for one image."""
    every, some = (places(masks.width, masks.patch, stride) for stride in (1, 2))
    channels, side = len(image), masks.patch
    noise = rng.random((len(every), channels, side, side), np.float32)
    started = rng.random((len(some), channels, side, side), np.float32)
    made = np.concatenate(
        [
            patched(image, every, np.zeros_like(noise)),
            patched(image, every, np.ones_like(noise)),
            patched(image, every, noise),
            patched(image, some, gradient_contents(network, image, label, some, masks, started)),
        ]
    )
    nothing = np.zeros((len(made), *image.shape[1:]), np.float32)
    labels = np.concatenate(
        [
            pipeline.engine.answer(made[i : i + _BATCH], nothing[i : i + _BATCH]).argmax(1)
            for i in range(0, len(made), _BATCH)
        ]
    )
    found = {"tried": len(made), "fooled": int((labels != label).sum()), "agreed": 0, "proved": 0}
    wanted = CertificateWanted(masks)
    for row in np.flatnonzero(labels != label):
        certificate = pipeline.certified_label(made[row], int(labels[row]), wanted, lead=0.0)
        found["agreed"] += certificate.level != "none"
        found["proved"] += certificate.level == "proved"
    return found


def attack_report(
    pipeline: Pipeline,
    network: Predict,
    split: Split,
    *,
    patch: int,
    n: int,
    others: int,
    seed: int = 0,
    progress: StepProgress = silent,
    keep: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """`n` proved images and `others` of the other levels, right before: which are fooled, which with a certificate.

    `keep` is called with the report so far after every image.
    """
    rng = np.random.default_rng(seed)
    height, width = split.x.shape[1:3]
    masks = MaskSet(height, width, patch, default_k(height, width))
    found: dict[str, list[dict[str, int]]] = {level: [] for level in LEVELS}
    most = {"proved": n, "agreed": others, "none": others}

    def summary() -> dict[str, Any]:
        names = ("tried", "fooled", "agreed", "proved")
        return {
            "patch": patch,
            "seed": seed,
            "levels": {
                level: {
                    "images": len(each),
                    **{name: sum(one[name] for one in each) for name in names},
                    **{f"images_{name}": sum(one[name] > 0 for one in each) for name in names[1:]},
                }
                for level, each in found.items()
            },
        }

    for row in rng.permutation(len(split)):
        if all(len(found[level]) == most[level] for level in LEVELS):
            break
        pixels, label = to_pixels(split.x[row])[0], int(split.y[row])
        logits = pipeline.engine.answer(pixels[None], np.zeros((1, height, width), np.float32))[0]
        level = pipeline.certified_label(pixels, label, CertificateWanted(masks), lead=1e-3).level
        if int(logits.argmax()) == label and len(found[level]) < most[level]:
            found[level].append(attack(pipeline, network, pixels, label, masks, rng))
            progress(level, len(found[level]), most[level])
            keep(summary())
    return summary()


def attack_table(report: dict[str, Any]) -> Table:
    """Images by the level that they had before the attack."""
    columns = ("images", "tried", "fooled", "agreed", "proved", "images_fooled", "images_agreed", "images_proved")
    table = Table("before", *columns)
    for level, found in report["levels"].items():
        table.add_row(level, *(str(found[column]) for column in columns))
    return table


def main(
    bundle: BundlePath = Path("models/gtsrb"),
    json_path: JsonPath = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Number of proved images.")] = 40,
    others: Annotated[
        int, typer.Option(min=0, help="Number of agreed images, and of those without a certificate.")
    ] = 10,
    patch: Annotated[int, typer.Option(min=1, help="Side of the patch.")] = 5,
    seed: int = 0,
    threads: Threads = 1,
) -> None:
    """Attack certified and uncertified images of the test split at every place."""
    use_threads(threads)
    loaded, data = with_data(bundle)
    pipeline = Pipeline.on(
        Engine.open(loaded, device="cpu", threads=threads or 1), loaded, action="sanitize", pool=False
    )

    def keep(report: dict[str, Any]) -> None:
        if json_path:
            about = {"subject": f"{loaded.name} {loaded.version}", "date": today(), "split": "test"}
            write_json(json_path, {**about, **report})

    with frozen(load_defence(loaded).network) as network, progress_bars() as bars:
        report = attack_report(
            pipeline, network, data.test, patch=patch, n=n, others=others, seed=seed, progress=bars.step, keep=keep
        )
    console.print(attack_table(report))


if __name__ == "__main__":
    typer.run(command(main))
