from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from studies.localisers import (
    Entropy,
    TextureColourEntropy,
    Windows,
    agreed_window,
    agreement,
    averaged,
    candidates,
    energy_and_features,
    feature_norm,
    hidden,
    local_entropy,
)
from tests.training.toy import square
from training.defence.localisers import LOCALISERS
from training.defence.localisers.texture_colour import colourfulness, texture
from training.defence.localisers.windows import WindowLocaliser, contrasts, together, window_sides
from training.imaging.inpaint import inpaint
from training.util.module_modes import seeded


def union_share(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / torch.maximum(a, b).sum())


def windows(*places: tuple[int, int, int]) -> Windows:
    """One image's windows of (top, left, side); earlier ones have higher scores."""
    top, left, side = (torch.tensor([column]) for column in zip(*places, strict=True))
    return Windows(top, left, side, -torch.arange(len(places))[None].float())


def test_windows_as_masks_and_lists() -> None:
    some = windows((0, 0, 3), (2, 4, 2), (5, 1, 3))
    masks = some.masks((8, 10))
    assert masks.shape == (1, 3, 8, 10)
    for mask, (top, left, side) in zip(masks[0], [(0, 0, 3), (2, 4, 2), (5, 1, 3)], strict=True):
        assert mask.sum() == side**2
        assert mask[top : top + side, left : left + side].all()
    assert some.first(2).top.tolist() == [[0, 2]]
    assert some.take(torch.tensor([[2, 0]])).left.tolist() == [[1, 0]]
    assert Windows.joined([some.first(1), some]).side.tolist() == [[3, 3, 2, 3]]


def test_feature_norm() -> None:
    features = torch.tensor([3.0, 4.0])[None, :, None, None].expand(1, 2, 4, 4)
    torch.testing.assert_close(feature_norm(features, (8, 10)), torch.full((1, 8, 10), 5.0))


def test_local_entropy_in_closed_form() -> None:
    halves = torch.zeros(1, 3, 32, 32)
    halves[..., 16:] = 0.9
    entropy = local_entropy(halves)  # squares of 5 x 5
    assert entropy[0, :, :14].abs().max() < 1e-5, "one grey level, at the border too"
    share = torch.tensor([0.4, 0.6])
    torch.testing.assert_close(entropy[0, 10, 15], -(share * share.log2()).sum())
    every = (torch.arange(256).reshape(16, 16) % 16 / 16 + 0.01).repeat(2, 2)[None, None]
    assert local_entropy(every, share=0.16, levels=16).max() <= 4
    assert local_entropy(every, share=0.5, levels=16)[0, 16, 16] > 3.9


@pytest.mark.parametrize("size", [32, 224])
def test_the_best_window_has_the_place_and_the_side_of_what_stands_out(size: int) -> None:
    sides = window_sides(size, size)
    places = [(3, size // 2, side) for side in sides] + [(0, 0, sides[1]), (size - sides[2], size - sides[2], sides[2])]
    maps = torch.stack([square(size, *place) for place in places])
    maps = maps + 0.3 * torch.rand(maps.shape, generator=seeded(0))
    found = candidates(contrasts(maps), 1)
    assert torch.stack([found.top, found.left, found.side], 2)[:, 0].tolist() == [list(place) for place in places]


@pytest.mark.parametrize("localiser", [LOCALISERS["texture_colour"], Entropy(), TextureColourEntropy()])
def test_the_first_candidate_is_the_region_of_attack(localiser: WindowLocaliser) -> None:
    x = torch.rand(4, 3, 32, 24, generator=seeded(2))
    window, score = localiser.locate(x)
    first = candidates(localiser.window_scores(x), 1)
    assert torch.equal(first.masks((32, 24))[:, 0], window)
    assert torch.equal(first.score[:, 0], score)


def test_energy_and_features_are_means_over_windows() -> None:
    pixels, features = torch.rand(2, 3, 12, 10), torch.randn(2, 5, 12, 10)
    (found,) = energy_and_features(pixels, features, [4]).values()
    padded = F.pad(pixels, (1, 1, 1, 1), mode="replicate")
    blurred = sum(padded[:, :, i : i + 12, j : j + 10] for i in range(3) for j in range(3)) / 9
    maps = ((pixels - blurred).pow(2).sum(1), features.norm(dim=1))
    means = [F.avg_pool2d(each[:, None], 4, stride=1)[:, 0] for each in maps]
    torch.testing.assert_close(found, together(*means), rtol=1e-3, atol=1e-4)


def test_candidates_are_the_best_that_hardly_overlap() -> None:
    scores = contrasts(torch.rand(3, 24, 20, generator=seeded(1)), [4, 7])
    found = candidates(scores, 5, overlap=0.2)
    assert found.score[:, 0].tolist() == torch.cat([s.flatten(1) for s in scores.values()], 1).amax(1).tolist()
    assert (found.score.diff(dim=1) <= 0).all()
    for masks in found.masks((24, 20)):
        assert max(union_share(a, b) for a, b in itertools.combinations(masks, 2)) <= 0.2
    at = scores[int(found.side[2, 3])][2, found.top[2, 3], found.left[2, 3]]
    assert at == found.score[2, 3]


def test_where_no_window_is_left_the_first_is_repeated() -> None:
    found = candidates(contrasts(torch.rand(1, 5, 5), [4]), 3, overlap=0.0)
    assert found.top[0].unique().numel() == 1
    assert found.score[0].unique().numel() == 1


@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize("cells", [None, 3])
def test_planted_patch_is_found(size: int, cells: int | None) -> None:
    """Noise or a grid of 3 x 3 colours on smooth, dull images."""
    n, side = 6, round(0.22 * size)
    x = 0.5 + 0.3 * (torch.rand(n, 1, 4, 4, generator=seeded(3)) - 0.5).expand(-1, 3, -1, -1)
    x = F.interpolate(x, size=(size, size), mode="bilinear")
    corners = torch.randint(0, size - side + 1, (n, 2), generator=seeded(4)).tolist()
    truth = torch.stack([square(size, top, left, side) for top, left in corners])
    grid = side if cells is None else cells
    colours = F.interpolate(
        torch.rand(n, 3, grid, grid, generator=seeded(5)).round(), (side, side), mode="bilinear", align_corners=True
    )
    for image, colour, (top, left) in zip(x, colours, corners, strict=True):
        image[:, top : top + side, left : left + side] = colour
    found = candidates(contrasts(together(texture(x), colourfulness(x))), 1).masks((size, size))[:, 0]
    assert min(union_share(a, b) for a, b in zip(found, truth, strict=True)) > 0.6
    entropy = candidates(contrasts(local_entropy(x)), 1).masks((size, size))[:, 0]
    assert ((entropy * truth).sum((1, 2)) > 0.6 * truth.sum((1, 2))).all()


def test_hidden_changes_nothing_outside_the_window_and_nothing_twice() -> None:
    x = torch.rand(2, 3, 16, 16)
    some = Windows.joined([candidates(contrasts(texture(x)), 2)])
    without = hidden(x, some)
    masks = some.masks((16, 16))
    assert without.shape == (4, 3, 16, 16)
    for row, (image, window) in enumerate(itertools.product(range(2), range(2))):
        mask = masks[image, window]
        assert torch.equal(without[row], inpaint(x[image : image + 1], mask[None])[0])
        assert torch.equal(without[row][:, mask == 0], x[image][:, mask == 0])
    assert torch.equal(inpaint(without, masks.flatten(0, 1)), without)


def test_agreement_is_the_companions_belief_where_labels_are_the_same() -> None:
    own = torch.tensor([[[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 2.0, 0.0]]])
    other = torch.tensor([[[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 3.0, 0.0]]])
    believed = other.softmax(2)[0, :, 1]
    torch.testing.assert_close(agreement(own, other), torch.stack([torch.zeros(()), believed[1], believed[2]])[None])
    assert agreed_window(own, other).tolist() == [2]
    assert agreed_window(own, -other).tolist() == [0], "never agreed: the first window"


def test_averaged_is_the_weighted_mean_of_probabilities() -> None:
    logits, weight = torch.randn(3, 4, 5), torch.rand(3, 4)
    expected = (logits.softmax(2) * weight[..., None]).sum(1) / weight.sum(1, keepdim=True)
    torch.testing.assert_close(averaged(logits, weight), expected)
    torch.testing.assert_close(averaged(logits, weight).sum(1), torch.ones(3))
