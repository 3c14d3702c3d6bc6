from __future__ import annotations

import torch
from torch import nn

from training.analysis.turning import fit_probes, pooled_responses, prefers, turning_layer


def test_the_turning_layer_is_the_first_after_which_all_have_turned() -> None:
    turned = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 0]], dtype=torch.bool)
    assert turning_layer(turned).tolist() == [0, 1, 2, 3, 3]


def test_probes_read_what_a_layer_knows() -> None:
    """The class is the brighter half; a convolution that keeps the image knows, one that forgets it guesses."""
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(64, 2))
    with torch.no_grad():
        network[0].weight.fill_(1.0)
        network[1].weight.fill_(0.0)
    y = torch.arange(80) % 2
    x = torch.rand(80, 1, 8, 8) * 0.2
    x[y == 0, :, :, :4] += 0.5
    x[y == 1, :, :, 4:] += 0.5
    probes = fit_probes(network, x, y, classes=2)
    says = prefers(probes, pooled_responses(network, x), y, 1 - y)
    assert says[:, 0].all()
    # What forgets the image prefers one class whatever it is shown: right for that class, wrong for the other.
    assert says[y == 0, 1].unique().numel() == 1
    assert says[y == 1, 1].unique().numel() == 1
    assert not (says[y == 0, 1].any() and says[y == 1, 1].any())
