"""The defence of a network that another server runs: what is sent there, and what its answers say (`palisade guard`).

The defence graph without its network, as four modules around the server's answers. Scores, views, localiser and
inpainting are the defence graph's own, so that a verdict is that of a bundle which has the network and the same scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.defence.localisers import LOCALISER, localiser_named
from training.defence.localisers.texture_colour import median_3x3
from training.defence.scores.score import AnswerScore
from training.defence.signals.margins import one_hot_margin, served_one_hot
from training.defence.signals.views import SHIFTS, shift
from training.imaging.blur import gaussian_blur
from training.imaging.bumps import bumps
from training.imaging.inpaint import inpaint
from training.imaging.resize import resize_bilinear

ROWS = len(SHIFTS) + 3
"""Of one image: itself, its views, itself filtered, and itself with its region of attack inpainted."""
GRID = 7
"""Places of an explanation in each direction."""
_BLUR = 0.1  # of the shorter side


@dataclass(frozen=True)
class RowAnswers:
    """The logits (N, `ROWS`, K) of the rows, as scores read them (`training.defence.scores.context.Answers`)."""

    rows: Tensor

    @property
    def logits(self) -> Tensor:
        return self.rows[:, 0]

    @cached_property
    def label(self) -> Tensor:
        return served_one_hot(self.logits)

    @property
    def view_logits(self) -> Tensor:
        return self.rows[:, 1 : 1 + len(SHIFTS)].transpose(0, 1).reshape(-1, self.rows.shape[2])

    @property
    def view_labels(self) -> Tensor:
        return self.label.repeat(len(SHIFTS), 1)

    @property
    def filtered_logits(self) -> Tensor:
        return self.rows[:, -2]

    @property
    def hidden_logits(self) -> Tensor:
        return self.rows[:, -1]


class Rows(nn.Module):
    """Images and masks to the rows that are sent (N, `ROWS`, C, H, W), the region of attack and how it stands out.

    The last output, the images with their masks inpainted, is their first row; the export knows it by its name and
    runs the inpainting only where a mask is set (`training.export.rewrite.skip_inpainting`).
    """

    def __init__(self, localiser: str = LOCALISER) -> None:
        super().__init__()
        self.localiser = localiser_named(localiser)

    def forward(self, pixels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """pixels (N, C, H, W) in [0, 1], mask (N, H, W) in {0, 1} of what is inpainted first."""
        _ = int(pixels.shape[2]), int(pixels.shape[3])  # to the tracer: these two do not vary
        x = inpaint(pixels, mask)
        roa, roa_score = self.localiser.locate(x)
        views = [shift(x, dy, dx) for dy, dx in SHIFTS]
        rows = [x, *views, median_3x3(x), inpaint(x, roa)]
        # Not `stack`, which is exported as a copy more.
        return torch.cat([row[:, None] for row in rows], 1), roa, roa_score, x


class Judged(nn.Module):
    """Answers to the rows, and the region of attack, to scores (N, S) and the region of importance (N, H, W).

    Without features or a gradient that region is known of one place alone: the region of attack, where the answer is
    another one without it, and empty where it is not.
    """

    def __init__(self, scores: Sequence[AnswerScore]) -> None:
        super().__init__()
        self.scores = tuple(scores)

    def forward(self, answers: Tensor, roa: Tensor) -> tuple[Tensor, Tensor]:
        read = RowAnswers(answers)
        kept = (one_hot_margin(read.hidden_logits, read.label) > 0).to(roa.dtype)
        return torch.stack([score(read) for score in self.scores], 1), roa * (1 - kept)[:, None, None]


class Perturbed(nn.Module):
    """Images (N, C, H, W) to `GRID` x `GRID` copies of each (N, M, C, H, W), every one blurred at another place.

    The places are those of perturbation saliency (Greydanus et al. 2018, arXiv 1711.00138).
    """

    def forward(self, pixels: Tensor) -> Tensor:
        size = (pixels.shape[2], pixels.shape[3])
        places = bumps(GRID, size, like=pixels)[None, :, None]
        x, blurred = pixels[:, None], gaussian_blur(pixels, _BLUR * min(size))[:, None]
        return x + (blurred - x) * places


class Explained(nn.Module):
    """Answers to the rows and to the perturbed copies to a map (N, H, W) in [0, 1], its maximum 1 unless it is empty.

    A place counts by how much the answer's margin shrinks when it is blurred.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, answers: Tensor, perturbed: Tensor) -> Tensor:
        read = RowAnswers(answers)
        classes = perturbed.shape[2]
        label = read.label[:, None].expand(-1, GRID * GRID, -1).reshape(-1, classes)
        moved = one_hot_margin(perturbed.reshape(-1, classes), label).reshape(-1, GRID * GRID)
        drop = F.relu(one_hot_margin(read.logits, read.label)[:, None] - moved)
        drawn = resize_bilinear(drop.reshape(-1, 1, GRID, GRID), self.size)[:, 0]
        return drawn / drawn.amax((1, 2), keepdim=True).clamp_min(1e-12)
