"""The training loop: stages of standard training, adversarial training or TRADES with the penalties of a recipe.

Runs are repeatable: every epoch draws from a generator seeded by (seed, epoch), so a run that was killed and resumed
from its last checkpoint ends with the same weights as one that was not (on a GPU: up to the order in which its kernels
add). Several processes (`training.util.processes`) make the steps that one would.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Generator, Tensor, nn

from gateway.core.masks import default_patch
from gateway.core.small_field import windows_for
from training.data.augment import augment, mask_windows
from training.data.averaged import averaged
from training.data.dataset import Dataset
from training.errors import RecipeError, TrainingError
from training.imaging.pixels import to_tensor
from training.loop.awp import perturbed_weights
from training.loop.early_stopping import best_epoch, exhausted
from training.loop.logs import log_epoch, open_tensorboard, write_metrics
from training.loop.obstacles import with_obstacles
from training.loop.penalties import penalties, rank_neurons
from training.loop.runs import LOCK, WEIGHTS, claim_folder, note_cost, note_outcome, note_start, settled
from training.loop.selection import accuracy, robust_accuracy
from training.loop.task_losses import adversarial_rows, attacked, task_losses, window_losses
from training.loop.teacher import Teacher, mixed
from training.models import build_model
from training.models.memory_format import arranged
from training.models.network import Network
from training.models.small_field import SmallField, as_tensor
from training.recipes.training import Recipe, Stage, WorstWindows
from training.util.checkpoint import Progress, load_checkpoint, save_checkpoint, save_weights
from training.util.distributed import average_, share_batchnorm
from training.util.locks import locked
from training.util.module_modes import denormals_flushed, freeze_batchnorm, frozen, seeded
from training.util.processes import chosen_device, open_fabric
from training.util.random_draws import shared

logger = logging.getLogger(__name__)
Report = Callable[[dict[str, Any]], None]
CLIP = 5.0  # norm of the gradient
# fp16 has no small numbers; the direction of AWP does not depend on the scale of its loss.
FP16_SCALE = 1024.0


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
        fabric: Fabric | None = None,
        tensorboard: bool = False,
    ) -> None:
        if recipe.precision == "auto":
            recipe = settled(recipe, out, device=fabric.device.type if fabric else chosen_device("auto"))
        if recipe.model.side is not None:
            data = averaged(data, recipe.model.side)
        self.recipe, self.data, self.out = recipe, data, out
        assert recipe.precision != "auto"
        self.fabric = fabric or open_fabric(precision=recipe.precision)
        self.tensorboard = tensorboard
        if recipe.batch % self.fabric.world_size:
            raise RecipeError(
                f"batch: {recipe.batch} images cannot be divided among {self.fabric.world_size} processes"
            )
        torch.manual_seed(recipe.seed)
        pixels = data.train.x.reshape(-1, data.train.x.shape[-1]) / 255.0
        model = build_model(
            recipe.model,
            classes=len(data.classes),
            mean=pixels.mean(0).tolist(),
            std=pixels.std(0).tolist(),
            side=data.train.x.shape[1],
        )
        self.model, self.layout = arranged(model.to(self.fabric.device), self.fabric.device)
        self.teacher = None if teacher is None else Teacher(teacher, self.fabric, recipe.precision)
        if init is not None:
            _start_from(self.model, init, str(recipe.init))
        self.average = copy.deepcopy(self.model)
        self.best = copy.deepcopy(self.model) if recipe.early_stopping else None
        share_batchnorm(self.model)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.1, momentum=recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True
        )
        self.scaled_optimizer = self.fabric.setup_optimizers(self.optimizer)
        self.x, self.y = data.train.x, torch.from_numpy(data.train.y)
        self.maps: Tensor | None = None
        self.soft: Tensor | None = None
        self.sensitive: dict[str, Tensor] = {}

    def run(self, report: Report = lambda _event: None) -> Network:
        """Train to the end (from the last checkpoint, if the run folder has one) and return the averaged network.

        With early stopping, the averaged network of the best epoch. It is returned on the CPU. `report` gets a dict for
        every batch, epoch and other step. Raises `TrainingError` when the loss is not finite, or the disk or the memory
        full.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        with locked(self.out / LOCK, self.out) if self.fabric.is_global_zero else nullcontext(), denormals_flushed():
            return self._run(report)

    def _run(self, report: Report) -> Network:
        first = self.fabric.is_global_zero
        claim_folder(self.out, self.recipe, self.data, write=first)
        done = load_checkpoint(self.out, networks=self._networks(), optimizer=self.optimizer) or Progress(0, [])
        if done.scaler:
            self.fabric.strategy.precision.load_state_dict(done.scaler)
        self.sensitive = {layer: channels.to(self.fabric.device) for layer, channels in done.sensitive.items()}
        history, began = list(done.history), time.process_time()
        writer = open_tensorboard(self.out / "tensorboard", done=done.epoch) if first and self.tensorboard else None
        if first and done.epoch < self.recipe.epochs:
            precision = self.recipe.precision
            note_start(self.out, self.fabric, precision=precision, layout=self.layout.name, epoch=done.epoch)
            logger.info("%s: memory format %s (%s)", self.recipe.name, self.layout.name, self.layout.why)
        for number, stage, epoch in self._epochs():
            if number < done.epoch or self._exhausted(history):
                continue
            try:
                metrics = self._epoch(stage, epoch, number, report)
            except torch.OutOfMemoryError as error:
                raise TrainingError(f"out of memory in stage {stage.name}; lower `batch` ({error})") from None
            history.append(metrics | self._evaluate(stage, number))
            self._keep_best(history)
            if first:
                scaler = self.fabric.strategy.precision.state_dict()
                progress = Progress(number + 1, history, scaler, self.sensitive)
                save_checkpoint(self.out, networks=self._networks(), optimizer=self.optimizer, progress=progress)
                note_cost(self.out, time.process_time() - began)
                write_metrics(self.out / "metrics.csv", history)
                if writer:
                    log_epoch(writer, number + 1, history[-1])
            report({"epoch": number + 1, "epochs": self.recipe.epochs, **history[-1]})
        result = self.best or self.average
        if first:
            watched = _watched(history)
            kept = len(history) - len(watched) + best_epoch(watched) + 1 if watched else len(history)
            note_outcome(self.out, history, epochs=self.recipe.epochs, kept=kept)
            save_weights(self.out / WEIGHTS, result)
        if writer:
            writer.close()
        self.fabric.barrier()
        return result.cpu().eval()

    def _networks(self) -> dict[str, nn.Module]:
        networks: dict[str, nn.Module] = {"model": self.model, "average": self.average}
        return networks | ({"best": self.best} if self.best else {})

    def _epochs(self) -> Iterator[tuple[int, Stage, int]]:
        """(epoch of the run, stage, epoch of the stage), from 0."""
        number = 0
        for stage in self.recipe.stages:
            for epoch in range(stage.epochs):
                yield number, stage, epoch
                number += 1

    def _evaluate(self, stage: Stage, number: int) -> dict[str, float]:
        """Accuracy of the averaged network on the select split, and what early stopping watches in the last stage."""
        metrics = {"select_clean": accuracy(self.average, self.data.select)}
        stopping = self.recipe.early_stopping
        if stopping and stage is self.recipe.stages[-1]:
            some = self.data.select.take(np.arange(len(self.data.select))[: stopping.images])
            if stopping.metric == "clean":
                metrics["watched"] = accuracy(self.average, some)
            else:
                generator = seeded(self.recipe.seed, number, 2)
                metrics["watched"] = robust_accuracy(
                    self.average, some, self.fabric, eps=stopping.eps / 255, steps=stopping.steps, generator=generator
                )
        values = torch.tensor(list(metrics.values()), dtype=torch.float64, device=self.fabric.device)
        average_([values])  # equal up to rounding, and then equal: processes must stop together
        return dict(zip(metrics, values.tolist(), strict=True))

    def _keep_best(self, history: list[dict[str, Any]]) -> None:
        watched = _watched(history)
        if self.best and (not watched or best_epoch(watched) == len(watched) - 1):
            self.best.load_state_dict(self.average.state_dict())

    def _exhausted(self, history: list[dict[str, Any]]) -> bool:
        stopping = self.recipe.early_stopping
        return stopping is not None and exhausted(_watched(history), patience=stopping.patience)

    def _lr(self, stage: Stage, progress: float) -> float:
        """One cycle by stage, `progress` in [0, 1): a linear warm-up over the first tenth, then a cosine to zero."""
        return stage.lr * (progress / 0.1 if progress < 0.1 else 0.5 * (1 + math.cos(math.pi * (progress - 0.1) / 0.9)))

    def _epoch(self, stage: Stage, epoch: int, number: int, report: Report) -> dict[str, Any]:
        rank, world = self.fabric.global_rank, self.fabric.world_size
        generator = shared(seeded(self.recipe.seed, number), rank=rank, world=world)
        torch.manual_seed(generator.initial_seed() + rank)  # of networks that draw themselves (dropout)
        if stage.terms.grid and (self.maps is None or self.maps.shape[1] != stage.terms.grid):
            if self.teacher is None:
                raise TrainingError(
                    "terms with a `grid` need a teacher: name its run folder in the recipe (`teacher:`)"
                )
            cache = self.out.parent / ".cache"  # other runs of the same teacher and data read it too
            self.maps = self.teacher.maps(self.x, grid=stage.terms.grid, cache=cache, report=report)
        if (soft := stage.soft_labels) and (self.soft is None or not epoch):
            assert self.teacher is not None  # the recipe has one, or is refused
            self.soft = self.teacher.soft_labels(
                self.x, temperature=soft.temperature, flip=self.recipe.augmentation.flip
            )
        if (ranked := stage.terms.neurons) and epoch % ranked.rerank_epochs == 0:
            assert stage.radius is not None
            self.sensitive = rank_neurons(
                ranked,
                self.model,
                self._predict,
                self.data.train,
                eps=stage.radius,
                seed=self.recipe.seed,
                epoch=number,
            )
        order = torch.randperm(len(self.y), generator=generator)
        batches = max(1, len(order) // self.recipe.batch)
        sums: dict[str, float] = {}
        for batch in range(batches):
            index = order[batch * self.recipe.batch : (batch + 1) * self.recipe.batch]
            index = index[: len(index) // world * world][rank::world]
            step = epoch * batches + batch
            for group in self.optimizer.param_groups:
                group["lr"] = self._lr(stage, step / (stage.epochs * batches))
            for name, value in self._step(stage, index, generator, step=step, progress=step / batches).items():
                sums[name] = sums.get(name, 0.0) + value / batches
            report(
                {
                    "batch": batch + 1,
                    "batches": batches,
                    "of_epoch": number + 1,
                    "of_epochs": self.recipe.epochs,
                    "stage": stage.name,
                    "loss": sums["loss"] * batches / (batch + 1),
                }
            )
        return {"stage": stage.name, **sums}

    def _step(
        self, stage: Stage, index: Tensor, generator: Generator, *, step: int, progress: float
    ) -> dict[str, float]:
        """One step on the images `index` of this process; the losses of the whole batch."""
        x, y, targets, maps = self._batch(stage, index, generator)
        nchw, x = x, x.contiguous(memory_format=self.layout.format)
        self.model.train()
        if stage.batchnorm == "frozen":
            freeze_batchnorm(self.model)
        with frozen(self.model) if stage.radius or stage.searched else nullcontext():
            adversarial = attacked(stage, self._predict, x, y, generator).contiguous(memory_format=self.layout.format)

        taps: dict[str, Tensor] = {}

        def task() -> dict[str, Tensor]:
            if stage.worst_windows:
                return self._window_losses(stage.worst_windows, x, y, targets)
            return task_losses(
                stage,
                self._tapped(taps) if stage.terms.neurons else self._predict,
                x,
                adversarial,
                targets,
                smoothing=self.recipe.label_smoothing,
            )

        with self._perturbation(stage, task, progress):
            losses = task() | penalties(
                stage.terms,
                self.model,
                nchw,
                y,
                adversarial,
                maps,
                self.sensitive,
                generator,
                adversarial_taps={name: tap[adversarial_rows(stage, len(x))] for name, tap in taps.items()},
                progress=progress,
                step=step,
            )
            loss = torch.stack(list(losses.values())).sum()
            self.optimizer.zero_grad(set_to_none=True)
            self.fabric.backward(loss)
        average_([p.grad for p in self.model.parameters() if p.grad is not None])
        norm = self.fabric.clip_gradients(self.model, self.optimizer, max_norm=CLIP, error_if_nonfinite=False)
        assert norm is not None
        values = torch.stack([loss, *losses.values()]).detach()
        average_([values])
        *measured, slope = torch.cat([values, norm[None]]).tolist()
        metrics = dict(zip(["loss", *losses], measured, strict=True))
        # A scaled loss (fp16) may overflow in the gradient: the step is left out and the scale lowered.
        self._check(stage, step, metrics if self.recipe.precision == "fp16" else metrics | {"gradient": slope})
        self.scaled_optimizer.step()
        self._update_average()
        return metrics

    def _batch(self, stage: Stage, index: Tensor, generator: Generator) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Augmented images (N, C, H, W), labels (N,), targets (labels, or soft ones (N, K)), saliency (N, H, W)."""
        device = self.fabric.device
        x, y, maps = to_tensor(self.x[index.numpy()], device), self.y[index].to(device), None
        targets = y
        if stage.soft_labels:
            assert self.soft is not None
            targets = mixed(stage.soft_labels.share, self.soft[index].to(device), y)
        if stage.terms.grid:
            assert self.maps is not None
            maps = self.maps[index][:, None].to(device)
            maps = F.interpolate(maps, size=x.shape[2:], mode="bilinear", align_corners=False)
        x, maps = augment(x, self.recipe.augmentation, generator, maps)
        if windows := stage.mask_augmentation:
            x = mask_windows(x, generator, share=windows.share, count=windows.count, fraction=windows.fraction)
        if stage.obstacles:
            x = with_obstacles(x, generator, fraction=stage.obstacles.fraction)
        return x, y, targets, None if maps is None else maps[:, 0]

    def _predict(self, x: Tensor) -> Tensor:
        with self.fabric.autocast():
            return self.model(x).float()

    def _window_losses(self, settings: WorstWindows, x: Tensor, y: Tensor, targets: Tensor) -> dict[str, Tensor]:
        assert isinstance(self.model, SmallField)  # the recipe has one, or is refused
        height, width = x.shape[2:]
        windows = windows_for(self.model.spec, height, width, default_patch(height, width, settings.patch_share))
        with self.fabric.autocast():
            cells = self.model.cells(x).float()
        return window_losses(
            settings, cells, as_tensor(windows, cells), y, targets, smoothing=self.recipe.label_smoothing
        )

    def _tapped(self, taps: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
        """`_predict` that leaves the activations of its last call in `taps`."""

        def predict(x: Tensor) -> Tensor:
            with self.fabric.autocast():
                logits, found = self.model.taps(x)
            taps.update(found)
            return logits.float()

        return predict

    def _perturbation(
        self, stage: Stage, task: Callable[[], dict[str, Tensor]], progress: float
    ) -> AbstractContextManager[None]:
        if not stage.awp or progress < stage.awp.start_epoch:
            return nullcontext()
        scale = FP16_SCALE if self.recipe.precision == "fp16" else 1.0
        return perturbed_weights(
            self.model, lambda: scale * torch.stack(list(task().values())).sum(), gamma=stage.awp.gamma
        )

    def _check(self, stage: Stage, step: int, metrics: dict[str, float]) -> None:
        broken = [name for name, value in metrics.items() if not math.isfinite(value)]
        if broken:
            raise TrainingError(
                f"not finite in stage {stage.name}, step {step + 1}: {', '.join(broken)}; lower `lr` or a term's weight"
            )

    def _update_average(self) -> None:
        """Exponential moving average of weights and running statistics; without `ema` the network itself."""
        with torch.no_grad():
            for mine, theirs in zip(self.average.state_dict().values(), self.model.state_dict().values(), strict=True):
                if self.recipe.ema and mine.is_floating_point():
                    mine.lerp_(theirs, 1 - self.recipe.ema)
                else:
                    mine.copy_(theirs)


def _start_from(model: nn.Module, init: nn.Module, name: str) -> None:
    try:
        model.load_state_dict(init.state_dict())
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise TrainingError(f"init: the network of run {name} is not of the recipe's `model`: {reason}") from None


def _watched(history: list[dict[str, Any]]) -> list[float]:
    return [row["watched"] for row in history if "watched" in row]
