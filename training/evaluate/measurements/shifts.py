"""Level 0: benign images under changes that no attacker made, and images that are none of the classes."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from gateway.errors import PalisadeError
from training.data.corruptions import CHANGES, NOISES, changed
from training.data.dataset import Split, data_dir
from training.errors import DataError
from training.evaluate.harness.attacked import flags
from training.evaluate.harness.bench import Bench
from training.evaluate.harness.found import Found
from training.evaluate.harness.section import RangedByAlpha, Section
from training.evaluate.harness.shown import Body, Table, percent, ranged
from training.evaluate.harness.store import digest
from training.evaluate.harness.unit import Place, Unit
from training.evaluate.measurements.benign import worst_classes
from training.recipes.evaluation import ALPHAS
from training.served.answers import Served
from training.util.statistics import interval

FOREIGN = {"fashion_mnist": "Fashion-MNIST", "mnist": "MNIST", "cifar10": "CIFAR-10", "gtsrb32": "GTSRB"}
FOREIGN_COUNT = 1000
OTHER = "other: "
KINDS = {
    "jpeg": "JPEG, quality {}",
    "resize": "resized to {} % and back",
    "blur": "Gaussian blur, {} pixels",
    "dark": "brightness {} %",
    "contrast": "contrast {} %",
    "shift": "shifted by {} pixels",
    "rotate": "rotated by {} degrees",
    "noise": "Gaussian noise, {}",
}


class Shift(RangedByAlpha):
    """Shares of the images under one shift; accuracy only where the images have a label among the classes."""

    n: int
    accuracy_answering: float | None = None
    accuracy_served: float | None = None
    worst_class_1: float | None = Field(None, alias="worst_class_0.01")
    worst_class_5: float | None = Field(None, alias="worst_class_0.05")
    within_aim: bool | None = None


class Shifts(Section):
    """`n` test images, and a row for each shift under its name."""

    model_config = Section.model_config | {"extra": "allow"}
    __pydantic_extra__: dict[str, Shift] = Field(init=False)

    n: int

    @property
    def rows(self) -> dict[str, Shift]:
        return self.__pydantic_extra__


def shift_title(name: str) -> str:
    """A shift's name as cards print it, such as "JPEG, quality 90"."""
    if name == "none":
        return "no change"
    if name.startswith(OTHER):
        other = name.removeprefix(OTHER)
        return f"other images: {FOREIGN.get(other, other)}"
    kind, _, strength = name.partition("_")
    return KINDS[kind].format(strength) if kind in KINDS else name.replace("_", " ")


def shifts(bench: Bench) -> Found:
    """Accuracy and flags under each benign change; other data sets and photos, whose labels are none of the classes.

    `within_aim`: at most 3 alpha flagged at both alphas, where accuracy holds within two points; None where it does
    not hold.
    """
    test = bench.first(bench.settings.shifts)
    clean = bench.clean.take(np.arange(len(test)))
    accuracy = float((clean.raw == test.y).mean())
    section: dict[str, Any] = {"n": len(test), "none": _row(bench, test, clean, accuracy)}
    for name in (*CHANGES, *NOISES):
        depends = {"seed": bench.settings.seed}
        answers = bench.answers(
            f"shift: {name}", f"shift-{name}", changed(test.x, name, seed=bench.settings.seed), depends
        )
        section[name] = _row(bench, test, answers, accuracy)
    for name, images in _foreign(bench).items():
        answers = bench.answers(
            f"other images: {name}", f"foreign-{name}", images, {"sha": digest(images.tobytes().hex())}
        )
        section[f"{OTHER}{name}"] = {"n": len(images)} | {
            f"alpha_{alpha:g}": float(flags(bench, answers, alpha).mean()) for alpha in ALPHAS
        }
    return Found(Shifts.model_validate(section))


def _row(bench: Bench, test: Split, answers: Served, clean_accuracy: float) -> dict[str, Any]:
    right = answers.raw == test.y
    flagged = {f"flagged_{alpha:g}": flags(bench, answers, alpha) for alpha in ALPHAS}
    worst = worst_classes(test, bench.data.classes, right, flagged)
    row: dict[str, Any] = {
        "n": len(test),
        "accuracy_answering": float(right.mean()),
        "accuracy_served": float((answers.served == test.y).mean()),
        "worst_class_0.01": worst.flagged_1.share,
        "worst_class_0.05": worst.flagged_5.share,
    }
    for alpha in ALPHAS:
        which = flagged[f"flagged_{alpha:g}"]
        row |= {f"alpha_{alpha:g}": float(which.mean()), f"alpha_{alpha:g}_interval": interval(which, test.group)}
    holds = row["accuracy_answering"] >= clean_accuracy - 0.02
    row["within_aim"] = all(row[f"alpha_{alpha:g}"] <= 3 * alpha for alpha in ALPHAS) if holds else None
    return row


def _foreign(bench: Bench) -> dict[str, np.ndarray]:
    """Images of other data sets that lie beside this one, and photos: uint8 (N, h, w, C), C as the network has it."""
    channels = bench.bundle.manifest.input.channels
    own = bench.data.name.partition(":")[2]
    found = {}
    for name in FOREIGN:
        path = data_dir() / f"{name}.npz"
        if name != own and path.is_file():
            with np.load(path, allow_pickle=False) as file:
                found[name] = _channels(
                    file["x_test"][: min(FOREIGN_COUNT, len(bench.first(bench.settings.shifts)))], channels
                )
    if bench.photos is not None:
        found["photos"] = _photos(bench)
    return found


def _lacks_photos(bench: Bench, section: dict[str, Any]) -> bool:
    """Whether there are photos to look at that `section` has no row for."""
    return bench.photos is not None and f"{OTHER}photos" not in section


def _photos(bench: Bench) -> np.ndarray:
    assert bench.photos is not None
    if not bench.photos.is_dir():
        raise DataError(f"{bench.photos}: no such folder of photos")
    images: list[np.ndarray] = []
    for path in sorted(bench.photos.rglob("*")):
        if path.is_file() and len(images) < FOREIGN_COUNT:
            try:
                images.append(bench.pipeline.decode(path.read_bytes()))
            except PalisadeError:
                continue  # not an image that the gateway takes
    if not images:
        raise DataError(f"{bench.photos}: it holds no image that the gateway can decode")
    return np.stack(images)


def _channels(images: np.ndarray, channels: int) -> np.ndarray:
    coloured = images if images.ndim == 4 else images[..., None]
    if coloured.shape[3] == channels:
        return coloured
    return np.repeat(coloured[..., :1], channels, axis=3)


def _show(found: Shifts) -> Body:
    aim = {None: "-", True: "yes", False: "no"}
    rows = [
        (
            shift_title(name),
            f"{row.n:,}",
            percent(row.accuracy_answering),
            ranged(row.at_1, row.at_1_interval),
            ranged(row.at_5, row.at_5_interval),
            percent(row.worst_class_5),
            aim[row.within_aim],
        )
        for name, row in found.rows.items()
    ]
    head = ("shift", "n", "accuracy", "flagged, alpha 1 %", "alpha 5 %", "worst class, 5 %", "within aim")
    return [Table(head, rows)]


UNIT = Unit(
    "shifts",
    "0",
    "benign shifts and other images",
    shifts,
    Shifts,
    ("shifts",),
    (
        Place(
            "shifts",
            "Benign shifts",
            "Images that changed without an attacker, and images that are none of the classes. Aim: at most 3 alpha "
            "flagged wherever accuracy holds within two points.",
            "benign",
            Shifts,
            _show,
        ),
    ),
    count="shifts",
    seconds=0.25,
    lacks=_lacks_photos,
)
