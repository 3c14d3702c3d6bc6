"""Class distances of few images of many features."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.defence.scores.class_distance import LEAST_SHRINKAGE, ClassDistance, shrunken_covariance
from training.defence.scores.context import BenignFeatures


def written_out(x: np.ndarray) -> np.ndarray:
    """Ledoit and Wolf's estimator, term by term."""
    n, p = x.shape
    sample = sum(np.outer(row, row) for row in x) / n
    target = np.trace(sample) / p * np.eye(p)
    distance = ((sample - target) ** 2).sum() / p
    noise = sum(((np.outer(row, row) - sample) ** 2).sum() / p for row in x) / n**2
    share = max(min(noise, distance) / distance, LEAST_SHRINKAGE)
    return np.asarray(share * target + (1 - share) * sample)


@pytest.mark.parametrize(("n", "p"), [(12, 30), (500, 6)])
def test_the_covariance_is_ledoit_and_wolfs(n: int, p: int) -> None:
    x = np.random.default_rng(0).standard_normal((n, p)) * np.linspace(0.1, 3, p)
    np.testing.assert_allclose(shrunken_covariance(torch.from_numpy(x)), written_out(x), rtol=1e-10, atol=1e-12)


def test_few_images_are_drawn_further_to_the_mean_variance() -> None:
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2000, 40)) * np.linspace(0.1, 3, 40))
    exact = torch.diag(torch.linspace(0.1, 3, 40).double() ** 2)

    def error(n: int) -> float:
        plain = x[:n].T @ x[:n] / n
        return float((shrunken_covariance(x[:n]) - exact).norm() / (plain - exact).norm())

    assert error(30) < 0.8


def distances(made: dict[str, torch.Tensor], features: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (features @ made["whiten"].T - made["class_means"][y]).pow(2).sum(1)


def test_images_that_give_the_means_are_compared_with_the_others_of_their_class() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 12  # five of each class, as many features as images
    centres = 3 * torch.randn(12, 50, generator=generator)
    seen, fresh = (centres[y] + torch.randn(60, 50, generator=generator) for _ in range(2))
    made = ClassDistance().fit(BenignFeatures("last", 12, seen, y, seen, y, same=True))
    ratio = distances(made, fresh, y).mean() / 50
    assert made["whiten"].dtype == torch.float32
    assert 0.5 < ratio < 2  # without leaving an image out of its mean it would be near 1.5 times as large


def test_one_image_a_class_gives_no_class_means() -> None:
    score = ClassDistance()
    assert score.lacks(np.arange(0), np.arange(40)) == (
        "100 % of the select images have fewer than two others of their class for its mean"
    )
    assert score.lacks(np.arange(0), np.arange(40) % 8) is None
    assert score.lacks(np.arange(40) % 8, np.arange(8)) is None
    assert score.lacks(np.arange(4), np.arange(8)) is not None
