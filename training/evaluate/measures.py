"""The measurements of a card; each returns a plain dict with its n, and works on the system as served."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gateway.pipeline import Pipeline
from training.attacks.early import pgd_until_fooled
from training.attacks.patch import patch_attack
from training.attacks.pgd import pgd
from training.data import Split
from training.defence.graph import DefenceGraph
from training.evaluate.served import Served, serve
from training.modes import seeded
from training.pixels import to_tensor
from training.scoring import to_uint8

Progress = Callable[[str, int, int], None]
ALPHAS = (0.01, 0.05)


def benign(pipeline: Pipeline, test: Split, progress: Progress) -> tuple[dict[str, Any], Served]:
    """Clean accuracy of every answer, share flagged at each alpha, and what neutralisation does to clean images."""
    answers = serve(pipeline, test.x, lambda done, total: progress("clean test images", done, total))
    right = answers.raw == test.y
    return {
        "n": len(test),
        "accuracy_answering": float(right.mean()),
        "accuracy_companion": float((answers.companion == test.y).mean()),
        "accuracy_served": float((answers.served == test.y).mean()),
        "flagged": {f"{alpha:g}": float(flags(pipeline, answers.p_value, alpha).mean()) for alpha in ALPHAS},
        "neutralised": float(answers.neutralised.mean()),
        "harmed": float((right & (answers.served != test.y)).mean()),
    }, answers


def flags(pipeline: Pipeline, p_value: np.ndarray, alpha: float, *, cascade: bool = False) -> np.ndarray:
    """Which p-values (N,) the gateway flags at `alpha`."""
    return p_value <= pipeline.judge.cutoff(alpha, cascade=cascade)


def cascade(pipeline: Pipeline, test: Split, attacked: dict[str, tuple[np.ndarray, Split]], progress: Progress) -> Any:
    """The composite of screen and verdict: what it lets off, what it flags wrongly, and which attacks it finds.

    `attacked` are uint8 images (N, H, W, C) by attack with the split that they were made of; those that fool the
    answering network count.
    """

    def served(name: str, images: np.ndarray) -> Served:
        return serve(pipeline, images, partial(progress, f"cascade: {name}"), cascade=True)

    answers = served("clean test images", test.x)
    out: dict[str, Any] = {
        "n": len(test),
        "screened": float(answers.screened.mean()),
        "flagged": {f"{a:g}": float(flags(pipeline, answers.p_value, a, cascade=True).mean()) for a in ALPHAS},
        "attacks": {},
    }
    for name, (images, split) in attacked.items():
        answers = served(name, images)
        fooled = answers.raw != split.y
        out["attacks"][name] = {"fooled": int(fooled.sum()), "screened": _share(answers.screened, fooled)} | {
            f"alpha_{a:g}": _share(flags(pipeline, answers.p_value, a, cascade=True), fooled) for a in ALPHAS
        }
    return out


def robust_accuracy(
    defence: DefenceGraph, test: Split, *, eps: float, steps: int, seed: int, progress: Progress
) -> dict[str, Any]:
    """Accuracy of the companion alone under PGD Linf of `eps` / 255: right before and after (worst case by image)."""
    x, y = to_tensor(test.x), torch.from_numpy(test.y)
    name = f"companion, PGD-{steps} at {eps:g}/255"
    predict = fast(defence.companion)
    right = _right(defence.companion, x, y)
    _, fooled = pgd_until_fooled(
        predict, x[right], y[right], eps=eps / 255, steps=steps, generator=seeded(seed, int(eps)),
        progress=lambda done, total: progress(name, done, total),
    )  # fmt: skip
    return {"n": len(test), "eps": eps, "steps": steps, "restarts": 1, "accuracy": float((~fooled).sum() / len(x))}


def attack_answering(defence: DefenceGraph, test: Split, *, eps: float, steps: int, seed: int) -> np.ndarray:
    """PGD Linf against the answering network alone, rounded to 8 bits: uint8 images (N, H, W, C)."""
    x, y = to_tensor(test.x), torch.from_numpy(test.y)
    generator = seeded(seed, int(eps))
    parts = [
        pgd(defence.network, a, b, eps=eps / 255, steps=steps, generator=generator)
        for a, b in zip(x.split(128), y.split(128), strict=True)
    ]
    return to_uint8(torch.cat(parts).numpy())


def patch_answering(defence: DefenceGraph, test: Split, *, side: int, seed: int) -> np.ndarray:
    """Location-optimised patches against the answering network alone: uint8 images (N, H, W, C)."""
    x, y = to_tensor(test.x), torch.from_numpy(test.y)
    generator = seeded(seed, side)
    parts = [
        patch_attack(defence.network, a, b, side=side, generator=generator)[0]
        for a, b in zip(x.split(128), y.split(128), strict=True)
    ]
    return to_uint8(torch.cat(parts).numpy())


def unaware(
    pipeline: Pipeline, images: np.ndarray, test: Split, clean: Served, *, name: str, progress: Progress
) -> dict[str, Any]:
    """How the system meets attacks made without knowing it: only images that fool the answering network count.

    `max_softmax` rejects the least confident answers with the threshold that flags exactly as many benign test images
    as the system does. `undetected` is the share of all attacked images that are served wrong and not flagged.
    """
    answers = serve(pipeline, images, lambda done, total: progress(name, done, total))
    fooled = answers.raw != test.y
    out: dict[str, Any] = {
        "n": len(test),
        "fooled": int(fooled.sum()),
        "recovered": _share(answers.served == test.y, fooled),
        "recovered_if_always_served": _share(answers.after == test.y, fooled),
        "neutralised": _share(answers.neutralised, fooled),
    }
    for alpha in ALPHAS:
        flagged, rate = flags(pipeline, answers.p_value, alpha), float(flags(pipeline, clean.p_value, alpha).mean())
        threshold = np.quantile(clean.confidence, rate)
        out[f"alpha_{alpha:g}"] = {
            "measured_fpr": rate,
            "flagged": _share(flagged, fooled),
            "max_softmax": _share(answers.confidence < threshold, fooled),
            "undetected": float(((answers.served != test.y) & ~flagged).mean()),
        }
    return out


def correct_first(answers: Served, test: Split, n: int) -> Split:
    """The first `n` test images that the answering network gets right."""
    return test.take(np.flatnonzero(answers.raw[: len(test)] == test.y)[:n])


def fast(network: torch.nn.Module) -> Callable[[Tensor], Tensor]:
    """Logits in bfloat16 where gradients are wanted (an attack's search), in float32 where they are judged."""
    network = copy.deepcopy(network).to(memory_format=torch.channels_last)

    def predict(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=torch.is_grad_enabled()):
            return network(x.contiguous(memory_format=torch.channels_last)).float()

    return predict


@torch.no_grad()
def _right(network: torch.nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([network(a).argmax(1) == b for a, b in zip(x.split(512), y.split(512), strict=True)])


def _share(which: np.ndarray, among: np.ndarray) -> float | None:
    return float(which[among].mean()) if among.any() else None
