from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.training.toy import random_network
from training.defence.regions import class_activation_map, region_of_importance


def test_class_activation_map_is_grad_cam() -> None:
    """With global average pooling and a linear head, weights are the logit's gradient by channel times h w."""
    network, x = random_network(0), torch.rand(2, 3, 16, 16)
    features = network.taps(x)[1]["stage3"].detach().requires_grad_()
    label = torch.tensor([1, 3])
    logits = network.head(features.mean((2, 3)))
    (gradient,) = torch.autograd.grad(logits.gather(1, label[:, None]).sum(), features)
    expected = F.relu((features * gradient.mean((2, 3), keepdim=True) * 16).sum(1, keepdim=True))
    one_hot = F.one_hot(label, 4).float()
    cam = class_activation_map(features, network.head.weight, one_hot, (4, 4))
    torch.testing.assert_close(cam, expected[:, 0], atol=1e-5, rtol=1e-4)
    assert class_activation_map(features, network.head.weight, one_hot, (16, 16)).shape == (2, 16, 16)


def test_region_of_importance_is_the_level_set_and_empty_on_a_zero_map() -> None:
    cam = torch.zeros(2, 3, 3)
    cam[0] = torch.tensor([[0.0, 1.0, 2.0], [3.9, 4.0, 4.1], [10.0, 5.0, 0.0]])
    roi = region_of_importance(cam)
    assert roi[0].tolist() == [[0, 0, 0], [0, 1, 1], [1, 1, 0]]
    assert roi[1].eq(0).all()
    assert torch.equal(region_of_importance(1000 * cam), roi)
