"""Square Attack (Andriushchenko et al. 2020, arXiv 1912.00049), Linf: random search that sees only a loss.

It works on anything that can be asked: a network, an ONNX Runtime session, a gateway over HTTP
(`training.attacks.endpoint`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from training.attacks.margin import margin
from training.attacks.unaware import Attack, Made, Scene
from training.errors import TrainingError
from training.util.signatures import Predict, Progress, silent

# Images (M, C, H, W) in [0, 1] and their labels (M,) to a loss (M,) that is to fall; below 0 is success.
Score = Callable[[Tensor, Tensor], Tensor]

LEVELS = 255
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries


class QueriesSpent(TrainingError):
    """The budget of queries of everything together is used up; attacks stop and return what they have."""


@dataclass(frozen=True)
class QueryResult:
    """Images (N, C, H, W), which of them are successes (N,) bool, and how many queries each took (N,)."""

    adversarial: Tensor
    succeeded: Tensor
    queries: Tensor


def square(
    score: Score,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    queries: int = 1000,
    share: float = 0.8,
    eight_bit: bool = True,
    generator: torch.Generator | None = None,
    progress: Progress = silent,
) -> QueryResult:
    """Lower `score` within `eps` of images `x` (N, C, H, W), an image at most `queries` times, until it is below 0.

    Begins with vertical stripes of +-eps; then squares of one colour of +-eps at random places, whose area starts at
    `share` of the image and halves as in the paper, are kept where they lower the loss. All images that still stand
    are asked about at once. With `eight_bit` every image asked about is a multiple of 1/255, as a served system sees
    it: `x` has to be such images, and `eps` is rounded down to such a step. `QueriesSpent` from `score` ends the attack
    early.
    """
    if eps < 0 or queries < 1:
        raise ValueError(f"eps {eps}, queries {queries}: eps >= 0, queries >= 1 are needed")
    grid = Grid(x, eps, eight_bit=eight_bit)
    n, channels, h, w = x.shape
    best, lowest = grid.zero(), torch.full((n,), torch.inf, device=x.device)
    asked = torch.zeros(n, dtype=torch.long, device=x.device)
    alive = torch.arange(n, device=x.device)
    with suppress(QueriesSpent):
        for number in range(queries):
            if number == 0:
                tried = grid.signs((n, channels, 1, w), generator).expand(x.shape)
            else:
                tried = _with_square(best[alive], _side(number, queries, share, h, w), generator)
            loss = score(grid.image(tried, alive), y[alive]).to(lowest)
            asked[alive] += 1
            better = loss < lowest[alive]
            best[alive[better]], lowest[alive[better]] = tried[better], loss[better]
            alive = alive[lowest[alive] >= 0]
            progress(number + 1, queries)
            if len(alive) == 0:
                break
    return QueryResult(grid.image(best, torch.arange(n, device=x.device)), lowest < 0, asked)


def margin_score(predict: Predict) -> Score:
    """The margin of the label in a network's logits, which may be computed in any way: no gradient is taken."""

    @torch.no_grad()
    def score(images: Tensor, labels: Tensor) -> Tensor:
        return margin(predict(images).float(), labels)

    return score


def session_score(session: Any, *, output: str = "logits", **fixed: Any) -> Score:
    """The same of an ONNX Runtime session that takes `pixels` and gives `output` (M, K).

    `fixed` are further inputs by name, functions of the pixels as an array (such as an empty mask).
    """

    def predict(images: Tensor) -> Tensor:
        pixels = images.cpu().numpy()
        inputs = {"pixels": pixels} | {name: make(pixels) for name, make in fixed.items()}
        return torch.from_numpy(session.run([output], inputs)[0]).to(images.device)

    return margin_score(predict)


class Grid:
    """Perturbations as signs in {-1, 0, 1}, and the images that they make: x + eps sign, in [0, 1]."""

    def __init__(self, x: Tensor, eps: float, *, eight_bit: bool) -> None:
        self.step = torch.tensor(eps)
        self.x, self.unit = x, 1.0
        if eight_bit:
            self.x, self.unit = (x * LEVELS).round(), float(LEVELS)
            if (self.x / LEVELS - x).abs().max() > 1e-6:
                raise ValueError("eight_bit: the images are not multiples of 1/255")
            self.step = torch.tensor(eps * LEVELS + 1e-4).floor()

    def zero(self) -> Tensor:
        return torch.zeros_like(self.x)

    def signs(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Random signs on the images' device."""
        return (torch.randint(0, 2, shape, generator=generator) * 2 - 1).to(self.x)

    def image(self, signs: Tensor, rows: Tensor, step: Tensor | None = None) -> Tensor:
        """The images of `rows` (M,) moved along `signs` (M, C, H, W), by eps or by `step` (M, 1, 1, 1)."""
        length = self.step.to(self.x) if step is None else step
        return (self.x[rows] + length * signs).clamp(0, self.unit) / self.unit


def _side(number: int, queries: int, share: float, h: int, w: int) -> int:
    """Side of the square at query `number`: the share of the image halves along the paper's schedule."""
    halvings = sum(number * 10_000 / queries > at for at in _HALVINGS)
    return max(1, min(round((share / 2**halvings * h * w) ** 0.5), h, w))


def _with_square(signs: Tensor, side: int, generator: torch.Generator | None) -> Tensor:
    """`signs` (M, C, H, W) with one square of one random sign by channel; never the square that was there."""
    m, channels, h, w = signs.shape
    top = torch.randint(0, h - side + 1, (m, 1), generator=generator).to(signs.device)
    left = torch.randint(0, w - side + 1, (m, 1), generator=generator).to(signs.device)
    colour = (torch.randint(0, 2, (m, channels, 1, 1), generator=generator) * 2 - 1).to(signs)
    rows, columns = torch.arange(h, device=signs.device), torch.arange(w, device=signs.device)
    inside = ((rows >= top) & (rows < top + side))[:, None, :, None]
    inside = inside & ((columns >= left) & (columns < left + side))[:, None, None, :]
    same = (~inside | (signs == colour)).flatten(1).all(1)
    colour = torch.where(same[:, None, None, None], -colour, colour)
    return torch.where(inside, colour, signs)


def _made(scene: Scene, x: Tensor, y: Tensor, *, eps: float) -> Made:
    queries = scene.effort.square_queries
    done = square(margin_score(scene.network), x, y, eps=eps / 255, queries=queries, generator=scene.generator)
    return Made(done.adversarial, {"queries": done.queries.cpu().numpy()})


CARD = (
    Attack(
        "square_8",
        "Square 8/255",
        partial(_made, eps=8),
        level="1",
        count="square",
        depends=("square_queries",),
        seconds=1.0,
        chunk=64,
    ),
)
