"""Level 2: signs of masked gradients in either network."""

from __future__ import annotations

import torch

from training.attacks.margin import margin
from training.evaluate.harness.alone import CHUNK, ROLES
from training.evaluate.harness.bench import Bench, labels
from training.evaluate.harness.found import Found
from training.evaluate.harness.section import Section
from training.evaluate.harness.shown import Body, Table, percent
from training.evaluate.harness.unit import Place, Unit
from training.util.module_modes import seeded


class Gradient(Section):
    """Shares: images at which the margin's gradient is zero; of the right ones, fooled by its sign, by random signs."""

    zero: float
    sign: float
    noise: float


class Gradients(Section):
    n: int
    answering: Gradient
    companion: Gradient | None = None


def gradients(bench: Bench) -> Found:
    """Signs of masked gradients: how often the margin's is zero, and one signed step of 8/255 beside random signs."""
    test = bench.first(bench.settings.control)
    x, y, eps = bench.pixels(test.x), bench.targets(test.y), 8 / 255
    signs = torch.randint(0, 2, x.shape, generator=seeded(bench.settings.seed, 8)).to(x) * 2 - 1
    found = {}
    for role, network in bench.networks.items():
        right = labels(network, x) == test.y
        parts = []
        for a, b in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
            leaf = a.clone().requires_grad_(True)
            parts.append(torch.autograd.grad(margin(network(leaf), b).sum(), leaf)[0])
        gradient = torch.cat(parts)
        stepped, noisy = (labels(network, (x + eps * by).clamp(0, 1)) for by in (-gradient.sign(), signs))
        found[role] = Gradient(
            zero=float((gradient.flatten(1).abs().amax(1) == 0).float().mean()),
            sign=float((stepped != test.y)[right].mean()),
            noise=float((noisy != test.y)[right].mean()),
        )
    return Found(Gradients(n=len(test), **found))


def _show(found: Gradients) -> Body:
    rows = [
        (ROLES[role], percent(row.zero), percent(row.sign), percent(row.noise))
        for role, row in (("answering", found.answering), ("companion", found.companion))
        if row is not None
    ]
    head = ("network", "gradient is zero", "fooled by one step of 8/255", "fooled by random signs")
    return [Table(head, rows), f"n = {found.n:,}."]


UNIT = Unit(
    "gradients",
    "2",
    "signs of masked gradients",
    gradients,
    Gradients,
    ("gradients",),
    (
        Place(
            "gradients",
            "Signs of masked gradients",
            "A gradient that is zero, or that misleads no more than noise does, would make attacks look weak.",
            "measured",
            Gradients,
            _show,
        ),
    ),
    count="control",
    seconds=0.02,
)
