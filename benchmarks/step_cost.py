"""What J-SIGR and neuron stabilising cost a step of adversarial training: `python -m benchmarks.step_cost`.

Penalties are J-SIGR (Jacobian, ratio) and SNS on a fraction of each batch, by double backprop (exact) or a finite
difference, in every step or every second one. Every setting takes its steps in turns with the plain step (A B C A B C
...) in one process. The figures don't depend on what the images show, so that they are random; network, optimiser,
attack and penalties are those of a training run.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.cost import Times, in_turns
from benchmarks.record import record
from training.attacks.pgd import training_pgd
from training.commands.terminal import JsonPath
from training.loop.penalties import penalties
from training.losses.settings import Terms
from training.models import ModelSpec, build_model
from training.models.memory_format import arranged
from training.models.network import Network
from training.util.module_modes import denormals_flushed, freeze_batchnorm, frozen, seeded
from training.util.precision import machine_precision

CLASSES, SIDE, EPS, GRID = 43, 32, 8 / 255, 6
EVERY = 2  # the longest cadence: a call is that many steps


@dataclass(frozen=True)
class Setting:
    """Penalties, and whether SNS takes the adversarial activations from the task's forward (as the trainer does)."""

    terms: Terms
    shared: bool = True


class Steps:
    """Steps of adversarial training in one setting, on one batch of random images."""

    def __init__(self, network: Network, setting: Setting, *, batch: int, steps: int, precision: str) -> None:
        self.network, self.layout = arranged(network, "cpu")
        self.setting, self.steps, self.precision = setting, steps, precision
        generator = seeded(0)
        self.x = torch.rand(batch, 3, SIDE, SIDE, generator=generator)
        self.y = torch.randint(0, CLASSES, (batch,), generator=generator)
        self.saliency = torch.rand(batch, SIDE, SIDE, generator=generator)
        self.sensitive = {name: torch.arange(max(1, round(0.1 * c))) for name, c in network.tap_channels.items()}
        self.optimizer = torch.optim.SGD(network.parameters(), lr=1e-6, momentum=0.9, nesterov=True)
        self.generator, self.done = generator, 0

    def __call__(self) -> None:
        for _ in range(EVERY):
            self._step()

    def _taps(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            logits, taps = self.network.taps(x)
            return logits.float(), taps

    def _step(self) -> None:
        self.network.train()
        freeze_batchnorm(self.network)
        x = self.x.contiguous(memory_format=self.layout.format)
        with frozen(self.network):
            adversarial = training_pgd(
                lambda z: self._taps(z)[0], x, self.y, eps=EPS, steps=self.steps, generator=self.generator
            )
        logits, taps = self._taps(adversarial)
        losses = penalties(
            self.setting.terms,
            self.network,
            self.x,
            self.y,
            adversarial,
            self.saliency,
            self.sensitive,
            self.generator,
            adversarial_taps=taps if self.setting.shared else None,
            step=self.done,
        )
        losses["ce"] = F.cross_entropy(logits, self.y)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(torch.stack(list(losses.values())).sum())
        nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimizer.step()
        self.done += 1


def settings() -> dict[str, Setting]:
    """The plain step and the settings of penalties that are compared with it."""
    found = {"AT": Setting(Terms())}
    for method, name in (("double_backprop", "exact"), ("finite_difference", "difference")):
        found[f"{name}, 1/2, own forward"] = Setting(both(method, fraction=0.5), shared=False)
        for label, fraction in (("1", 1.0), ("1/2", 0.5), ("1/4", 0.25)):
            found[f"{name}, {label}"] = Setting(both(method, fraction=fraction))
        for label, fraction in (("1/2", 0.5), ("1/4", 0.25)):
            found[f"{name}, {label}, every {EVERY}."] = Setting(both(method, fraction=fraction, every=EVERY))
    return found


def both(method: str, *, fraction: float, every: int = 1) -> Terms:
    """J-SIGR (Jacobian and ratio) and neuron stabilising."""
    gradient = {"weight": 1e-4, "method": method, "every": every}
    return Terms.model_validate(
        {
            "jacobian": gradient,
            "selective": gradient | {"form": "ratio", "grid": GRID},
            "sns": {"weight": 1e-4, "every": every},
            "fraction": fraction,
        }
    )


def measure(
    network: Network, *, batch: int, steps: int, precision: str, repeats: int, seconds: float
) -> list[dict[str, Any]]:
    """One row for each setting: milliseconds of a step and its ratio to the plain step of the same round."""
    calls: dict[str, Callable[[], object]] = {
        name: Steps(copy.deepcopy(network), setting, batch=batch, steps=steps, precision=precision)
        for name, setting in settings().items()
    }
    times = in_turns(calls, repeats=repeats, seconds=seconds)
    return [
        {"setting": name, "step_ms": round(found.median / EVERY * 1e3, 2), "rounds": len(found.seconds)}
        | ratios(found, times["AT"])
        for name, found in times.items()
    ]


def ratios(found: Times, plain: Times) -> dict[str, Any]:
    """Median and quartiles of the ratio by round, in time and in processor time."""
    out: dict[str, Any] = {}
    for key, mine, theirs in (
        ("ratio", found.seconds, plain.seconds),
        ("ratio_processor", found.processor, plain.processor),
    ):
        by_round = [a / b for a, b in zip(mine, theirs, strict=True)]
        low, middle, high = statistics.quantiles(by_round, n=4)
        out |= {key: round(middle, 3), f"{key}_quartiles": [round(low, 3), round(high, 3)]}
    return out


def main(
    width: Annotated[
        int, typer.Option(min=4, help="Width of the network; the ablation's is 16 with --stem-stride 2.")
    ] = 16,
    stem_stride: Annotated[int, typer.Option(min=1, max=2)] = 2,
    batch: Annotated[int, typer.Option(min=8)] = 128,
    steps: Annotated[int, typer.Option(min=1, help="PGD steps of the attack inside a training step.")] = 3,
    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        typer.Option(help="Precision of attack and task (auto: bf16 where the processor has it); penalties use fp32."),
    ] = "auto",
    repeats: Annotated[int, typer.Option(min=5, help="Largest number of rounds.")] = 30,
    seconds: Annotated[float, typer.Option(min=0, help="Time limit in seconds; five rounds always run.")] = 120.0,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    json_path: JsonPath = None,
) -> None:
    """Time steps with penalties, in either form, beside the plain step of adversarial training."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    spec = ModelSpec(width=width, stem_stride=stem_stride)
    network = build_model(spec, classes=CLASSES, mean=[0.4] * 3, std=[0.25] * 3, side=SIDE)
    if precision == "auto":
        precision = machine_precision("cpu").precision
    with denormals_flushed():
        rows = measure(network, batch=batch, steps=steps, precision=precision, repeats=repeats, seconds=seconds)
    table = Table(title=f"A step of adversarial training ({steps} steps of PGD, batch {batch}, {precision})")
    for column in ("setting", "ms", "ratio (quartiles)", "in processor time"):
        table.add_column(column)
    for row in rows:
        cells = [
            f"{row[key]:.2f} ({' to '.join(f'{q:.2f}' for q in row[f'{key}_quartiles'])})"
            for key in ("ratio", "ratio_processor")
        ]
        table.add_row(row["setting"], f"{row['step_ms']:.1f}", *cells)
    Console().print(table)
    if json_path:
        facts = {"model": spec.model_dump(mode="json"), "batch": batch, "attack_steps": steps, "precision": precision}
        versions = {"torch": torch.__version__}
        record(json_path, "cost of penalties", facts | {"seed": 0, "threads": threads, **versions, "settings": rows})


if __name__ == "__main__":
    typer.run(main)
