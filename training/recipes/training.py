"""Recipes: YAML files that state everything a training run does; unknown keys are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gateway.core.preprocessing import Resize
from training.data.augment import Augmentation
from training.data.folders import TEST_SHARE
from training.errors import RecipeError
from training.losses.settings import Terms
from training.losses.term import Term
from training.models import ModelSpec
from training.util.precision import WantedPrecision

T = TypeVar("T", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSpec(_Strict):
    """Source (`training.data.dataset.load_dataset`), split seed and fractions of train, select, calibrate.

    `size` (pixels a side), `resize` and `images_per_class` are for image folders; `held_out` keeps the training part
    whole and takes select and calibrate from the test part. Of a folder without a test part `test_share` becomes it.
    `pool_scarce` deals classes of few images together.
    """

    source: str
    split_seed: int = 0
    fractions: tuple[float, float, float] = (0.74, 0.08, 0.18)
    classes: list[str] | None = None
    per_class: int | None = Field(None, ge=3)
    size: int | None = Field(None, ge=8, le=1024)
    resize: Resize = Resize()
    images_per_class: int | None = Field(None, ge=4)
    held_out: bool = False
    test_share: float = Field(TEST_SHARE, gt=0, lt=1)
    pool_scarce: bool = False


class Adversary(_Strict):
    """Inner maximisation of adversarial training: Linf PGD with `eps` of 255 and `steps` steps.

    With a `spread` every image has a radius of its own, uniform in [(1 - spread) eps, eps]: small ones stand for clean
    images. With `noise` it is one step from noise of that many radii, not projected (`noisy_fgsm`), in place of PGD.
    """

    eps: float = Field(8.0, ge=0, le=255, description="of 255")
    steps: int = Field(3, ge=1, le=100)
    spread: float = Field(0.0, ge=0, le=1)
    noise: float | None = Field(None, gt=0, le=4, description="radii; needs `steps: 1`")
    clean_weight: float = Field(0.0, ge=0, description="weight of the cross-entropy on clean images")
    clean_fraction: float = Field(0.5, gt=0, le=1, description="of the batch, for the clean term")

    @model_validator(mode="after")
    def _one_step(self) -> Adversary:
        if self.noise and self.steps != 1:
            raise ValueError("noise is for one step: write `steps: 1`")
        return self


class Trades(_Strict):
    """TRADES (`training.loop.task_losses`): clean cross-entropy and `beta` times a KL term, within Linf `eps`."""

    beta: float = Field(6.0, gt=0)
    eps: float = Field(8.0, gt=0, le=255, description="of 255")
    steps: int = Field(10, ge=1, le=100)


class Awp(_Strict):
    """Adversarial weight perturbation (`training.loop.awp`): `gamma` of each layer's norm, from an epoch on."""

    gamma: float = Field(0.01, gt=0, lt=1)
    start_epoch: int = Field(0, ge=0, description="epochs of the stage before it begins")


class EarlyStopping(_Strict):
    """Ends the last stage after `patience` epochs in which the averaged network was no better than before.

    Better: more accurate on the first `images` images of the select split, clean or under PGD (Linf `eps`, `steps`
    steps). The weights of the best epoch of the last stage are the run's result.
    """

    metric: Literal["clean", "pgd"] = "clean"
    images: int = Field(1000, ge=1, description="of the select split; all, if it has fewer")
    patience: int = Field(3, ge=1, description="epochs")
    eps: float = Field(8.0, gt=0, le=255, description="of 255, for pgd")
    steps: int = Field(10, ge=1, le=100, description="for pgd")


class MaskAugmentation(_Strict):
    """Random inpainted windows (`training.data.augment.mask_windows`)."""

    share: float = Field(0.3, gt=0, lt=1, description="side of a window, as a share of the image's side")
    count: int = Field(2, ge=1, le=8)
    fraction: float = Field(0.5, gt=0, le=1, description="of the batch")


class Obstacles(_Strict):
    """Stickers, bars, strips, shadows, casts of colour and rain at random (`training.loop.obstacles`)."""

    fraction: float = Field(0.3, gt=0, le=1, description="of the batch")


class WorstMasks(_Strict):
    """Training behind the greedily worst pairs of a certificate's masks (`training.attacks.masks`)."""

    patch_share: float = Field(0.02, gt=0, le=0.25, description="of the image, under the patch that masks are made for")
    masks_per_axis: int = Field(4, ge=2, le=8)
    fraction: float = Field(0.5, gt=0, le=1, description="of the batch")
    candidates: int | None = Field(None, ge=1, description="masks, drawn by batch, to choose from; all by default")


class WorstPatches(_Strict):
    """Training against patches whose content is optimised, each at the worst of some places (`training.loop.patches`).

    Those of a further share of the batch are no patches but `obstacles`, the worst of as many draws.
    """

    fraction: float = Field(0.5, gt=0, le=1, description="of the batch")
    places: int = Field(3, ge=1, le=100, description="outlines in random colours that the worst one is chosen from")
    steps: int = Field(4, ge=1, le=100)
    step_size: float = Field(0.3, gt=0, le=1, description="of the range of colours")
    obstacles: float = Field(0.0, ge=0, le=1, description="of the batch")

    @model_validator(mode="after")
    def _shares(self) -> WorstPatches:
        if self.fraction + self.obstacles > 1:
            raise ValueError("fraction and obstacles are shares of one batch: together at most 1")
        return self


class WorstWindows(_Strict):
    """Training without the greedily worst two windows of cells (`training.models.small_field`)."""

    patch_share: float = Field(0.02, gt=0, le=0.25, description="of the image, under the patch that windows are for")
    share: float = Field(0.7, gt=0, le=1, description="of the loss; the rest is that of all cells")


class SoftLabels(_Strict):
    """The teacher's labels of the clean images beside the true ones (`training.loop.teacher`), clean and attacked."""

    share: float = Field(0.5, gt=0, le=1, description="of the target; the rest is the true label")
    temperature: float = Field(1.0, gt=0, le=20)


class Stage(_Strict):
    """One stretch of training with its own learning-rate cycle.

    Standard training unless an `adversary` (adversarial training), `trades`, `worst_masks`, `worst_patches` or, for a
    network of the architecture `small_field`, `worst_windows` is named. Masks and patches may be of one stage: each
    has images of its own.
    `batchnorm: frozen` keeps running statistics fixed in every forward of the stage. Penalties need it: a penalty in
    evaluation mode beside a task loss in training mode wrecks the deployed network.
    """

    name: str
    epochs: int = Field(ge=1)
    lr: float = Field(gt=0)
    batchnorm: Literal["train", "frozen"] = "train"
    adversary: Adversary | None = None
    trades: Trades | None = None
    awp: Awp | None = None
    mask_augmentation: MaskAugmentation | None = None
    obstacles: Obstacles | None = None
    worst_masks: WorstMasks | None = None
    worst_patches: WorstPatches | None = None
    worst_windows: WorstWindows | None = None
    soft_labels: SoftLabels | None = None
    terms: Terms = Terms()

    @property
    def radius(self) -> float | None:
        """Linf radius of the stage's attack, of 1; None in standard training."""
        attack = self.adversary or self.trades
        return attack.eps / 255 if attack else None

    @property
    def searched(self) -> bool:
        """Whether masks or patches are searched for that the network answers worst."""
        return self.worst_masks is not None or self.worst_patches is not None

    @model_validator(mode="after")
    def _coherent(self) -> Stage:
        if self.adversary and self.trades:
            raise ValueError("a stage has an adversary or trades, not both")
        if self.searched and self.radius is not None:
            raise ValueError(
                "worst_masks and worst_patches are of standard training: a stage has them or an attack, not both"
            )
        masks, patches = self.worst_masks, self.worst_patches
        if masks and patches and masks.fraction + patches.fraction + patches.obstacles > 1:
            raise ValueError("worst_masks and worst_patches are shares of one batch: together at most 1")
        if self.worst_windows and (self.searched or self.radius is not None):
            raise ValueError(
                "worst_windows are of standard training: a stage has them, worst_masks and worst_patches or an attack"
            )
        for name, term in self.terms.of(Term).items():
            if term.needs_adversary and self.radius is None:
                raise ValueError(f"terms.{name} needs an adversary or trades: {term.needs_adversary}")
        if self.terms.active and self.batchnorm != "frozen":
            raise ValueError("terms need `batchnorm: frozen` (see docs/methods.md, BatchNorm)")
        return self


class Recipe(_Strict):
    """A training run: data, network, stages, optimiser."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    seed: int = 0
    data: DataSpec
    model: ModelSpec = ModelSpec()
    stages: list[Stage] = Field(min_length=1)
    batch: int = Field(128, ge=8)
    momentum: float = 0.9
    weight_decay: float = Field(5e-4, ge=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    ema: float = Field(0.0, ge=0, lt=1, description="decay of the weight average for one step; 0 switches it off")
    precision: WantedPrecision = Field(
        "auto", description="of the task; penalties are in fp32; auto: bf16 where the machine has it, else fp32"
    )
    early_stopping: EarlyStopping | None = None
    augmentation: Augmentation = Augmentation()
    init: str | None = Field(
        None,
        description="what training starts from: the name of a finished run, or a .safetensors file of "
        "`palisade weights`, here or in this package (weights/...)",
    )
    teacher: str | None = Field(
        None,
        description="the teacher of the selective term and of soft labels: the name of a finished run, or a file, "
        "as for `init`",
    )

    @model_validator(mode="after")
    def _taught(self) -> Recipe:
        for stage in self.stages:
            if stage.soft_labels and not self.teacher:
                raise ValueError(f"stage {stage.name}: soft_labels are a teacher's: name it (`teacher:`)")
            if stage.worst_windows and self.model.arch != "small_field":
                raise ValueError(f"stage {stage.name}: worst_windows are for networks of the arch small_field")
        return self

    @property
    def epochs(self) -> int:
        return sum(stage.epochs for stage in self.stages)


def load_recipe(path: Path) -> Recipe:
    """Read and validate a recipe; `RecipeError` names the key that is wrong."""
    return validate(Recipe, read_yaml(path), path)


def read_yaml(path: Path) -> object:
    """The parsed YAML file; `RecipeError` if it is missing or not YAML."""
    try:
        return yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise RecipeError(f"{path}: not YAML: {str(error).splitlines()[0]}") from None


def validate(model: type[T], content: object, path: Path) -> T:
    """`content` as `model`; `RecipeError` names every key that is wrong."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'recipe'}: {e['msg']}" for e in error.errors())
        raise RecipeError(f"{path}: {problems}") from None
