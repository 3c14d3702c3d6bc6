from __future__ import annotations

import torch

from training.defence.signals.deviation import normalised, top_mean, view_change
from training.defence.signals.views import shift


def test_view_change_hand_computed() -> None:
    """Two images, two views: the mean over views of |mean of view - mean of input|, by neuron."""
    own = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    views = torch.tensor([[2.0, 2.0], [3.0, 3.0], [-1.0, 2.5], [3.0, 8.0]])  # view 0 of both images, then view 1
    change = view_change(own[:, :, None, None].expand(2, 2, 3, 3), views[:, :, None, None].expand(4, 2, 3, 3))
    torch.testing.assert_close(change, torch.tensor([[1.5, 0.25], [0.0, 2.5]]))


def test_same_views_change_nothing() -> None:
    activation = torch.randn(3, 4, 5, 5)
    assert view_change(activation, activation.repeat(2, 1, 1, 1)).eq(0).all()


def test_a_feature_that_moves_along_is_no_change() -> None:
    activation = torch.zeros(1, 2, 8, 8)
    activation[:, :, 3:5, 3:5] = torch.rand(1, 2, 2, 2)
    moved = torch.cat([shift(activation, 1, 1), shift(activation, -1, -1)])
    torch.testing.assert_close(view_change(activation, moved), torch.zeros(1, 2), atol=1e-7, rtol=0)


def test_normalised_benign_changes_have_mean_0_and_std_1() -> None:
    change = torch.rand(500, 4) * torch.tensor([1.0, 5.0, 0.1, 2.0]) + 3
    z = normalised(change, change.mean(0), change.std(0))
    torch.testing.assert_close(z.mean(0), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std(0), torch.ones(4))


def test_top_mean_hand_computed() -> None:
    z = torch.arange(20.0).flip(0).repeat(2, 1)
    assert top_mean(z, 0.1).tolist() == [18.5, 18.5]
    assert top_mean(z, 0.01).tolist() == [19, 19]  # at least one
    torch.testing.assert_close(top_mean(z, 1.0), z.mean(1))
