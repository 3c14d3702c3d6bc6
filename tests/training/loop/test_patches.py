"""Patches in training: on the images that are named, at one place each, and harder to answer than random ones."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training.attacks.margin import margin
from training.attacks.patch import patch_side
from training.loop.patches import with_worst_obstacles, with_worst_patches
from training.loop.task_losses import attacked, task_losses
from training.models.resnet import SmallResNet
from training.recipes.training import Stage, WorstPatches
from training.util.module_modes import frozen, seeded
from training.util.signatures import Predict

ROWS = torch.tensor([5, 0, 3])


def bright(x: Tensor) -> Tensor:
    """Logits of two classes by the brightness of the middle: patches there count, others do not."""
    middle = x[:, :, 12:20, 12:20].mean((1, 2, 3))
    return torch.stack([middle, 0.5 - middle], 1)


def grey(n: int = 8) -> Tensor:
    return 0.3 + 0.4 * torch.rand(n, 3, 32, 32, generator=seeded(1))


def test_the_named_images_have_a_patch_in_the_range_of_colours_and_the_others_are_as_they_were() -> None:
    x = grey()
    made = with_worst_patches(bright, x, torch.zeros(8).long(), WorstPatches(), rows=ROWS, generator=seeded(0))
    changed = (made != x).any(1)
    assert changed.flatten(1).any(1).nonzero().flatten().tolist() == [0, 3, 5]
    assert changed.float().mean((1, 2)).max() <= patch_side(32) ** 2 / 32**2 + 0.02
    assert made.min() >= 0
    assert made.max() <= 1


def test_no_row_leaves_the_batch_as_it_is() -> None:
    x, none = grey(), torch.tensor([], dtype=torch.long)
    assert with_worst_patches(bright, x, torch.zeros(8).long(), WorstPatches(), rows=none, generator=seeded(0)) is x
    assert with_worst_obstacles(bright, x, torch.zeros(8).long(), tries=2, rows=none, generator=seeded(0)) is x


def test_places_and_steps_lower_the_margin() -> None:
    x, y, rows = grey(64), torch.zeros(64).long(), torch.arange(64)

    def reached(places: int, steps: int) -> float:
        settings = WorstPatches(places=places, steps=steps)
        made = with_worst_patches(bright, x, y, settings, rows=rows, generator=seeded(0))
        return float(margin(bright(made), y).mean())

    assert reached(6, 1) < reached(1, 1)
    assert reached(1, 6) < reached(1, 1)


def test_the_worst_of_more_obstacles_is_worse() -> None:
    x, y, rows = grey(64), torch.zeros(64).long(), torch.arange(64)
    one, six = (
        margin(bright(with_worst_obstacles(bright, x, y, tries=tries, rows=rows, generator=seeded(0))), y).mean()
        for tries in (1, 6)
    )
    assert six < one


def test_masks_patches_and_obstacles_have_images_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage.model_validate(
        {
            "name": "all",
            "epochs": 1,
            "lr": 0.1,
            "worst_masks": {"fraction": 0.25, "masks_per_axis": 2},
            "worst_patches": {"fraction": 0.5, "obstacles": 0.125},
        }
    )
    taken: dict[str, list[int]] = {}

    def noting(name: str) -> object:
        def note(_predict: Predict, x: Tensor, *_more: object, rows: Tensor, **_settings: object) -> Tensor:
            taken[name] = rows.tolist()
            return x

        return note

    for name in ("with_worst_pairs", "with_worst_patches", "with_worst_obstacles"):
        monkeypatch.setattr(f"training.loop.task_losses.{name}", noting(name))
    attacked(stage, bright, grey(16), torch.zeros(16).long(), seeded(0))
    assert [len(rows) for rows in taken.values()] == [4, 8, 2]
    assert len({row for rows in taken.values() for row in rows}) == 14


def test_a_stage_trains_on_its_patches(trained: SmallResNet, test_images: tuple[Tensor, Tensor]) -> None:
    x, y = (each[:8] for each in test_images)
    stage = Stage.model_validate({"name": "s", "epochs": 1, "lr": 0.1, "worst_patches": {"fraction": 1.0}})
    with frozen(trained) as network:
        patched = attacked(stage, network, x, y, seeded(0))
        loss = task_losses(stage, network, x, patched, y)["ce"]
        assert loss > task_losses(stage, network, x, x, y)["ce"]
        torch.testing.assert_close(loss, F.cross_entropy(network(patched), y))


@pytest.mark.parametrize(
    ("stage", "why"),
    [
        ({"worst_patches": {}, "adversary": {}}, "worst_masks and worst_patches are of standard training"),
        ({"worst_patches": {"fraction": 0.8}, "worst_masks": {"fraction": 0.3}}, "shares of one batch"),
        ({"worst_patches": {"fraction": 0.8, "obstacles": 0.3}}, "shares of one batch"),
    ],
)
def test_shares_that_do_not_fit_are_refused(stage: dict[str, object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Stage.model_validate({"name": "s", "epochs": 1, "lr": 0.1, **stage})
