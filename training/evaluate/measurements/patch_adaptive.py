"""Level 4: patches whose maker knows the defence."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.attacks.conditions import Conditions, says, unflagged
from training.attacks.joint_patch import joint_patch_attack
from training.attacks.joint_run import Afterwards, Looks
from training.attacks.neutralised import still_wrong
from training.attacks.patch import Kind, patch_side
from training.evaluate.harness.attacked import flags
from training.evaluate.harness.bench import Bench
from training.evaluate.harness.found import Figure, Found
from training.evaluate.harness.section import Effort, Interval, RangedByAlpha
from training.evaluate.harness.served_judge import judged_as_served
from training.evaluate.harness.shown import Body, Table, ranged
from training.evaluate.harness.store import Arrays
from training.evaluate.harness.unit import Place, Unit
from training.recipes.evaluation import ALPHAS
from training.served.answers import Served
from training.util.module_modes import frozen
from training.util.statistics import interval, share

CHUNK = 16
KINDS: tuple[Kind, ...] = ("noisy", "low_frequency")
_COLUMNS = ("fools", "served_wrong", *(f"unflagged_{alpha:g}" for alpha in ALPHAS))


class PatchAdaptive(Effort, RangedByAlpha):
    """Of `n` images: wrong and not flagged by alpha; of those fooled, the share for which no patch is served wrong."""

    n: int
    side: int
    fooled: int
    recovered: float | None
    recovered_interval: Interval


def adaptive_patches(bench: Bench) -> Found:
    """Patches whose maker knows localiser, gate, companion and detector, noisy or of low frequency as it suits them.

    Two aims, each with every kind: an answer that is wrong even after neutralisation, flagged or not; and one that is
    wrong and not flagged. `recovered`: of the images that some patch fools, those that no patch gets a wrong answer
    served for.
    """
    settings = bench.settings
    clean = bench.test.take(bench.right_first(settings.adaptive_patched))
    judge = bench.pipeline.judge

    aims: list[tuple[str, str, Looks, Conditions, Afterwards | None]] = [
        ("served wrong", "served_wrong", "networks", answered_wrongly, still_wrong(judge.calibration.recovery)),
        ("unflagged", _COLUMNS[-1], "all", unflagged(judge.fusion, judge.level(max(ALPHAS))), None),
    ]

    def make(start: int, stop: int, generator: torch.Generator) -> Arrays:
        part = clean.take(np.arange(start, stop))
        x, y = bench.pixels(part.x), bench.targets(part.y)
        won = np.zeros((len(part), len(_COLUMNS)), bool)
        attack = partial(
            joint_patch_attack,
            bench.defence,
            side=patch_side(bench.bundle.manifest.input.height),
            steps=settings.adaptive_steps,
            targets=settings.adaptive_targets,
            generator=generator,
        )
        for kind in KINDS:
            for aim, until, looks, conditions, afterwards in aims:
                left = np.flatnonzero(~won[:, _COLUMNS.index(until)])
                if len(left) == 0:
                    continue
                chosen = torch.from_numpy(left).to(x.device)
                with frozen(bench.defence):
                    found = attack(
                        x=x[chosen],
                        y=y[chosen],
                        kind=kind,
                        looks=looks,
                        conditions=conditions,
                        afterwards=afterwards,
                        beaten=judged_as_served(bench, _outcomes, until),
                        progress=partial(bench.progress, f"adaptive patches, images {start}-{stop}: {kind}, {aim}"),
                    )
                won[left] |= found[:, :-1].cpu().numpy()
        return {"won": won}

    effort = {"steps": settings.adaptive_steps, "targets": settings.adaptive_targets}
    rows = bench.rows("adaptive patches", "patch-adaptive", effort, len(clean), CHUNK, make, served=True)["won"]
    won = dict(zip(_COLUMNS, rows.T, strict=True))
    recovered, group = ~won["served_wrong"], clean.group
    section: dict[str, Any] = {
        "n": len(clean),
        "side": patch_side(bench.bundle.manifest.input.height),
        "fooled": int(won["fools"].sum()),
        "recovered": share(recovered, won["fools"]),
        "recovered_interval": interval(recovered[won["fools"]], group[won["fools"]]),
    } | effort
    for alpha in ALPHAS:
        passed = won[f"unflagged_{alpha:g}"]
        section |= {f"alpha_{alpha:g}": float(passed.mean()), f"alpha_{alpha:g}_interval": interval(passed, group)}
    key = "recovered_patch_adaptive"
    return Found(
        PatchAdaptive.model_validate(section),
        {key: Figure(key, "fooled_patch_adaptive", at=("patch_adaptive", "recovered"))},
        {key: recovered, "fooled_patch_adaptive": won["fools"]},
    )


def answered_wrongly(logits: Tensor, _companion: Tensor, _scores: Tensor, target: Tensor) -> list[Tensor]:
    """The answering network says the target, whatever the detector reports."""
    return [says(logits, target)]


def _outcomes(bench: Bench, answers: Served, label: np.ndarray) -> Arrays:
    wrong, served = answers.raw != label, answers.served != label
    unflagged_ = {f"unflagged_{alpha:g}": served & ~flags(bench, answers, alpha) for alpha in ALPHAS}
    return {"fools": wrong, "served_wrong": wrong & served} | unflagged_


def _show(found: PatchAdaptive) -> Body:
    row = (
        f"{found.fooled:,}",
        ranged(found.recovered, found.recovered_interval),
        ranged(found.at_1, found.at_1_interval),
        ranged(found.at_5, found.at_5_interval),
    )
    return [
        f"{found.targets} targets x {found.steps} steps, either kind of patch, side {found.side}, n = {found.n}.",
        Table(("fooled", "served right", "wrong and not flagged, alpha 1 %", "alpha 5 %"), [row]),
    ]


UNIT = Unit(
    "patch_adaptive",
    "4",
    "patches whose maker knows the defence",
    adaptive_patches,
    PatchAdaptive,
    ("patch_adaptive",),
    (
        Place(
            "patch_adaptive",
            "Patches whose maker knows the defence",
            "A maker who knows localiser, gate, companion and detector aims at a wrong answer that is served, and at "
            "one that is not flagged either.",
            "knows",
            PatchAdaptive,
            _show,
        ),
    ),
    figures={"recovered_patch_adaptive": "adaptive patches that fool: answered rightly after neutralisation"},
    count="adaptive_patched",
    depends=("adaptive_steps", "adaptive_targets"),
    seconds=60,
    verified=8,
)
