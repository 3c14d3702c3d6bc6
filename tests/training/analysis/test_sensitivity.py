from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.training.toy import random_network
from training.analysis.sensitivity import (
    layer_changes,
    masking_report,
    sensitivity_report,
    sensitivity_study,
    silenced,
    tap_modules,
)
from training.errors import TrainingError
from training.losses.sns import neuron_sensitivity
from training.models.resnet import SmallResNet


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


def test_figures_are_those_of_the_definition(trained, test_images) -> None:
    """In batches or not; the most sensitive neurons come first."""
    x, y = test_images
    other, noisy = (x + 0.03).clamp(0, 1), (x - 0.01).clamp(0, 1)
    changes = layer_changes(trained, x, other, noisy)
    for relative, kind in ((False, "absolute"), (True, "relative")):
        for key, moved in ((kind, other), (f"{kind}_gaussian", noisy)):
            expected = neuron_sensitivity(trained.taps(x)[1], trained.taps(moved)[1], relative=relative)
            for name, of in changes.items():
                found = of.sensitivity(torch.full((1, len(x)), 1 / len(x)))[key][0]
                torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-6)
    for row in sensitivity_report(trained, x, y, eps=4 / 255, steps=2, top=3):
        for kind, neurons in row["top"].items():
            assert len(neurons) == 3
            values = [neuron[kind] for neuron in neurons]
            assert values == sorted(values, reverse=True)
            assert values[0] >= row[kind]


def test_intervals_hold_the_figure_and_widen_with_fewer_groups(rows, trained, test_images) -> None:
    x, y = test_images
    by_group = sensitivity_report(trained, x, y, eps=8 / 255, steps=5, group=np.arange(len(x)) % 4)
    for row, grouped in zip(rows, by_group, strict=True):
        for key in ("absolute", "relative", "absolute_gaussian", "relative_ratio"):
            low, high = row[f"{key}_interval"]
            assert low <= row[key] <= high
            assert grouped[key] == row[key]
        low, high = row["absolute_interval"]
        assert 0 < high - low < row["absolute"]


def test_every_convolution_may_be_asked(trained, test_images) -> None:
    x, y = test_images
    rows = sensitivity_report(trained, x[:16], y[:16], eps=4 / 255, steps=1, layers="all")
    named = {row["layer"] for row in rows}
    assert set(trained.tap_channels) < named
    assert len(named) > 2 * len(trained.tap_channels)


# Masking.


def test_taps_are_found_and_silenced() -> None:
    network, x = random_network(0), torch.rand(3, 3, 16, 16)
    clean = network.taps(x)[1]
    modules = tap_modules(network, x)
    for name, module in modules.items():
        with silenced(module, torch.tensor([0, 2])):
            masked = network.taps(x)[1]
        assert masked[name][:, [0, 2]].eq(0).all()
        assert torch.equal(masked[name][:, [1, 3]], clean[name][:, [1, 3]])
        before = list(clean)[: list(clean).index(name)]
        assert all(torch.equal(masked[other], clean[other]) for other in before)
    assert torch.equal(network.taps(x)[1]["stage3"], clean["stage3"])


class Counting(SmallResNet):
    """A tap that no module gives."""

    def taps(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logits, taps = super().taps(x)
        return logits, taps | {"stage3": taps["stage3"] * 1.0}


def test_a_tap_that_no_module_gives_is_said() -> None:
    network = Counting(classes=3, width=4, mean=[0.5] * 3, std=[0.2] * 3).eval()
    with pytest.raises(TrainingError, match="stage3"):
        tap_modules(network, torch.rand(1, 3, 16, 16))


def test_masking_in_closed_form() -> None:
    """Only channel 1 of the last stage is read by the head: masking it leaves one answer, masking others nothing."""
    network = random_network(0)
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.zero_()
        network.head.weight[1, 1], network.head.bias[0] = 1.0, 1e-4
    x = torch.rand(20, 3, 16, 16)
    y = network(x).argmax(1)
    assert (y == 1).float().mean() > 0.5
    sensitivity = {name: torch.arange(c).float() for name, c in network.tap_channels.items()}
    sensitivity["stage3"] = torch.eye(network.tap_channels["stage3"])[1]
    report = masking_report(network, sensitivity, x, y, x.flip(0), share=0.05, draws=5)
    row = report["layers"][-1]
    assert report["clean"] == 1.0
    assert row["top"] == [1]
    assert row["masked"] == 1
    assert row["clean"]["sensitive"] == pytest.approx((y == 0).float().mean().item())
    assert row["clean"]["random_range"][1] == 1.0
    assert row["attacked"]["random_range"][1] == pytest.approx(report["attacked"])


def test_a_study_is_json_and_ranks_on_other_images(trained, test_images) -> None:
    x, y = test_images
    study = sensitivity_study(trained, x[:32], y[:32], (x[32:64], y[32:64]), eps=8 / 255, steps=2, draws=2, top=2)
    assert json.loads(json.dumps(study)) == study
    masked = {row["layer"]: row for row in study["masking"]["layers"]}
    assert set(masked) == set(trained.tap_channels)
    assert study["masking"]["attacked"] < study["masking"]["clean"]
    for module in trained.modules():
        assert not isinstance(module, nn.Module) or not module._forward_hooks
