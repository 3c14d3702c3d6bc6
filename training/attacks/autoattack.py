"""AutoAttack (Croce and Hein 2020, arXiv 2003.01690), by its authors' package `pyautoattack`, made resumable.

The search runs in whatever precision `predict` has while gradients are wanted, every success is judged again without
them: an image that only the search holds for fooled is attacked once more with exact logits, so that rounding neither
breaks an image nor spares it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gateway.atomic import write_text
from training.attacks.pgd import Norm, project
from training.errors import TrainingError
from training.util.checkpoint import write_tensors
from training.util.signatures import Predict, Progress, silent

Version = Literal["standard", "plus", "rand"]

_SETTINGS = "settings.json"
_LOOK = 8  # images whose logits identify a network


@dataclass(frozen=True)
class AutoAttackResult:
    """Adversarial images (N, C, H, W), which images withstood all attacks (N,) bool, and what fooled each other one.

    `fell_to` (N,) indexes `stages`, -1 where the image stands; stage 0 is "clean", a wrong answer without an attack.
    """

    adversarial: Tensor
    robust: Tensor
    fell_to: Tensor
    stages: tuple[str, ...]

    def accuracy(self) -> dict[str, float]:
        """Robust accuracy after each stage, in order."""
        fallen = torch.stack([(self.fell_to == i).float().mean() for i in range(len(self.stages))]).cumsum(0)
        return {name: float(1 - share) for name, share in zip(self.stages, fallen, strict=True)}


def autoattack(
    predict: Predict,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: Norm = "linf",
    version: Version = "standard",
    attacks: Sequence[str] | None = None,
    seed: int = 0,
    batch: int = 128,
    folder: Path | None = None,
    progress: Progress = silent,
) -> AutoAttackResult:
    """Attack images (N, C, H, W) of labels `y` (N,) within `eps`, `batch` of them at a time.

    `standard` is APGD-CE, targeted APGD-DLR and targeted FAB (9 targets, or as many as there are), Square with 5,000
    queries; only images still standing pass to the next one. Three classes have no targeted DLR loss and two have
    none at all: APGD-T is left out there (and APGD-DLR with two). `predict` may compute in lower precision while
    gradients are enabled; it is judged without them. `attacks` names the attacks instead of a version ("apgd-ce",
    "apgd-dlr", "apgd-t", "fab", "fab-t", "square"): what is left is no AutoAttack figure.

    With a `folder` every finished batch is kept there, and a later call with the same settings, images and network
    resumes there; `TrainingError` if the folder belongs to another run. `progress` receives numbers of images.
    """
    with torch.no_grad():
        look = predict(x[:_LOOK]).float()
    if folder is not None:
        settings = {
            "eps": eps,
            "norm": norm,
            "version": version,
            "attacks": None if attacks is None else list(attacks),
            "seed": seed,
            "batch": batch,
            "images": len(x),
            "data": hashlib.sha256(x.cpu().numpy().tobytes() + y.cpu().numpy().tobytes()).hexdigest(),
        }
        _claim(folder, settings, look.cpu().numpy())
    suite = _suite(predict, attacks, eps, norm, version, seed, classes=look.shape[1], device=x.device)
    parts: list[dict[str, Tensor]] = []
    for start in range(0, len(x), batch):
        a, b = x[start : start + batch], y[start : start + batch]
        path = None if folder is None else folder / f"images-{start:06d}.safetensors"
        part = None if path is None else _read(path, len(a))
        if part is None:
            part = _run(predict, a, b, suite, eps, norm, _share(progress, start, len(a), len(x), len(suite)))
            if path is not None:
                write_tensors(path, part)
        parts.append(part)
        progress(start + len(a), len(x))
    adversarial, fell_to = (torch.cat([part[key].to(x.device) for part in parts]) for key in ("adversarial", "fell_to"))
    return AutoAttackResult(adversarial, fell_to < 0, fell_to, ("clean", *suite))


class Attack(Protocol):
    """Adversarial images, or the images themselves; `exact`: search with the logits that are judged."""

    def __call__(self, x: Tensor, y: Tensor, *, exact: bool) -> Tensor: ...


class _Searched:
    """`predict` as an attack that knows no gradients mode is to see it: always the logits of the search.

    With `exact`, the values are those that are judged and only the gradient is the search's.
    """

    def __init__(self, predict: Predict) -> None:
        self.predict, self.exact = predict, False

    def __call__(self, x: Tensor) -> Tensor:
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            logits = self.predict(x).float()
        if self.exact:
            with torch.no_grad():
                judged = self.predict(x).float()
            logits = judged + (logits - logits.detach())
        return logits if wanted else logits.detach()


def _suite(
    predict: Predict,
    attacks: Sequence[str] | None,
    eps: float,
    norm: Norm,
    version: Version,
    seed: int,
    *,
    classes: int,
    device: torch.device,
) -> dict[str, Attack]:
    from pyautoattack import AutoAttack

    searched = _Searched(predict)
    package = AutoAttack(
        searched, norm={"linf": "Linf", "l2": "L2"}[norm], eps=eps, seed=seed, version=version, device=device
    )
    package.apgd_targeted.n_target_classes = package.fab.n_target_classes = min(9, classes - 1)
    tools = {
        "apgd-ce": package.apgd,
        "apgd-dlr": package.apgd,
        "apgd-t": package.apgd_targeted,
        "fab": package.fab,
        "fab-t": package.fab,
        "square": package.square,
    }
    impossible = {2: ("apgd-t", "apgd-dlr"), 3: ("apgd-t",)}.get(classes, ())

    def attack(name: str) -> Attack:
        tool = tools[name]

        def run(x: Tensor, y: Tensor, *, exact: bool) -> Tensor:
            searched.exact = exact
            if tool is package.apgd:
                tool.loss = name.removeprefix("apgd-")
            if tool is package.fab:
                tool.targeted = name == "fab-t"
            tool.seed = seed
            with _undisturbed(x.device):
                return tool.perturb(x.clone(), y.clone()).detach()

        return run

    names = package.attacks_to_run if attacks is None else attacks
    return {name: attack(name) for name in names if name not in impossible}


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """The package seeds torch's global generators and warns on a logger; neither has an effect outside."""
    logger = logging.getLogger("auto-attack")
    before, logger.disabled = logger.disabled, True
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
            yield
    finally:
        logger.disabled = before


def _run(
    predict: Predict, x: Tensor, y: Tensor, suite: dict[str, Attack], eps: float, norm: Norm, progress: Progress
) -> dict[str, Tensor]:
    adversarial = x.clone()
    fell_to = torch.where(_wrong(predict, x, y), 0, -1)
    for stage, attack in enumerate(suite.values(), 1):
        left = torch.flatten(torch.nonzero(fell_to < 0))
        for exact in (False, True):
            if len(left) == 0:
                break
            adv = project(attack(x[left], y[left], exact=exact), x[left], eps, norm)
            fooled = _wrong(predict, adv, y[left])
            adversarial[left[fooled]], fell_to[left[fooled]] = adv[fooled], stage
            with torch.enable_grad():
                claimed = predict(adv).detach().argmax(1) != y[left]
            left = left[claimed & ~fooled]
        progress(stage, len(suite))
    return {"adversarial": adversarial, "fell_to": fell_to.to(torch.int8)}


@torch.no_grad()
def _wrong(predict: Predict, x: Tensor, y: Tensor) -> Tensor:
    return predict(x).argmax(1) != y


def _share(progress: Progress, start: int, size: int, total: int, attacks: int) -> Progress:
    """Progress in images of a batch, from progress in attacks."""
    return lambda done, _of: progress(start + size * done // attacks, total)


def _claim(folder: Path, settings: dict[str, Any], look: np.ndarray) -> None:
    """Begin a run in `folder`, or make sure that the one there is this one."""
    path = folder / _SETTINGS
    try:
        if path.exists():
            there = json.loads(path.read_text("utf-8"))
            logits = np.asarray(there.pop("logits"), np.float32)
            other = sorted(key for key in settings if there.get(key) != settings[key])
            if not other and (logits.shape != look.shape or not np.allclose(logits, look, rtol=1e-3, atol=1e-3)):
                other = ["network"]
            if other:
                raise TrainingError(
                    f"{folder} holds an AutoAttack run of another {', '.join(other)}: take another folder or remove it"
                )
            return
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(settings | {"logits": look.tolist()}, indent=1) + "\n")
    except (OSError, ValueError, KeyError) as error:
        raise TrainingError(f"{path}: {error}") from None


def _read(path: Path, size: int) -> dict[str, Tensor] | None:
    """A finished batch, None if there is none."""
    if not path.exists():
        return None
    try:
        part = load_file(path)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{path}: {str(error).splitlines()[0]}; remove it to run this batch again") from None
    if part.keys() != {"adversarial", "fell_to"} or any(len(tensor) != size for tensor in part.values()):
        raise TrainingError(f"{path}: not a batch of this run; remove it to run it again")
    return part
