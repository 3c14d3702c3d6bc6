"""A patch whose maker knows everything: `training.attacks.joint` with a square of free pixels instead of a ball."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from training.attacks.conditions import Conditions
from training.attacks.joint_run import Afterwards, Beaten, Looks, Run, part_of
from training.attacks.patch import Kind, Patches, random_patches
from training.attacks.search import Combine, Painted
from training.defence.graph import DefenceGraph
from training.util.signatures import Progress, silent

_PATCH_RANKING = 16 / 255  # radius at which a patch's targets are ranked


class Aims(Protocol):
    """Which classes a maker of patches aims at first, and where a patch may lie that aims at one."""

    def order(self, ranked: Tensor) -> Tensor:
        """Classes (N, T), most promising first, as this maker takes them."""
        ...

    def draw(self, target: Tensor) -> Patches:
        """Patches in random colours that aim at `target` (N,)."""
        ...


def joint_patch_attack(
    defence: DefenceGraph,
    x: Tensor,
    y: Tensor,
    *,
    side: int,
    kind: Kind = "noisy",
    places: int = 6,
    probe_steps: int = 8,
    steps: int = 60,
    targets: int = 5,
    conditions: Conditions,
    beaten: Beaten,
    looks: Looks = "all",
    combine: Combine = "normalised",
    samples: int = 1,
    afterwards: Afterwards | None = None,
    aims: Aims | None = None,
    full_precision: bool = False,
    generator: torch.Generator | None = None,
    progress: Progress = silent,
) -> Tensor:
    """`joint_attack` with a patch of `side` pixels instead of a ball: (N, A) bool.

    Of `places` random places and colours, each tried for `probe_steps` against the nearest other class, the one whose
    hinges are lowest is worked on for `steps`, for each of `targets` classes in turn. With `aims` the places are those
    that it draws for a class, tried against that class.
    """
    run = Run(defence, x, y, conditions, beaten, looks, afterwards, full_precision=full_precision)
    if aims is not None:
        everything = defence.network(x[:1]).shape[1]
        order = aims.order(run.ranking(_PATCH_RANKING, everything, generator)[0])[:, :targets]
        total = order.shape[1] * (places * probe_steps + steps)
        for number in range(order.shape[1]):
            target, before = order[:, number], number * (places * probe_steps + steps)
            best = _best_of(
                run,
                partial(aims.draw, target),
                target,
                places=places,
                steps=probe_steps,
                combine=combine,
                samples=samples,
                progress=part_of(progress, before, total),
            )
            run.descend(
                Painted(x, best),
                best.colours,
                target,
                steps=steps,
                combine=combine,
                samples=samples,
                progress=part_of(progress, before + places * probe_steps, total),
            )
        progress(total, total)
        return run.won
    order, _ = run.ranking(_PATCH_RANKING, targets, generator)
    total = places * probe_steps + order.shape[1] * steps
    best = _best_of(
        run,
        lambda: random_patches(x, side, kind, generator),
        None,
        places=places,
        steps=probe_steps,
        combine=combine,
        samples=samples,
        progress=part_of(progress, 0, total),
    )
    for aim in range(order.shape[1]):
        run.descend(
            Painted(x, best),
            best.colours,
            order[:, aim],
            steps=steps,
            combine=combine,
            samples=samples,
            progress=part_of(progress, places * probe_steps + aim * steps, total),
        )
    progress(total, total)
    return run.won


def _best_of(
    run: Run,
    draw: Callable[[], Patches],
    target: Tensor | None,
    *,
    places: int,
    steps: int,
    combine: Combine,
    samples: int,
    progress: Progress,
) -> Patches:
    """Of `places` draws, each worked on for `steps`, the patches with the lowest hinges; `ValueError` for none."""
    best: Patches | None = None
    lowest = torch.full((len(run.x),), torch.inf, device=run.x.device)
    for number in range(places):
        patches = draw()
        found = run.descend(
            Painted(run.x, patches),
            patches.colours,
            target,
            steps=steps,
            combine=combine,
            samples=samples,
            progress=part_of(progress, number * steps, places * steps),
        )
        patches = patches.painted(found.parameters)
        best = patches if best is None else patches.where(found.total < lowest, best)
        lowest = torch.minimum(lowest, found.total)
    if best is None:
        raise ValueError("places 0: at least one is needed")
    return best
