"""The training loop: stages of standard or adversarial training with the penalties that a recipe names.

Runs are repeatable: every epoch draws from a generator seeded by (seed, epoch), so a run that was killed and resumed
from its last checkpoint ends with the same weights as one that was not.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.attacks.pgd import training_pgd
from training.augment import augment, mask_windows
from training.checkpoint import Progress, load_checkpoint, load_weights, save_checkpoint, save_weights
from training.data import Dataset, Split
from training.errors import TrainingError
from training.models import build_model
from training.models.resnet import SmallResNet
from training.modes import freeze_batchnorm, frozen, seeded
from training.penalties import penalties, rank_neurons, teacher_maps
from training.pixels import to_tensor
from training.recipe import Recipe, Stage

Report = Callable[[dict[str, Any]], None]


class Trainer:
    """One run of `recipe` on `data` in the run folder `out`."""

    def __init__(
        self,
        recipe: Recipe,
        data: Dataset,
        out: Path,
        *,
        teacher: nn.Module | None = None,
        init: nn.Module | None = None,
    ) -> None:
        self.recipe, self.data, self.out, self.teacher = recipe, data, out, teacher
        torch.manual_seed(recipe.seed)
        # Weights that decay towards zero pass through subnormal numbers, which a CPU computes a hundred times slower.
        torch.set_flush_denormal(True)
        pixels = data.train.x.reshape(-1, data.train.x.shape[-1]) / 255.0
        self.model = build_model(
            recipe.model, classes=len(data.classes), mean=pixels.mean(0).tolist(), std=pixels.std(0).tolist()
        ).to(memory_format=torch.channels_last)
        if init is not None:
            self.model.load_state_dict(init.state_dict())
        self.average = copy.deepcopy(self.model)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.1, momentum=recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True
        )
        self.x, self.y = data.train.x, torch.from_numpy(data.train.y)
        self.maps: Tensor | None = None
        self.sensitive: dict[str, Tensor] = {}

    def run(self, report: Report = lambda _event: None) -> SmallResNet:
        """Train to the end (from the last checkpoint, if the run folder has one) and return the averaged network.

        `report` gets a dict for every batch and epoch. Raises `TrainingError` when the loss is not finite.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        self._claim_folder()
        done = load_checkpoint(self.out, model=self.model, average=self.average, optimizer=self.optimizer)
        history = list(done.history) if done else []
        first = 0
        for stage in self.recipe.stages:
            for epoch in range(stage.epochs):
                number = first + epoch
                if done and number < done.epoch:
                    continue
                metrics = self._epoch(stage, epoch, number, report)
                metrics["select_clean"] = accuracy(self.average, self.data.select)
                history.append(metrics)
                report({"epoch": number + 1, "epochs": self.recipe.epochs, **metrics})
                save_checkpoint(
                    self.out, model=self.model, average=self.average, optimizer=self.optimizer,
                    progress=Progress(number + 1, history),
                )  # fmt: skip
            first += stage.epochs
        save_weights(self.out / "weights.safetensors", self.average)
        return self.average.eval()

    def _claim_folder(self) -> None:
        """A run folder belongs to one recipe and one data set: refuse to resume another one's checkpoint."""
        contents = {
            "recipe": self.recipe.model_dump(mode="json"),
            "data": json.loads(json.dumps(self.data.describe())),
        }
        for name, content in contents.items():
            path = self.out / f"{name}.json"
            if path.is_file() and _known(name, path) != content:
                raise TrainingError(f"{self.out} holds a run of another {name}; use another --runs or delete it")
            path.write_text(json.dumps(content, indent=1), "utf-8")

    def _teacher_maps(self, grid: int) -> Tensor:
        if self.teacher is None:
            raise TrainingError("the selective term needs a teacher: name its run folder in the recipe (`teacher:`)")
        return teacher_maps(self.teacher, self.x, grid=grid, precision=self.recipe.precision, cache=self.out)

    def _lr(self, stage: Stage, epoch: int, batch: int, batches: int) -> float:
        """One cycle by stage: a linear warm-up over the first tenth, then a cosine to zero."""
        progress = (epoch * batches + batch) / (stage.epochs * batches)
        return stage.lr * (progress / 0.1 if progress < 0.1 else 0.5 * (1 + math.cos(math.pi * (progress - 0.1) / 0.9)))

    def _epoch(self, stage: Stage, epoch: int, number: int, report: Report) -> dict[str, Any]:
        generator = seeded(self.recipe.seed, number)
        self.maps = self._teacher_maps(stage.terms.selective.grid) if stage.terms.selective else None
        if stage.terms.sns:
            assert stage.adversary is not None
            self.sensitive = rank_neurons(
                stage.terms.sns, self.model, self._predict, self.data.train,
                eps=stage.adversary.eps / 255, seed=self.recipe.seed, epoch=number,
            )  # fmt: skip
        order = torch.randperm(len(self.y), generator=generator)
        batches = max(1, len(order) // self.recipe.batch)
        sums: dict[str, float] = {}
        for batch in range(batches):
            index = order[batch * self.recipe.batch : (batch + 1) * self.recipe.batch]
            for group in self.optimizer.param_groups:
                group["lr"] = self._lr(stage, epoch, batch, batches)
            step = epoch * batches + batch
            for name, value in self._step(stage, index, generator, step=step, progress=step / batches).items():
                sums[name] = sums.get(name, 0.0) + value / batches
            report(
                {
                    "batch": batch + 1,
                    "batches": batches,
                    "stage": stage.name,
                    "loss": sums["loss"] * batches / (batch + 1),
                }
            )
        return {"stage": stage.name, **sums}

    def _step(
        self, stage: Stage, index: Tensor, generator: torch.Generator, *, step: int, progress: float
    ) -> dict[str, float]:
        x, maps = to_tensor(self.x[index.numpy()]), None if self.maps is None else self.maps[index]
        y = self.y[index]
        if maps is not None:
            maps = F.interpolate(maps[:, None], size=x.shape[2:], mode="bilinear", align_corners=False)
        x, maps = augment(x, self.recipe.augmentation, generator, maps)
        if windows := stage.mask_augmentation:
            x = mask_windows(x, generator, share=windows.share, count=windows.count, fraction=windows.fraction)
        self.model.train()
        if stage.batchnorm == "frozen":
            freeze_batchnorm(self.model)
        losses = self._task(stage, x.contiguous(memory_format=torch.channels_last), y, generator)
        losses |= penalties(
            stage.terms, self.model, x, y, losses.pop("adversarial", x), None if maps is None else maps[:, 0],
            self.sensitive, generator, progress=progress, step=step,
        )  # fmt: skip
        loss = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(loss):
            raise TrainingError(f"loss is {loss.item()} in stage {stage.name}; lower `lr` or the terms' weights")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.optimizer.step()
        self._update_average()
        return {"loss": float(loss.detach())} | {name: float(value.detach()) for name, value in losses.items()}

    def _predict(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            return self.model(x).float()

    def _task(self, stage: Stage, x: Tensor, y: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        smoothing = self.recipe.label_smoothing
        if not stage.adversary:
            return {"ce": F.cross_entropy(self._predict(x), y, label_smoothing=smoothing)}
        adversary = stage.adversary
        with frozen(self.model):
            adv = training_pgd(self._predict, x, y, eps=adversary.eps / 255, steps=adversary.steps, generator=generator)
        adv = adv.contiguous(memory_format=torch.channels_last)
        losses = {"adversarial": adv}
        if adversary.clean_weight:
            part = max(1, round(adversary.clean_fraction * len(x)))
            logits = self._predict(torch.cat([adv, x[:part]]))
            losses["ce_adv"] = F.cross_entropy(logits[: len(x)], y, label_smoothing=smoothing)
            clean = F.cross_entropy(logits[len(x) :], y[:part], label_smoothing=smoothing)
            losses["ce_clean"] = adversary.clean_weight * clean
        else:
            losses["ce_adv"] = F.cross_entropy(self._predict(adv), y, label_smoothing=smoothing)
        return losses

    def _update_average(self) -> None:
        """Exponential moving average of weights and running statistics; without `ema` the network itself."""
        with torch.no_grad():
            for mine, theirs in zip(self.average.state_dict().values(), self.model.state_dict().values(), strict=True):
                if self.recipe.ema and mine.is_floating_point():
                    mine.lerp_(theirs, 1 - self.recipe.ema)
                else:
                    mine.copy_(theirs)


def _known(name: str, path: Path) -> object:
    """What a run folder holds; a recipe with the defaults of keys that did not exist when it was written."""
    try:
        content = json.loads(path.read_text("utf-8"))
        return Recipe.model_validate(content).model_dump(mode="json") if name == "recipe" else content
    except ValueError:
        return None


@torch.no_grad()
def accuracy(model: nn.Module, split: Split, *, batch: int = 512) -> float:
    """Share of images whose arg max is the label, in evaluation mode."""
    with frozen(model):
        hits = sum(
            int((model(to_tensor(split.x[i : i + batch])).argmax(1) == torch.from_numpy(split.y[i : i + batch])).sum())
            for i in range(0, len(split), batch)
        )
    return hits / len(split)


def load_run(folder: Path, data: Dataset) -> tuple[Recipe, SmallResNet]:
    """Recipe and finished network of a run folder; `TrainingError` if it is not finished, or was trained on other data.

    Other data or other splits would let a network, or the one it starts from, have seen what it is calibrated on.
    """
    path = folder / "recipe.json"
    if not (folder / "weights.safetensors").is_file() or not path.is_file():
        raise TrainingError(f"{folder} is not a finished run; train it first (`palisade train`)")
    trained_on = folder / "data.json"
    if trained_on.is_file() and trained_on.read_text("utf-8") != json.dumps(data.describe(), indent=1):
        raise TrainingError(f"{folder} was trained on other data or splits than {data.name}; train it again")
    recipe = Recipe.model_validate_json(path.read_text("utf-8"))
    channels = data.train.x.shape[-1]
    model = build_model(recipe.model, classes=len(data.classes), mean=[0.0] * channels, std=[1.0] * channels)
    load_weights(folder / "weights.safetensors", model)
    return recipe, model.eval()
