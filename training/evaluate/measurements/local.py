"""What an attacker makes of neutralisation: patches that survive it, and images that it is made to spoil."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from training.attacks.joint import Afterwards, Conditions, Looks, joint_attack, joint_patch_attack, says, unflagged
from training.attacks.neutralised import gated, harm, still_wrong
from training.attacks.patch import Kind
from training.evaluate.harness.bench import Bench, as_images
from training.evaluate.harness.found import Figure, Found
from training.evaluate.harness.store import Arrays
from training.evaluate.measurements.attacked import patch_side
from training.evaluate.measurements.benign import flags
from training.recipes.evaluation import ALPHAS
from training.served.answers import Served, serve
from training.util.module_modes import frozen
from training.util.statistics import interval, share

CHUNK = 16
HARM_EPS = 8
KINDS: tuple[Kind, ...] = ("noisy", "low_frequency")
_COLUMNS = ("fools", "served_wrong", *(f"unflagged_{alpha:g}" for alpha in ALPHAS))


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
        ("served wrong", "served_wrong", "networks", _wrong, still_wrong(judge.calibration.recovery)),
        ("unflagged", _COLUMNS[-1], "all", unflagged(judge.fusion, judge.level(max(ALPHAS))), None),
    ]

    def make(start: int, stop: int, generator: torch.Generator) -> Arrays:
        part = clean.take(np.arange(start, stop))
        x, y = bench.pixels(part.x), bench.targets(part.y)
        won = np.zeros((len(part), len(_COLUMNS)), bool)
        attack = partial(
            joint_patch_attack,
            bench.defence,
            side=patch_side(bench),
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
                        beaten=_judged(bench, _told, until),
                        progress=partial(bench.progress, f"adaptive patches, images {start}-{stop}: {kind}, {aim}"),
                    )
                won[left] |= found[:, :-1].cpu().numpy()
        return {"won": won}

    effort = {"steps": settings.adaptive_steps, "targets": settings.adaptive_targets}
    rows = bench.rows("adaptive patches", "patch-adaptive", effort, len(clean), CHUNK, make, served=True)["won"]
    won = dict(zip(_COLUMNS, rows.T, strict=True))
    recovered, group = ~won["served_wrong"], clean.group
    section = {
        "n": len(clean),
        "side": patch_side(bench),
        "fooled": int(won["fools"].sum()),
        "recovered": share(recovered, won["fools"]),
        "recovered_interval": interval(recovered[won["fools"]], group[won["fools"]]),
    } | effort
    for alpha in ALPHAS:
        passed = won[f"unflagged_{alpha:g}"]
        section |= {f"alpha_{alpha:g}": float(passed.mean()), f"alpha_{alpha:g}_interval": interval(passed, group)}
    key = "recovered_patch_adaptive"
    return Found(
        section,
        {key: Figure(key, "fooled_patch_adaptive", at=("patch_adaptive", "recovered"))},
        {key: recovered, "fooled_patch_adaptive": won["fools"]},
    )


def harmed(bench: Bench) -> Found:
    """How often an attacker who aims at it has neutralisation turn a right answer into a wrong one that is served."""
    settings, judge = bench.settings, bench.pipeline.judge
    clean = bench.test.take(bench.right_first(settings.harm))
    gate = judge.level(bench.bundle.manifest.policy.gate_alpha)

    def make(start: int, stop: int, generator: torch.Generator) -> Arrays:
        part = clean.take(np.arange(start, stop))
        with frozen(bench.defence):
            found = joint_attack(
                bench.defence,
                bench.pixels(part.x),
                bench.targets(part.y),
                eps=HARM_EPS / 255,
                steps=settings.adaptive_steps,
                targets=settings.adaptive_targets,
                generator=generator,
                conditions=gated(judge.fusion, gate),
                afterwards=harm(judge.calibration.recovery),
                beaten=_judged(bench, _harm_told, "harmed"),
                progress=partial(bench.progress, f"attacks that aim at harm, images {start}-{stop}"),
            )
        return {"harmed": found[:, 0].cpu().numpy()}

    effort = {"steps": settings.adaptive_steps, "targets": settings.adaptive_targets}
    won = bench.rows("attacks that aim at harm", "harm", effort, len(clean), CHUNK, make, served=True)["harmed"]
    section = {
        "n": len(clean),
        "eps": HARM_EPS,
        "harmed": float(won.mean()),
        "harmed_interval": interval(won, clean.group),
    } | effort
    return Found(section, outcomes={"harmed_adaptive": won})


def _wrong(logits: Tensor, _companion: Tensor, _scores: Tensor, target: Tensor) -> list[Tensor]:
    return [says(logits, target)]


def _told(bench: Bench, said: Served, label: np.ndarray) -> Arrays:
    wrong, served = said.raw != label, said.served != label
    unflagged_ = {f"unflagged_{alpha:g}": served & ~flags(bench, said, alpha) for alpha in ALPHAS}
    return {"fools": wrong, "served_wrong": wrong & served} | unflagged_


def _harm_told(_bench: Bench, said: Served, label: np.ndarray) -> Arrays:
    return {"harmed": (said.raw == label) & (said.served != label)}


def _judged(
    bench: Bench, tell: Callable[[Bench, Served, np.ndarray], Arrays], until: str
) -> Callable[[Tensor, Tensor], Tensor]:
    """What the gateway itself answers to the images, as columns; the last one says when an image needs no more work."""

    def beaten(adversarial: Tensor, label: Tensor) -> Tensor:
        told = tell(bench, serve(bench.pipeline, as_images(adversarial)), label.cpu().numpy())
        return torch.from_numpy(np.stack([*told.values(), told[until]], axis=1))

    return beaten
