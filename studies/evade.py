"""What might make the companion's objection harder to evade, at a small scale: `python -m studies.evade BUNDLE`.

Small companions (3 MMAC), all trained on from the adversarially trained bases of `studies.ablation` with the same
budget, beside the bundle's answering network: with the self-attack of the strict margin in the training loop, seeing
something else (grey values, half the resolution, edges), of another seed, or asked about randomly drawn views. Every
system is attacked with the same effort by an attacker who knows it, on images of the select split, which chooses.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.record import record
from gateway.core.loading import load_bundle
from studies.strict import Opinion, Variant, strict_opinion, table_of
from training.attacks.coarse import searched
from training.attacks.early import pgd_until_fooled
from training.attacks.pgd import pgd
from training.bundling.networks import load_defence
from training.bundling.provenance import made_with
from training.commands.terminal import JsonPath, Threads, command, progress_bars, use_threads
from training.data.augment import augment
from training.data.dataset import Dataset
from training.defence.scores.companion_strict import RADIUS
from training.defence.signals.margins import one_hot_margin, served_one_hot
from training.evaluate.harness.bench import Bench, labels
from training.evaluate.harness.store import Store, digest
from training.imaging.pixels import to_tensor
from training.loop.runs import load_run
from training.models.network import Network
from training.util.checkpoint import write_tensors
from training.util.module_modes import frozen, seeded
from training.util.signatures import Progress, StepProgress

BASE = "ablation-base-s{}"
EPS, STEPS, BATCH, RATE = 4 / 255, 3, 128, 0.05
VIEWS, SHIFT, NOISE = 4, 3, 8 / 255
DRAWS, SAMPLES = 9, 4


class Grey(nn.Module):
    """The mean of the colours, in all of them."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1, keepdim=True).expand_as(x)


class Half(nn.Module):
    """Every two pixels averaged, as large as before."""

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(F.avg_pool2d(x, 2), size=x.shape[2:], mode="bilinear", align_corners=False)


class Edges(nn.Module):
    """Twice the difference from a 5x5 mean, about middle grey."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 + 2 * (x - F.avg_pool2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), 5, stride=1))


COMPANIONS: dict[str, tuple[int, nn.Module | None, float]] = {
    "plain": (0, None, 0.0),
    "other seed": (1, None, 0.0),
    "consistency": (0, None, 0.5),
    "grey": (0, Grey(), 0.0),
    "half": (0, Half(), 0.0),
    "edges": (0, Edges(), 0.0),
}
"""Seed of the base, what is put before it, and the weight of the consistency term."""


def train_on(
    network: nn.Module,
    data: Dataset,
    recipe: Any,
    *,
    epochs: int,
    consistency: float,
    seed: int,
    progress: Progress,
) -> None:
    """Adversarial training of `network` in place, with the self-attack in the loop.

    The consistency term is the cross-entropy of the true label after the strict margin's own step away from whatever
    the network answers on the adversarial image: a right answer has to stand that step, a wrong one has to give way.
    """
    x, y = to_tensor(data.train.x), torch.from_numpy(data.train.y)
    optimiser = torch.optim.SGD(network.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
    total = epochs * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, total)
    generator = seeded(seed, 21)
    for step in range(total):
        if step % (len(x) // BATCH) == 0:
            order = torch.randperm(len(x), generator=generator)
        rows = order[(step % (len(x) // BATCH)) * BATCH :][:BATCH]
        images, label = augment(x[rows], recipe.augmentation, generator)[0], y[rows]
        with frozen(network):
            seen = [pgd(searched(network), images, label, eps=EPS, steps=STEPS, generator=generator)]
            if consistency > 0:
                leaf = seen[0].detach().requires_grad_()
                logits = searched(network)(leaf)
                margins = one_hot_margin(logits, served_one_hot(logits.detach()))
                (gradient,) = torch.autograd.grad(margins.sum(), leaf)
                seen.append((seen[0] - RADIUS * gradient.sign()).clamp(0, 1))
        network.train()
        losses = [F.cross_entropy(part, label) for part in network(torch.cat(seen)).split(len(label))]
        loss = losses[0] + sum(consistency * term for term in losses[1:])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        progress(step + 1, total)
    network.eval()


def companion(name: str, data: Dataset, runs: Path, work: Path, *, epochs: int, progress: StepProgress) -> nn.Module:
    """The companion `name` of `COMPANIONS`, trained now or before; `TrainingError` without the ablation's bases."""
    seed, front, consistency = COMPANIONS[name]
    recipe, base = load_run(runs / BASE.format(seed), data)
    network = base if front is None else nn.Sequential(front, base)
    path = work / f"{name.replace(' ', '-')}-{epochs}.safetensors"
    if path.is_file():
        network.load_state_dict(load_file(path))
    else:
        train_on(
            network,
            data,
            recipe,
            epochs=epochs,
            consistency=consistency,
            seed=seed,
            progress=lambda done, total: progress(f"training: {name}", done, total),
        )
        write_tensors(path, {key: value.contiguous() for key, value in network.state_dict().items()})
    return network.eval().requires_grad_(requires_grad=False)


def drawn_views(network: nn.Module, seed: int) -> Opinion:
    """The mean margin over views drawn for each request: shifted by up to `SHIFT` pixels, under noise of `NOISE`."""
    predict, generator = searched(network), seeded(seed, 22)

    def opinion(images: Tensor, label: Tensor) -> Tensor:
        margins = []
        for _ in range(VIEWS):
            top, left = (int(torch.randint(0, 2 * SHIFT + 1, (), generator=generator)) for _ in range(2))
            padded = F.pad(images, (SHIFT,) * 4, mode="replicate")
            view = padded[:, :, top : top + images.shape[2], left : left + images.shape[3]]
            view = (view + NOISE * torch.randn(view.shape, generator=generator)).clamp(0, 1)
            margins.append(one_hot_margin(predict(view), label))
        return torch.stack(margins).mean(0)[:, None]

    return opinion


def both(first: nn.Module, second: nn.Module) -> Opinion:
    """Strict margins of two networks."""
    one, other = strict_opinion(first), strict_opinion(second)
    return lambda images, label: torch.cat([one(images, label), other(images, label)], 1)


def systems(networks: dict[str, nn.Module], seed: int) -> dict[str, tuple[str, Opinion, int, int]]:
    """{system: companion in the defence, opinion, draws, samples}."""
    plain = networks["plain"]
    found = {
        "margin": ("plain", strict_opinion(plain, steps=0), 1, 1),
        "strict": ("plain", strict_opinion(plain), 1, 1),
        "random views": ("plain", drawn_views(plain, seed), DRAWS, SAMPLES),
        "strict, consistency": ("consistency", strict_opinion(networks["consistency"]), 1, 1),
    }
    pairs = ("other seed", "grey", "half", "edges")
    return found | {f"strict, and {name}": ("plain", both(plain, networks[name]), 1, 1) for name in pairs}


def accuracy_of(network: nn.Module, bench: Bench, count: int) -> dict[str, float]:
    """Clean accuracy on the whole split, and accuracy under PGD-50 at 8/255 on the first `count` images."""
    split, some = bench.data.test, bench.first(count)
    x, y = bench.pixels(some.x), bench.targets(some.y)
    with frozen(network):
        right = network(x).argmax(1) == y
        predict, generator = searched(network), seeded(0, 8)
        _, fooled = pgd_until_fooled(predict, x[right], y[right], eps=8 / 255, steps=50, generator=generator)
        clean = float((labels(network, bench.pixels(split.x)) == split.y).mean())
    return {"clean": clean, "pgd_8": float((~fooled).sum() / len(y))}


def main(
    bundle: Annotated[Path, typer.Argument(help="Bundle whose answering network is attacked.")] = Path("models/gtsrb"),
    n: Annotated[int, typer.Option(min=1, help="Number of images of the select split.")] = 96,
    epochs: Annotated[int, typer.Option(min=1, help="Further training epochs of every companion.")] = 8,
    only: Annotated[list[str] | None, typer.Option(help="Systems to attack; default: all.")] = None,
    seed: int = 0,
    runs: Annotated[Path, typer.Option(help="Folder of the ablation's runs.")] = Path("runs"),
    work: Annotated[Path, typer.Option(help="Folder of finished measurements, from which a run resumes.")] = Path(
        "runs/evade"
    ),
    json_path: JsonPath = None,
    threads: Threads = None,
) -> None:
    """Train the companions, attack each system, and print who wins how often."""
    use_threads(threads)
    opened = load_bundle(bundle)
    data, settings = made_with(opened)
    order = np.random.default_rng(seed).permutation(len(data.select))
    chooses = dataclasses.replace(data, test=data.select.take(order))
    work.mkdir(parents=True, exist_ok=True)
    rows, about = [], {}
    with progress_bars() as bars:
        networks = {name: companion(name, data, runs, work, epochs=epochs, progress=bars.step) for name in COMPANIONS}
        for name, (role, opinion, draws, samples) in systems(networks, seed).items():
            if only and name not in only:
                continue
            defence = load_defence(opened)
            standing = networks[role]
            assert isinstance(standing, Network)  # nothing is put before those that stand in
            defence.companion = standing
            key = digest([name, epochs, seed])
            bench = Bench(opened, chooses, settings, Store(work / f"attacks-{key}"), bars.step)
            bench.__dict__["defence"] = defence
            about.update({each: accuracy_of(networks[each], bench, n) for each in networks if each not in about})
            rows.append(Variant(bench, name, opinion, draws, samples).measure(eps=8, count=n))
    Console().print(table_of(rows))
    for name, accuracy in about.items():
        Console().print(
            f"{name}: clean {100 * accuracy['clean']:.1f} %, PGD-50 at 8/255 {100 * accuracy['pgd_8']:.1f} %"
        )
    if json_path is not None:
        record(
            json_path,
            "second opinions attacked by somebody who knows them, wrong and not flagged, select split",
            {
                "bundle": f"{opened.name} {opened.version}",
                "seed": seed,
                "epochs": epochs,
                "targets": settings.adaptive_targets,
                "attack_steps": settings.adaptive_steps,
                "restarts": settings.adaptive_restarts,
                "companions": about,
                "rows": rows,
            },
        )


if __name__ == "__main__":
    typer.run(command(main))
