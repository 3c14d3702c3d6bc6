"""Plain companion or strict one, against an attacker who knows which: `python -m studies.strict BUNDLE`.

The answering network's answer is flagged where the companion's margin of it is low, as it is (0 steps) or after 1 or 2
steps of an attack by ourselves. On images of the select split, which chooses; every variant is attacked with the same
effort (the stages of `training.evaluate.harness.suite`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.record import record
from gateway.core.loading import load_bundle
from training.attacks.coarse import searched
from training.attacks.conditions import companion_says, confident, says
from training.attacks.joint_run import Afterwards, Seen
from training.attacks.margin import margin
from training.bundling.provenance import made_with
from training.commands.terminal import JsonPath, Threads, command, progress_bars, use_threads
from training.defence.graph import DefenceGraph
from training.defence.scores.companion_strict import STEPS, strict_margin
from training.defence.signals.margins import served_one_hot
from training.evaluate.harness.bench import Bench
from training.evaluate.harness.store import Arrays, Store
from training.evaluate.harness.suite import Stage, carry_out, union_of
from training.evaluate.harness.systems import ALONE, DOUBT, DOUBTS
from training.recipes.evaluation import RATES
from training.util.module_modes import frozen
from training.util.statistics import interval, threshold_at

CHUNK = 1024
SURE = 3.0  # margin of the target at which a network counts as convinced

# (images (N, C, H, W), one-hot label (N, K)) -> what each of P networks makes of the label (N, P), in logits or so.
Opinion = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Variant:
    """A system that flags an answer where the least favourable `opinion` of it is low.

    An opinion that is drawn anew for each request is taken for passed if at least half of `draws` pass; attacks on it
    follow the mean gradient of `samples` draws (expectation over transformation, Athalye et al. 2018, arXiv
    1802.00420).
    """

    bench: Bench
    name: str
    opinion: Opinion
    draws: int = 1
    samples: int = 1

    @cached_property
    def thresholds(self) -> list[float]:
        """The lowest opinion that is not flagged, by benign flag rate."""
        images = self.bench.data.test

        def make(start: int, stop: int) -> Arrays:
            x = self.bench.pixels(images.x[start:stop])
            with frozen(self.bench.defence), torch.no_grad():
                label = served_one_hot(self.bench.defence.network(x))
                return {"opinion": self.opinion(x, label).amin(1).cpu().numpy()}

        name = f"opinions-{self.name}"
        rows = self.bench.store.rows(name, self.bench.networks_key, len(images), CHUNK, make)
        return [-threshold_at(-rows["opinion"], rate) for rate in RATES]

    @property
    def columns(self) -> list[str]:
        """Names of the columns of `judged`, in order."""
        return [*(f"{rate:g}" for rate in RATES), ALONE, DOUBTS]

    def judged(self, adversarial: Tensor, label: Tensor) -> np.ndarray:
        """Which images (N,) beat each column, (N, R): answered wrong and not flagged, once rounded to 8 bits."""
        images = (adversarial * 255).round() / 255
        with torch.no_grad():
            logits = self.bench.defence.network(images)
            second = margin(self.companion(images), label)
            answer = served_one_hot(logits)
            margins = torch.stack([self.opinion(images, answer).amin(1) for _ in range(self.draws)])
        wrong = logits.argmax(1) != label
        passes = [wrong & (2 * (margins >= threshold).sum(0) >= self.draws) for threshold in self.thresholds]
        return torch.stack([*passes, second < 0, second < DOUBT], dim=1).cpu().numpy()

    @property
    def companion(self) -> nn.Module:
        """Raises `ValueError` where the bundle has none."""
        if self.bench.defence.companion is None:
            raise ValueError("a second opinion needs a companion")
        return self.bench.defence.companion

    def stages(self) -> list[Stage]:
        """The companion alone, both networks confident, and the opinion at the limit of each rate."""
        strictest = f"{RATES[-1]:g}"
        return [
            Stage(ALONE, companion_says, ALONE, "companion"),
            Stage("confident", confident, strictest, "networks", DOUBTS),
            Stage("convinced", _answered, strictest, "networks", DOUBTS, afterwards=self._stands(SURE)),
            *(
                Stage(
                    f"at {rate:g}",
                    _answered,
                    f"{rate:g}",
                    "networks",
                    DOUBTS,
                    afterwards=self._stands(self.thresholds[RATES.index(rate)]),
                )
                for rate in reversed(RATES)
            ),
        ]

    def _stands(self, limit: float) -> Afterwards:
        """Every opinion of the target is at least `limit`."""

        def afterwards(_d: DefenceGraph, images: Tensor, seen: Seen, target: Tensor, _label: Tensor) -> list[Tensor]:
            label = torch.nn.functional.one_hot(target, seen.logits.shape[1]).to(images)
            return [(limit + 0.1 - value).relu() for value in self.opinion(images, label).unbind(1)]

        return afterwards

    def measure(self, *, eps: float, count: int) -> dict[str, Any]:
        """Shares of images answered wrong and not flagged, by benign flag rate, and the companion's own error."""
        rows = carry_out(
            self.bench,
            self,
            self.stages(),
            self.name,
            eps=eps,
            count=count,
            steps=self.bench.settings.adaptive_steps,
            samples=self.samples,
        )
        won, group = union_of(rows, self.columns), self.bench.first(count).group
        names = {ALONE: "companion_alone"} | {f"{rate:g}": f"rate_{rate:g}" for rate in RATES}
        shares = {
            name: {"share": float(won[column].mean()), "interval": interval(won[column], group)}
            for column, name in names.items()
        }
        return {"system": self.name, "eps": eps, "n": len(group), "groups": len(np.unique(group)), **shares}


def _answered(logits: Tensor, _companion: Tensor, _scores: Tensor, target: Tensor) -> list[Tensor]:
    return [says(logits, target)]


def strict_opinion(network: nn.Module, *, steps: int = STEPS) -> Opinion:
    """The margin of the label after `steps` of an attack by ourselves, in bfloat16 where it is searched."""
    coarse = searched(network)

    def opinion(images: Tensor, label: Tensor) -> Tensor:
        predict = coarse if torch.is_grad_enabled() else network  # the score attacks by itself where it is judged, too
        return strict_margin(predict, images, label, steps=steps)[:, None]

    return opinion


def table_of(rows: list[dict[str, Any]]) -> Table:
    """Systems by radius, with the companion's own error and the share won at each benign flag rate."""
    table = Table("eps", "system", "companion's error", *(f"{100 * rate:g} % flags" for rate in RATES))
    for row in rows:
        cells = [row["companion_alone"], *(row[f"rate_{rate:g}"] for rate in RATES)]
        table.add_row(f"{row['eps']:g}/255", row["system"], *(_cell(cell) for cell in cells))
    return table


def main(
    bundle: Annotated[Path, typer.Argument(help="Bundle with a companion.")] = Path("models/gtsrb"),
    n: Annotated[int, typer.Option(min=1, help="Number of images of the select split.")] = 96,
    steps: Annotated[list[int] | None, typer.Option(min=0, help="Steps of our own attack; default: 0, 1, 2.")] = None,
    eps: Annotated[list[float] | None, typer.Option(help="Attack radii in 255ths; default: 8.")] = None,
    restarts: Annotated[int, typer.Option(min=1)] = 2,
    work: Annotated[Path, typer.Option(help="Folder of finished measurements, from which a run resumes.")] = Path(
        "runs/strict"
    ),
    json_path: JsonPath = None,
    threads: Threads = None,
) -> None:
    """Attack each variant and print who wins how often."""
    use_threads(threads)
    opened = load_bundle(bundle)
    data, settings = made_with(opened)
    chooses = dataclasses.replace(data, test=data.select)
    settings = settings.model_copy(update={"adaptive_restarts": restarts})
    rows = []
    with progress_bars() as bars:
        bench = Bench(opened, chooses, settings, Store(work), bars.step)
        for radius in eps or [8.0]:
            for each in steps or [0, 1, 2]:
                if bench.defence.companion is None:
                    raise ValueError("a strict margin needs a companion")
                opinion = strict_opinion(bench.defence.companion, steps=each)
                rows.append(Variant(bench, f"strict{each}", opinion).measure(eps=radius, count=n))
    Console().print(table_of(rows))
    if json_path is not None:
        record(
            json_path,
            "strict margins of the companion, wrong and not flagged, select split",
            {
                "bundle": f"{opened.name} {opened.version}",
                "seed": settings.seed,
                "targets": settings.adaptive_targets,
                "attack_steps": settings.adaptive_steps,
                "restarts": restarts,
                "rows": rows,
            },
        )


def _cell(cell: dict[str, Any]) -> str:
    low, high = cell["interval"]
    return f"{100 * cell['share']:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


if __name__ == "__main__":
    typer.run(command(main))
