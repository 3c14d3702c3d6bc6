"""The companion alone under attack, and controls that the harness must break."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from training.attacks.autoattack import autoattack
from training.attacks.coarse import searched
from training.attacks.early import pgd_until_fooled
from training.attacks.margin import margin
from training.evaluate.harness.bench import Bench, as_images, labels
from training.evaluate.harness.found import Figure, Found
from training.evaluate.harness.store import Arrays
from training.util.module_modes import frozen, seeded
from training.util.statistics import interval

CHUNK, AUTOATTACK_CHUNK = 256, 64
CURVE = (0.0, 1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0, 128.0, 255.0)
"""Radii of the security curve, of 255; at 255 any image may become any other."""
FAR, FAR_RESTARTS = 64, 4  # far out a single start may end where gradients vanish
CONTROL_EPS, CONTROL_RESTARTS = 16.0, 3


def pgd_rows(bench: Bench, role: str, *, eps: float, count: int | None, restarts: int = 1) -> Arrays:
    """PGD Linf of `eps` / 255 on a network alone: `standing` (n,) after it, and the attacked uint8 `images`.

    It searches in bfloat16 (`training.attacks.coarse`) and is judged in float32; any iterate that fools counts. Only
    images that the network gets right are attacked.
    """
    test, predict = bench.first(count), searched(bench.networks[role])
    right = bench.labels[role] == bench.test.y

    def make(start: int, stop: int, generator: torch.Generator) -> Arrays:
        part = test.take(np.arange(start, stop))
        images, standing = part.x.copy(), right[start:stop].copy()
        alive = np.flatnonzero(standing)
        if len(alive):
            with frozen(bench.defence):
                adversarial, fooled = pgd_until_fooled(
                    predict,
                    bench.pixels(part.x[alive]),
                    bench.targets(part.y[alive]),
                    eps=eps / 255,
                    steps=bench.settings.steps,
                    restarts=restarts,
                    generator=generator,
                )
            images[alive], standing[alive] = as_images(adversarial), ~fooled.cpu().numpy()
        return {"images": images, "standing": standing}

    name = f"{role}, PGD-{bench.settings.steps} at {eps:g}/255"
    depends = {"steps": bench.settings.steps, "restarts": restarts}
    key = f"pgd-{role}-{eps:g}" + (f"x{restarts}" if restarts > 1 else "")
    return bench.rows(name, key, depends, len(test), CHUNK, make)


def companion_pgd(bench: Bench, *, eps: int) -> Found:
    """Accuracy of the companion alone under PGD: right before and after."""
    standing = pgd_rows(bench, "companion", eps=eps, count=bench.settings.robust)["standing"]
    group, key = bench.test.group[: len(standing)], f"pgd50_{eps}"
    section = {
        "n": len(standing),
        "eps": eps,
        "steps": bench.settings.steps,
        "restarts": 1,
        "accuracy": float(standing.mean()),
        "accuracy_interval": interval(standing, group),
    }
    return Found(section, {key: Figure(key, at=("companion_pgd", f"eps_{eps}", "accuracy"))}, {key: standing})


def control(bench: Bench) -> Found:
    """The undefended network under PGD at a large radius with restarts: a working harness leaves next to nothing."""
    rows = pgd_rows(bench, "answering", eps=CONTROL_EPS, count=bench.settings.control, restarts=CONTROL_RESTARTS)
    standing = rows["standing"]
    group = bench.test.group[: len(standing)]
    section = {
        "n": len(standing),
        "eps": CONTROL_EPS,
        "steps": bench.settings.steps,
        "restarts": CONTROL_RESTARTS,
        "accuracy": float(standing.mean()),
        "accuracy_interval": interval(standing, group),
    }
    return Found(section, {"control": Figure("control", at=("control", "accuracy"))}, {"control": standing})


def gradients(bench: Bench) -> Found:
    """Signs of masked gradients: how often the margin's is zero, and one signed step of 8/255 beside random signs.

    `sign` and `noise` are shares of the images that the network answers rightly and that are fooled.
    """
    test = bench.first(bench.settings.control)
    x, y, eps = bench.pixels(test.x), bench.targets(test.y), 8 / 255
    signs = torch.randint(0, 2, x.shape, generator=seeded(bench.settings.seed, 8)).to(x) * 2 - 1
    section: dict[str, Any] = {"n": len(test)}
    for role, network in bench.networks.items():
        right = labels(network, x) == test.y
        parts = []
        for a, b in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
            leaf = a.clone().requires_grad_(True)
            parts.append(torch.autograd.grad(margin(network(leaf), b).sum(), leaf)[0])
        gradient = torch.cat(parts)
        stepped, noisy = (labels(network, (x + eps * by).clamp(0, 1)) for by in (-gradient.sign(), signs))
        section[role] = {
            "zero": float((gradient.flatten(1).abs().amax(1) == 0).float().mean()),
            "sign": float((stepped != test.y)[right].mean()),
            "noise": float((noisy != test.y)[right].mean()),
        }
    return Found(section)


def autoattacked(bench: Bench, *, eps: int) -> Found:
    """AutoAttack (standard) on the companion alone: what stands, and what the others fell to."""
    test = bench.first(bench.settings.autoattack)
    predict = searched(bench.networks["companion"])

    def make(start: int, stop: int, _generator: torch.Generator) -> Arrays:
        part = test.take(np.arange(start, stop))
        with frozen(bench.defence):
            done = autoattack(
                predict,
                bench.pixels(part.x),
                bench.targets(part.y),
                eps=eps / 255,
                seed=bench.settings.seed,
                batch=stop - start,
            )
        fell_to = np.array(["", *done.stages])[done.fell_to.cpu().numpy() + 1]
        return {"images": as_images(done.adversarial), "standing": done.robust.cpu().numpy(), "fell_to": fell_to}

    title = f"companion, AutoAttack at {eps}/255"
    rows = bench.rows(title, f"autoattack-{eps}", {}, len(test), AUTOATTACK_CHUNK, make)
    standing, key = rows["standing"], f"autoattack_{eps}"
    section = {
        "n": len(test),
        "eps": eps,
        "version": "standard",
        "accuracy": float(standing.mean()),
        "accuracy_interval": interval(standing, test.group),
        "fell_to": {stage: float((rows["fell_to"] == stage).mean()) for stage in np.unique(rows["fell_to"]) if stage},
    }
    return Found(section, {key: Figure(key, at=("autoattack", f"eps_{eps}", "accuracy"))}, {key: standing})


def curve(bench: Bench) -> Found:
    """Security curve: accuracy of either network alone under PGD, over radii up to the whole range of pixels."""
    section: dict[str, Any] = {"n": len(bench.first(bench.settings.curve)), "steps": bench.settings.steps}
    for role in bench.networks:
        points = {}
        for eps in CURVE:
            if eps == 0:
                count = len(bench.first(bench.settings.curve))
                points["0"] = float((bench.labels[role] == bench.test.y)[:count].mean())
            else:
                restarts = FAR_RESTARTS if eps >= FAR else 1
                rows = pgd_rows(bench, role, eps=eps, count=bench.settings.curve, restarts=restarts)
                points[f"{eps:g}"] = float(rows["standing"].mean())
        section[role] = points
    return Found(section)
