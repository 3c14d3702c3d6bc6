"""Level 0: benign images, as they are and under changes that no attacker made."""

from __future__ import annotations

from typing import Any

import numpy as np

from gateway.errors import PalisadeError
from training.data.corruptions import CHANGES, NOISES, changed
from training.data.dataset import Split, data_dir
from training.errors import DataError
from training.evaluate.harness.bench import Bench
from training.evaluate.harness.found import Figure, Found
from training.evaluate.harness.store import digest
from training.recipes.evaluation import ALPHAS
from training.served.answers import Served
from training.util.statistics import interval

FOREIGN = ("fashion_mnist", "mnist", "cifar10", "gtsrb32")
FOREIGN_COUNT = 1000


def flags(bench: Bench, answers: Served, alpha: float, *, cascade: bool = False) -> np.ndarray:
    """Which answers (N,) the gateway flags at `alpha`."""
    return answers.p_value <= bench.pipeline.judge.cutoff(alpha, cascade=cascade)


def benign(bench: Bench) -> Found:
    """Clean accuracy of every answer, share flagged at each alpha, and what neutralisation does to clean images."""
    test, answers = bench.test, bench.clean
    right = answers.raw == test.y
    outcomes = {
        "accuracy_answering": right,
        "accuracy_served": answers.served == test.y,
        "neutralised": answers.neutralised,
        "harmed": right & (answers.served != test.y),
    } | {f"flagged_{alpha:g}": flags(bench, answers, alpha) for alpha in ALPHAS}
    if bench.bundle.manifest.companion:
        outcomes["accuracy_companion"] = answers.companion == test.y
    section: dict[str, Any] = {"n": len(test)}
    for name, which in outcomes.items():
        if not name.startswith("flagged"):
            section |= {name: float(which.mean()), f"{name}_interval": interval(which, test.group)}
    section["flagged"] = {f"{alpha:g}": float(outcomes[f"flagged_{alpha:g}"].mean()) for alpha in ALPHAS}
    section |= {f"flagged_{a:g}_interval": interval(outcomes[f"flagged_{a:g}"], test.group) for a in ALPHAS}
    if bench.bundle.manifest.companion:
        section["disagrees"] = float((answers.companion != answers.raw).mean())
    section["resampled_by"] = "group" if len(np.unique(test.group)) < len(test) else "image"
    kept = {name: which for name, which in outcomes.items() if name != "neutralised"}
    places = {name: ("benign", *name.split("_")) if name.startswith("flagged") else ("benign", name) for name in kept}
    parts = {"benign": section, "worst_classes": worst_classes(bench, test, outcomes)}
    return Found(parts, {name: Figure(name, at=places[name]) for name in kept}, kept)


def lacks_disagreement(bench: Bench, section: dict[str, Any]) -> bool:
    """Whether a finished section was written before cards said how often the companion disagrees."""
    return bench.bundle.manifest.companion and "disagrees" not in section["benign"]


def worst_classes(bench: Bench, test: Split, outcomes: dict[str, np.ndarray]) -> dict[str, Any]:
    """The class with the lowest accuracy, and the one flagged most often at each alpha."""
    classes = np.unique(test.y)

    def by_class(which: np.ndarray) -> np.ndarray:
        return np.array([which[test.y == k].mean() for k in classes])

    def told(shares: np.ndarray, at: int) -> dict[str, Any]:
        k = classes[at]
        return {"class": bench.data.classes[k], "share": float(shares[at]), "n": int((test.y == k).sum())}

    accuracy = by_class(outcomes["accuracy_answering"])
    rows = {"accuracy_answering": told(accuracy, int(accuracy.argmin()))}
    for alpha in ALPHAS:
        flagged = by_class(outcomes[f"flagged_{alpha:g}"])
        rows[f"flagged_{alpha:g}"] = told(flagged, int(flagged.argmax()))
    return rows


def shifts(bench: Bench) -> Found:
    """Accuracy and flags under each benign change; other data sets and photos, whose labels are none of the classes.

    `within_aim`: at most 3 alpha flagged at both alphas, where accuracy holds within two points; None where it does
    not hold.
    """
    test = bench.first(bench.settings.shifts)
    clean = bench.clean.take(np.arange(len(test)))
    accuracy = float((clean.raw == test.y).mean())
    section: dict[str, Any] = {"n": len(test), "none": _shift_row(bench, test, clean, accuracy)}
    for name in (*CHANGES, *NOISES):
        depends = {"seed": bench.settings.seed}
        said = bench.answers(
            f"shift: {name}", f"shift-{name}", changed(test.x, name, seed=bench.settings.seed), depends
        )
        section[name] = _shift_row(bench, test, said, accuracy)
    for name, images in _foreign(bench).items():
        said = bench.answers(
            f"other images: {name}", f"foreign-{name}", images, {"sha": digest(images.tobytes().hex())}
        )
        section[f"other: {name}"] = {"n": len(images)} | {
            f"alpha_{alpha:g}": float(flags(bench, said, alpha).mean()) for alpha in ALPHAS
        }
    return Found(section)


def _shift_row(bench: Bench, test: Split, said: Served, clean_accuracy: float) -> dict[str, Any]:
    right = said.raw == test.y
    flagged = {alpha: flags(bench, said, alpha) for alpha in ALPHAS}
    outcomes = {"accuracy_answering": right} | {f"flagged_{alpha:g}": flagged[alpha] for alpha in ALPHAS}
    worst = worst_classes(bench, test, outcomes)
    row: dict[str, Any] = {
        "n": len(test),
        "accuracy_answering": float(right.mean()),
        "accuracy_served": float((said.served == test.y).mean()),
    }
    for alpha in ALPHAS:
        row[f"alpha_{alpha:g}"] = float(flagged[alpha].mean())
        row[f"alpha_{alpha:g}_interval"] = interval(flagged[alpha], test.group)
        row[f"worst_class_{alpha:g}"] = worst[f"flagged_{alpha:g}"]["share"]
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


def lacks_photos(bench: Bench, section: dict[str, Any]) -> bool:
    """Whether there are photos to look at that `section` of `shifts` says nothing of."""
    return bench.photos is not None and "other: photos" not in section


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
        raise DataError(f"{bench.photos}: no image in it that the gateway can decode")
    return np.stack(images)


def _channels(images: np.ndarray, channels: int) -> np.ndarray:
    coloured = images if images.ndim == 4 else images[..., None]
    if coloured.shape[3] == channels:
        return coloured
    return np.repeat(coloured[..., :1], channels, axis=3)


def cascade(bench: Bench) -> Found:
    """The composite of screen and verdict on benign test images; nothing where the bundle has none."""
    if not bench.pipeline.can_screen:
        return Found({})
    said = bench.clean_cascade
    return Found(
        {
            "n": len(said),
            "screened": float(said.screened.mean()),
            "flagged": {f"{a:g}": float(flags(bench, said, a, cascade=True).mean()) for a in ALPHAS},
        }
    )
