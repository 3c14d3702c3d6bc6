from __future__ import annotations

import pytest
import torch

from training.analysis.sensitivity import sensitivity_report


@pytest.fixture(scope="module")
def rows(trained, test_images):
    x, y = test_images
    return sensitivity_report(trained, x, y, eps=8 / 255, steps=5)


def test_one_row_a_layer(rows, trained) -> None:
    assert {row["layer"]: row["neurons"] for row in rows} == trained.tap_channels
    for row in rows:
        assert row["absolute_ratio"] == pytest.approx(row["absolute"] / row["absolute_gaussian"])
        assert row["relative_ratio"] == pytest.approx(row["relative"] / row["relative_gaussian"])


def test_an_attack_moves_neurons_more_than_noise_of_its_size(rows) -> None:
    """From the first stage on; it is the last layer that an attack is after."""
    assert all(row["absolute_ratio"] > 1 for row in rows[1:])
    assert rows[-1]["absolute_ratio"] > 2


def test_nothing_moves_without_a_budget(trained, test_images) -> None:
    x, y = test_images
    clean = trained.taps(x)[1]
    for row in sensitivity_report(trained, x, y, eps=0.0, steps=2):
        assert row["absolute"] == row["absolute_gaussian"] == row["absolute_ratio"] == 0.0
        # A neuron that is dead on clean images counts as 1 in the relative form, moved or not.
        dead = (clean[row["layer"]].abs().mean((0, 2, 3)) <= 1e-8).float().mean().item()
        assert row["relative"] == row["relative_gaussian"] == pytest.approx(dead)


def test_same_seed_same_rows_and_the_network_is_left_alone(rows, trained, test_images) -> None:
    x, y = test_images
    before = {key: value.clone() for key, value in trained.state_dict().items()}
    trained.train()
    try:
        assert sensitivity_report(trained, x, y, eps=8 / 255, steps=5) == rows
        assert trained.training
    finally:
        trained.eval()
    assert all(torch.equal(value, before[key]) for key, value in trained.state_dict().items())
