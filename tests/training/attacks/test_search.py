"""The search's own rules, on hinges whose gradients are known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from training.attacks.search import Ball, Found, _Combiner, descend

X = torch.full((3, 1, 1, 4), 0.5)
# Slopes of two conditions: neither parallel nor orthogonal.
ONE, TWO = torch.tensor([3.0, 0, 0, 0]), torch.tensor([1.0, 1, 0, 0])


def hinge(x: Tensor, slope: Tensor, level: float) -> Tensor:
    """Zero where the pixels along `slope` have fallen to `level`."""
    return (x.flatten(1) @ slope - level).relu()


def direction(rule, levels: tuple[float, float], combiner: _Combiner | None = None) -> Tensor:
    leaf = X[:1].clone().requires_grad_(True)
    combined = (combiner or _Combiner(rule))([hinge(leaf, ONE, levels[0]), hinge(leaf, TWO, levels[1])], leaf)
    return combined.flatten()


def test_how_gradients_are_combined() -> None:
    unit = TWO / 2**0.5
    torch.testing.assert_close(direction("sum", (0, 0)), ONE + TWO)
    torch.testing.assert_close(direction("normalised", (0, 0)), ONE / 3 + unit)
    torch.testing.assert_close(direction("selective", (0, 0)), ONE / 3)
    torch.testing.assert_close(direction("selective", (9, 0)), unit)
    for rule in ("sum", "normalised", "selective", "orthogonal"):
        assert (direction(rule, (9, 9)) == 0).all()


def test_orthogonal_leaves_a_met_condition_alone() -> None:
    """Once the first is met, nothing goes along its last gradient any more; before, both are pulled."""
    combiner = _Combiner("orthogonal")
    torch.testing.assert_close(direction("orthogonal", (0, 0), combiner), ONE / 3 + TWO / 2**0.5)
    left = direction("orthogonal", (9, 0), combiner)
    assert left @ ONE == 0
    torch.testing.assert_close(left, torch.tensor([0, 2**-0.5, 0, 0]))


def run(hinges, judge, steps: int = 12, **changed: Any) -> Found:
    return descend(Ball(X, 0.1), X, hinges, judge, steps=steps, **changed)


@pytest.mark.parametrize("rule", ["sum", "normalised", "selective", "orthogonal"])
def test_both_conditions_are_met_where_they_can_be(rule) -> None:
    found = run(
        lambda x, _rows: [hinge(x, ONE, 1.3), hinge(x, TWO, 0.85)],
        lambda x, _rows: torch.zeros(len(x)).bool(),
        combine=rule,
    )
    x = found.parameters
    assert (hinge(x, ONE, 1.3) == 0).all()
    assert (hinge(x, TWO, 0.85) == 0).all()
    assert (x - X).abs().max() <= 0.1 + 1e-6


def test_rows_that_are_done_are_dropped_and_the_best_are_judged() -> None:
    asked, judged = [], []

    def hinges(x: Tensor, rows: Tensor) -> list[Tensor]:
        asked.append(rows.tolist())
        return [hinge(x, ONE, 0.0)]

    def judge(x: Tensor, rows: Tensor) -> Tensor:
        judged.append((x, rows.tolist()))
        return rows == 1 if len(judged) == 1 else torch.zeros(len(rows)).bool()

    run(hinges, judge)
    assert asked[:5] == [[0, 1, 2]] * 5
    assert asked[5:] == [[0, 2]] * 8
    first, _ = judged[0]
    torch.testing.assert_close(first[..., 0].flatten(), torch.full((3,), 0.4))  # the corner, reached before step 5
    # Nothing is better than the corner: no later image is worth a judgement.
    assert len(judged) == 1


def test_samples_are_averaged() -> None:
    """A defence that tosses a coin: with both outcomes in the mean, the pixel they disagree on does not move."""
    toss = [0]

    def hinges(x: Tensor, _rows: Tensor) -> list[Tensor]:
        toss[0] += 1
        sign = 1 if toss[0] % 2 else -1
        return [(x.flatten(1) @ torch.tensor([1.0, sign, 0, 0]) + 5).relu()]

    found = run(hinges, lambda x, _rows: torch.zeros(len(x)).bool(), samples=2, steps=4)
    assert toss[0] == 10
    torch.testing.assert_close(found.parameters[:, 0, 0, 1], torch.full((3,), 0.5))
    assert (found.parameters[:, 0, 0, 0] < 0.45).all()
