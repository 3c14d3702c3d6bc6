from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gateway.core.masks import MaskSet
from training.attacks.masks import with_worst_pairs, worst_pairs
from training.imaging.inpaint import inpaint
from training.loop.task_losses import attacked, task_losses
from training.models.resnet import SmallResNet
from training.recipes.training import Stage
from training.util.module_modes import frozen, seeded

MASKS = MaskSet(16, 16, 3, 3)


def bright_spots(x: Tensor) -> Tensor:
    """Logits (N, 2) of whether something is bright: the first class needs any of the spots."""
    spots = (x[:, 0] > 0.9).float().sum((1, 2))
    return torch.stack([spots, torch.full_like(spots, 0.5)], 1)


def test_the_greedy_pair_hides_what_the_label_rests_on() -> None:
    x = torch.full((2, 1, 16, 16), 0.2)
    x[0, 0, 1, 1] = x[0, 0, 14, 14] = 1.0
    x[1, 0, 8, 8] = 1.0
    hidden = worst_pairs(bright_spots, x, torch.tensor([0, 0]), MASKS)
    assert hidden[0, 1, 1] == hidden[0, 14, 14] == hidden[1, 8, 8] == 1
    assert bright_spots(inpaint(x, hidden))[:, 0].tolist() == [0, 0]


def test_the_second_mask_is_the_worst_beside_the_first(
    trained: SmallResNet, test_images: tuple[Tensor, Tensor]
) -> None:
    x, y = (each[:8] for each in test_images)
    masks = MaskSet(x.shape[2], x.shape[3], 3, 3)
    singles = torch.from_numpy(masks.singles().copy())
    with frozen(trained) as network, torch.no_grad():
        hidden = worst_pairs(network, x, y, masks)

        def losses(mask: Tensor) -> Tensor:
            return F.cross_entropy(network(inpaint(x, mask.expand(len(x), *x.shape[2:]))), y, reduction="none")

        first = torch.stack([losses(mask) for mask in singles]).argmax(0)
        for i in range(len(x)):
            beside = [torch.maximum(singles[first[i]], mask) for mask in singles]
            worst = max(beside, key=lambda mask: float(losses(mask)[i]))
            assert torch.equal(hidden[i], worst)


def test_only_the_rows_that_are_named_are_masked() -> None:
    x, rows = torch.rand(8, 1, 16, 16, generator=seeded(0)), torch.tensor([6, 1, 2])
    made = with_worst_pairs(bright_spots, x, torch.zeros(8).long(), MASKS, rows=rows, generator=seeded(1))
    assert (made != x).flatten(1).any(1).nonzero().flatten().tolist() == [1, 2, 6]


def test_a_stage_trains_behind_its_worst_masks(trained: SmallResNet, test_images: tuple[Tensor, Tensor]) -> None:
    x, y = (each[:8] for each in test_images)
    stage = Stage.model_validate({"name": "s", "epochs": 1, "lr": 0.1, "worst_masks": {"fraction": 1.0}})
    with frozen(trained) as network:
        masked = attacked(stage, network, x, y, seeded(0))
        loss = task_losses(stage, network, x, masked, y)["ce"]
        assert loss > task_losses(stage, network, x, x, y)["ce"]
        torch.testing.assert_close(loss, F.cross_entropy(network(masked), y))


def test_training_behind_worst_masks_lowers_the_loss_there(
    trained: SmallResNet, test_images: tuple[Tensor, Tensor]
) -> None:
    network, (x, y) = copy.deepcopy(trained), (each[:16] for each in test_images)
    masks, optimiser = MaskSet(x.shape[2], x.shape[3], 3, 2), torch.optim.Adam(network.parameters(), lr=2e-3)

    def loss() -> Tensor:
        return F.cross_entropy(network(inpaint(x, worst_pairs(network, x, y, masks))), y)

    network.eval().requires_grad_()
    before = float(loss().detach())
    for _ in range(15):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
    after = float(loss().detach())
    assert after < before


def test_a_stage_has_worst_masks_or_an_attack() -> None:
    with pytest.raises(ValueError, match="worst_masks and worst_patches are of standard training"):
        Stage.model_validate({"name": "s", "epochs": 1, "lr": 0.1, "worst_masks": {}, "adversary": {}})


def test_candidates_are_fewer_masks_to_choose_from() -> None:
    x = torch.rand(4, 1, 16, 16, generator=seeded(0))
    seen = []

    def counted(images: Tensor) -> Tensor:
        seen.append(len(images))
        return bright_spots(images)

    hidden = worst_pairs(counted, x, torch.zeros(4).long(), MASKS, candidates=2, generator=seeded(1))
    assert len(seen) == 4
    singles = torch.from_numpy(MASKS.singles().copy())
    unions = [torch.maximum(a, b) for a in singles for b in singles]
    assert all(any(torch.equal(mask, union) for union in unions) for mask in hidden)
