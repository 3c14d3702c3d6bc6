"""A maker of patches who knows that masks vote: where and as what a patch meets the least objection."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from gateway.core.masks import MaskSet
from gateway.core.small_field import WindowSet
from gateway.core.votes import all_objections, margins, objections
from tests.training.small_fields import random_small_field
from training.attacks.joint_run import Seen
from training.attacks.voting import Tolerated, least_objections, outvoted, outvoted_by
from training.defence.graph import DefenceGraph
from training.util.module_modes import seeded

MASKS = MaskSet(12, 12, 3, 3)
SIDE = 3


def drawn(n: int = 4, k: int = 5) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 2, (n, len(MASKS), k))


def test_the_least_objection_over_places_and_labels_is_what_the_margin_guarantees() -> None:
    logits, label = drawn(), np.array([0, 1, 2, 3])
    least = least_objections(logits, label, MASKS, SIDE)
    assert least.shape == (4, 100, 5)
    assert np.isinf(least[np.arange(4), :, label]).all()
    bound = margins(label, logits)
    assert (least.min((1, 2)) >= bound - 1e-12).all()  # a place may be behind several masks
    for image in range(4):
        for target in range(5):
            if target == label[image]:
                continue
            leads, _ = objections(np.array([target]), logits[image][None])
            top, left, *_ = MASKS.boxes[4]
            place = (top + 1) * 10 + left + 1
            hides = [
                i
                for i, (y, x, h, w) in enumerate(MASKS.boxes)
                if y <= top + 1 and x <= left + 1 and top + 1 + SIDE <= y + h and left + 1 + SIDE <= x + w
            ]
            assert 4 in hides
            np.testing.assert_allclose(least[image, place, target], leads[0, hides].max())


def test_patches_lie_where_they_are_tolerated() -> None:
    logits, label = drawn(), np.array([0, 1, 2, 3])
    x = torch.rand(4, 3, 12, 12, generator=seeded(0))
    least = least_objections(logits, label, MASKS, SIDE)
    limit = float(np.quantile(least[np.isfinite(least)], 0.02))
    aims = Tolerated(x, least, limit, width=12, side=SIDE, kind="noisy", generator=seeded(1))
    ranked = torch.stack([torch.tensor([k for k in range(5) if k != own]) for own in label])
    ordered = aims.order(ranked)
    tolerated = np.asarray((least < limit).any(1))
    assert 0 < tolerated.sum() < tolerated.size - 4
    for image in range(4):
        assert sorted(ordered[image].tolist()) == ranked[image].tolist()
        kept = [bool(tolerated[image, k]) for k in ordered[image].tolist()]
        assert kept == sorted(kept, reverse=True)
    for number in range(4):
        target = ordered[:, number]
        places = set()
        for _ in range(20):
            patches = aims.draw(target)
            place = (patches.top * 10 + patches.left).numpy()
            value = least[np.arange(4), place, target.numpy()]
            has = np.asarray(tolerated[np.arange(4), target.numpy()])
            assert (value[has] < limit).all()
            np.testing.assert_allclose(value[~has], least[np.arange(4), :, target.numpy()].min(1)[~has])
            places.add(tuple(place))
        assert len(places) > 1 or not has.any()


def test_the_hinge_is_zero_once_no_mask_objects() -> None:
    class Network(nn.Module):
        """Says 1 with the brightness of the upper left corner, else 0."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            corner = x[:, :, :6, :6].mean((1, 2, 3))
            return torch.stack([torch.full_like(corner, 2.0), 4 * corner], 1)

    defence = DefenceGraph.__new__(DefenceGraph)
    nn.Module.__init__(defence)
    defence.network = Network()  # type: ignore[assignment]
    nothing = torch.zeros(2, 0)
    seen = Seen(nothing, {}, nothing, nothing)
    x = torch.stack([torch.zeros(3, 12, 12), torch.ones(3, 12, 12)]).requires_grad_(True)
    label = torch.tensor([0, 0])
    (hinge,) = outvoted(MASKS, 0.0)(defence, x, seen, torch.tensor([1, 1]), label)
    assert hinge[0] > 0
    assert hinge[1] == 0
    (gradient,) = torch.autograd.grad(hinge.sum(), x)
    assert gradient[0, :, :6, :6].abs().sum() > 0
    assert gradient[1].abs().sum() == 0


def test_windows_are_outvoted_where_none_objects_and_the_whole_image_does_not() -> None:
    side, part = 16, 0.3
    network = random_small_field(classes=4, side=side)
    hidden = WindowSet(network.spec, side, side, 3)
    x = torch.rand(12, 3, side, side, generator=seeded(0)).requires_grad_(True)
    target, label = torch.arange(12) % 4, torch.zeros(12, dtype=torch.long)
    nothing = torch.zeros(12, 0)
    seen = Seen(nothing, {}, nothing, nothing)
    cells = network.cells(x).detach().numpy()
    for whole in (None, part):
        heard = all_objections(target.numpy(), hidden.logits(cells), hidden.whole(cells), whole)[0].max(1)
        limit = float(np.median(heard))
        (hinge,) = outvoted_by(network, hidden, limit, whole)(
            DefenceGraph.__new__(DefenceGraph), x, seen, target, label
        )
        met = hinge.detach().numpy() == 0
        assert (heard[met] < limit).all()
        assert (heard[~met] > limit - 0.021).all()
        (gradient,) = torch.autograd.grad(hinge.sum(), x)
        np.testing.assert_array_equal(gradient.flatten(1).abs().sum(1).numpy() > 0, hinge.detach().numpy() > 0)


def test_where_a_network_is_sure_the_hinge_still_has_a_gradient() -> None:
    network = random_small_field(classes=4, side=16)
    with torch.no_grad():
        network.head.weight.mul_(500)
    hidden = WindowSet(network.spec, 16, 16, 3)
    x = torch.rand(1, 3, 16, 16, generator=seeded(1)).requires_grad_(True)
    nothing = torch.zeros(1, 0)
    target = network(x).argmin(1)
    hinges = outvoted_by(network, hidden, 0.5, 0.3)
    (hinge,) = hinges(DefenceGraph.__new__(DefenceGraph), x, Seen(nothing, {}, nothing, nothing), target, target)
    (gradient,) = torch.autograd.grad(hinge.sum(), x)
    assert gradient.abs().max() > 1e-3
