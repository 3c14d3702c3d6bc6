from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.analysis.responses import responses
from training.export.fold import folded
from training.models import ModelSpec, build_model


class Functional(nn.Module):
    """Convolutions whose activations are functions, in place, or missing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.norm = nn.BatchNorm2d(3)
        self.rectify = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        x = self.rectify(self.norm(self.b(x)))
        return self.c(x).mean((2, 3))


def test_a_response_follows_normalisation_and_activation() -> None:
    network, x = Functional().eval(), torch.rand(2, 3, 8, 8)
    logits, found = responses(network, x)
    a = F.relu(network.a(x))
    b = F.relu(network.norm(network.b(a)))
    assert list(found) == ["a", "b", "c"]
    assert torch.allclose(found["a"], a)
    assert torch.allclose(found["b"], b)
    assert torch.allclose(found["c"], network.c(b))
    assert torch.allclose(logits, network(x))
    assert not network.a._forward_hooks


def test_every_convolution_and_tap_in_order_whether_folded_or_not() -> None:
    network = build_model(ModelSpec(width=4), classes=3, mean=[0.5] * 3, std=[0.2] * 3).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.uniform_(-0.2, 0.2)
                module.running_var.uniform_(0.5, 2.0)
    x = torch.rand(2, 3, 16, 16)
    _, found = responses(network, x)
    assert sum(isinstance(m, nn.Conv2d) for m in network.modules()) + 3 == len(found)  # stages end in a sum
    names = list(found)
    taps = network.taps(x)[1]
    assert [name for name in names if name in taps] == list(taps)
    assert names.index("stage1") < names.index("stages.1.0.conv1") < names.index("stage2")
    assert all(torch.allclose(found[name], taps[name]) for name in taps)
    for name, response in responses(folded(network), x)[1].items():
        assert torch.allclose(response, found[name], atol=1e-4), name


def test_hooks_are_gone_after_an_error() -> None:
    network = Functional()
    with pytest.raises(RuntimeError):
        responses(network, torch.rand(2, 5, 8, 8))
    assert not any(m._forward_hooks for m in network.modules())
