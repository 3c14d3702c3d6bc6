"""What an attack has to declare to stand in the card: attacks on the answering network alone.

Each file of this folder that declares such attacks names them in `CARD`; `training.attacks.listed` has a line for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from torch import Generator, Tensor, nn


class Effort(Protocol):
    """The settings of an evaluation that attacks read (`training.recipes.evaluation.Evaluation`)."""

    @property
    def steps(self) -> int: ...

    @property
    def square_queries(self) -> int: ...


Trained = Literal["ordinarily", "adversarially"]


@dataclass(frozen=True)
class Scene:
    """What an attacker has who does not know the defence: the answering network, or networks that he trained.

    Only `surrogates` may be asked for in a black-box attack; they are trained when they are first asked for.
    """

    network: nn.Module
    effort: Effort
    surrogates: Callable[[Trained], Sequence[nn.Module]]
    generator: Generator


@dataclass(frozen=True)
class Made:
    """Attacked pixels (N, C, H, W) in [0, 1], and further arrays about each image (N, ...) by name.

    The card knows the rows `queries` (N,): how many were asked.
    """

    adversarial: Tensor
    rows: Mapping[str, np.ndarray] = field(default_factory=dict)


Make = Callable[[Scene, Tensor, Tensor], Made]


@dataclass(frozen=True)
class Attack:
    """An attack in the card: `make` attacks pixels x (N, C, H, W) with labels y (N,).

    `level` is that of docs/threat-model.md (1 black box, 2 white box, 3 patches). `count` names the setting of how many
    images it is made on, `depends` the settings, beside the seed, that its images depend on. `seconds` an image takes
    on one slow core; `chunk` images are made at once. For a `local` attack (a patch) the card also states how many
    answers neutralisation repairs.
    """

    name: str
    title: str
    make: Make
    level: str = "2"
    count: str = "unaware"
    depends: tuple[str, ...] = ()
    seconds: float = 0.2
    chunk: int = 128
    local: bool = False


def by_name(*attacks: Attack) -> dict[str, Attack]:
    """The attacks under their names; `ValueError` where two have the same."""
    found = {attack.name: attack for attack in attacks}
    if len(found) < len(attacks):
        names = [attack.name for attack in attacks]
        raise ValueError(f"two attacks are named {next(name for name in names if names.count(name) > 1)!r}")
    return found
