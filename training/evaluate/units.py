"""The measurements by name and level, and where the card keeps what they find."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from gateway.core.loading import Bundle
from training.data.dataset import Dataset
from training.errors import TrainingError
from training.evaluate.harness.bench import Bench
from training.evaluate.harness.found import Found
from training.evaluate.measurements import adaptive, benign, explained, layered, local, queries, robust, unaware
from training.evaluate.measurements.attacked import ATTACKS, title
from training.recipes.evaluation import ALPHAS, FIGURES, Evaluation

LEVELS = {
    "0": "benign images, noise and corruptions",
    "1": "black box: transferred attacks and Square",
    "2": "white box on one network, detector unaware",
    "3": "adaptive: white box on everything",
    "4": "queries over HTTP",
    "patches": "patches, unaware and adaptive",
    "layers": "what moves inside the networks, and whether the detector watches the right layers",
    "explanations": "whether the maps tell what the answer hangs on",
}
"""docs: design, "Evaluation card"; `palisade evaluate --level`."""


@dataclass(frozen=True)
class Unit:
    """A measurement: `count` names the setting of its number of images, `depends` those its figures hang on.

    `path` is its place in the card. `seconds` by image are an estimate for one slow core. `verified` images are enough
    to compare its outcomes with a card's; None: all of them. `companion`: only for bundles that have one. `lacks` says
    whether a finished result's section is without something that this run could tell. `version` counts up when what is
    measured changes: results of an earlier one are not taken.
    """

    level: str
    title: str
    path: tuple[str, ...]
    run: Callable[[Bench], Found]
    count: str | None = None
    depends: tuple[str, ...] = ()
    seconds: float = 0.01
    figures: tuple[str, ...] = ()
    verified: int | None = None
    companion: bool = False
    lacks: Callable[[Bench, dict[str, Any]], bool] = lambda _bench, _section: False
    version: int = 1

    def images(self, settings: Evaluation, bundle: Bundle, data: Dataset) -> int:
        """How many test images it uses at most; 0 if it is not for this bundle."""
        if self.companion and not bundle.manifest.companion:
            return 0
        asked = None if self.count is None else getattr(settings, self.count)
        return len(data.test) if asked is None else min(asked, len(data.test))


def _of_attack(name: str) -> set[str]:
    return {f"recovered_{name}", *(f"detected_{name}_{rate:g}" for rate in ALPHAS)}


def _attack(name: str) -> Unit:
    attack = ATTACKS[name]
    return Unit(
        attack.level,
        f"{title(name)} on the answering network",
        (),
        partial(unaware.unaware, name=name),
        count=attack.count,
        depends=attack.depends,
        seconds=attack.seconds,
        verified=attack.chunk if attack.level == "patches" else 32,  # where patches lie is drawn for a chunk at once
        figures=tuple(figure for figure in FIGURES if figure in _of_attack(name)),
    )


_EFFORT = ("steps", "adaptive_steps", "adaptive_targets", "adaptive_restarts")
_BENIGN = (
    "accuracy_answering",
    "accuracy_companion",
    "accuracy_served",
    "flagged_0.01",
    "flagged_0.05",
    "harmed",
)


def _companion(eps: int) -> dict[str, Unit]:
    return {
        f"companion_pgd_{eps}": Unit(
            "2",
            f"companion, PGD {eps}/255",
            ("companion_pgd", f"eps_{eps}"),
            partial(robust.companion_pgd, eps=eps),
            "robust",
            ("steps",),
            0.09,
            (f"pgd50_{eps}",),
            256,
            companion=True,
        ),
        f"autoattack_{eps}": Unit(
            "2",
            f"companion, AutoAttack {eps}/255",
            ("autoattack", f"eps_{eps}"),
            partial(robust.autoattacked, eps=eps),
            "autoattack",
            (),
            4,
            (f"autoattack_{eps}",),
            32,
            companion=True,
        ),
    }


def _adaptive(eps: int) -> dict[str, Unit]:
    return {
        f"adaptive_{eps}": Unit(
            "3",
            f"adaptive attacks at {eps}/255",
            (),
            partial(adaptive.adaptive, eps=eps),
            "adaptive",
            _EFFORT,
            10,
            (f"joint_{eps}", f"joint_{eps}_{min(ALPHAS):g}", f"joint_excess_{eps}"),
            8,
            version=2,
        ),
    }


UNITS: dict[str, Unit] = {
    "benign": Unit(
        "0",
        "benign test images",
        (),
        benign.benign,
        seconds=0.012,
        figures=_BENIGN,
        lacks=benign.lacks_disagreement,
    ),
    "cascade": Unit(
        "0", "benign test images behind the cascade", ("cascade",), benign.cascade, seconds=0.008, companion=True
    ),
    "shifts": Unit(
        "0",
        "benign shifts and other images",
        ("shifts",),
        benign.shifts,
        "shifts",
        seconds=0.25,
        lacks=benign.lacks_photos,
    ),
    **_companion(4),
    **_companion(8),
    "control": Unit(
        "2", "undefended control", ("control",), robust.control, "control", ("steps",), 0.02, ("control",), 64
    ),
    "gradients": Unit("2", "signs of masked gradients", ("gradients",), robust.gradients, "control", seconds=0.02),
    "curve": Unit("2", "security curve", ("curve",), robust.curve, "curve", ("steps",), 0.7),
    **{name: _attack(name) for name in ATTACKS},
    **_adaptive(4),
    **_adaptive(8),
    "doubled": Unit("3", "joint attack with twice the steps", ("doubled",), adaptive.doubled, "doubled", _EFFORT, 8),
    "smoothed": Unit(
        "3",
        "joint attack on averaged gradients",
        ("smoothed",),
        adaptive.smoothed,
        "doubled",
        _EFFORT,
        6,
        version=2,
    ),
    "patch_adaptive": Unit(
        "patches",
        "patches whose maker knows the defence",
        ("patch_adaptive",),
        local.adaptive_patches,
        "adaptive_patched",
        _EFFORT[1:3],
        60,
        ("recovered_patch_adaptive",),
        8,
    ),
    "harm": Unit("3", "attacks that aim at harm", ("harm",), local.harmed, "harm", _EFFORT[1:3], 4),
    "queries": Unit("4", "queries over HTTP", ("queries",), queries.queries, "queried", ("queries",), 60),
    "explanations": Unit(
        "explanations", "quality of explanations", ("explanations",), explained.explanations, "explained", seconds=1.0
    ),
    "layers": Unit(
        "layers",
        "vulnerability of layers",
        ("layers",),
        layered.layers,
        "layered",
        ("steps",),
        0.7,
        ("moved", "watched"),
        64,
    ),
    "pictures": Unit("explanations", "pictures for the report", (), explained.pictures, "patched", ("steps",), 0.05),
}

BASIC = (
    "benign",
    "cascade",
    "companion_pgd_4",
    "companion_pgd_8",
    "pgd_4",
    "pgd_8",
    "patch",
    "adaptive_4",
    "adaptive_8",
)
"""What `palisade build` measures, level `basic`; `palisade evaluate` does the rest."""


def chosen(levels: Sequence[str] = (), only: Sequence[str] = ()) -> list[str]:
    """Names of the units of `levels` (`basic`, `all` as well) and of those named `only`; all without either.

    Raises `TrainingError` for unknown ones.
    """
    if unknown := sorted(set(levels) - set(LEVELS) - {"all", "basic"}):
        raise TrainingError(f"unknown level {unknown[0]!r}; there are {', '.join(LEVELS)}, basic and all")
    if unknown := sorted(set(only) - set(UNITS)):
        raise TrainingError(f"unknown unit {unknown[0]!r}; there are {', '.join(UNITS)}")
    if "all" in levels or not (levels or only):
        return list(UNITS)
    named = {*only, *(BASIC if "basic" in levels else ())}
    return [name for name, unit in UNITS.items() if unit.level in levels or name in named]
