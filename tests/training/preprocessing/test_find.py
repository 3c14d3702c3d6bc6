"""The preprocessing that a network was trained with is found again; options go before what is stated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from gateway.core.preprocessing import Normalisation, Preprocessing, Resize
from training.errors import PreprocessingError
from training.preprocessing.find import find, normalisations, rules
from training.preprocessing.options import DEFAULT, Options
from training.preprocessing.values import IMAGENET
from training.preprocessing.words import in_words

SIDE = 32
COLOURS = [(grey + tint, grey, grey - tint) for grey in (40, 100, 160, 215) for tint in (30, -30)]


class Nearest(nn.Module):
    """Answers with the colour of the middle that is nearest, of pixels as `normalise` gives them."""

    def __init__(self, normalise: Normalisation) -> None:
        super().__init__()
        pixels = np.array(COLOURS, np.float32)[:, :, None, None] / 255
        self.colours = torch.from_numpy(normalise.apply(pixels))[:, :, 0, 0]

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1:] == (3, SIDE, SIDE)
        middle = x[:, :, SIDE // 2 - 2 : SIDE // 2 + 2, SIDE // 2 - 2 : SIDE // 2 + 2].mean((2, 3))
        return -100 * ((middle[:, None] - self.colours) ** 2).sum(2)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], np.ndarray]:
    """Colours in the middle of wide images, others beside them."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    paths, labels = [], np.arange(24) % len(COLOURS)
    for i, label in enumerate(labels):
        image = rng.integers(0, 256, (40, 70, 3)).astype(np.uint8)
        image[10:30, 25:45] = COLOURS[label]
        paths.append(root / f"{i}.png")
        Image.fromarray(image).save(paths[-1])
    return paths, labels


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("scale", ["unit", "byte"])
def test_the_normalisation_is_found(photos: tuple[list[Path], np.ndarray], order: str, scale: str) -> None:
    wanted = Normalisation.model_validate({"channel_order": order, "scale": scale})
    found = find(Nearest(wanted), *photos, side=SIDE)
    assert found.best.normalise == wanted
    assert found.n == 24
    assert max(each.accuracy for each in found.tried) == 1.0
    assert all(0 <= each.confidence <= 1 for each in found.tried)
    assert len(found.tried) == len(normalisations()) + len(rules(SIDE)) - 1


def test_ties_go_to_what_is_stated_and_then_to_the_most_common(photos: tuple[list[Path], np.ndarray]) -> None:
    body = Nearest(Normalisation())
    assert find(body, *photos, side=SIDE).best.resize == rules(SIDE)[0]
    stated = Preprocessing(side=SIDE, resize=Resize(rule="shorter_side", filter="lanczos"))
    assert find(body, *photos, side=SIDE, stated=stated).best.resize == stated.resize


def test_labels_are_needed_and_some_are_enough(photos: tuple[list[Path], np.ndarray]) -> None:
    paths, labels = photos
    with pytest.raises(PreprocessingError, match="needs labelled images"):
        find(Nearest(Normalisation()), paths, np.full(len(labels), -1), side=SIDE)
    some = np.where(np.arange(len(labels)) < 8, labels, -1)
    assert find(Nearest(Normalisation()), paths, some, side=SIDE).n == 8


def test_a_network_that_gives_no_numbers_is_never_right(photos: tuple[list[Path], np.ndarray]) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full((len(x), len(COLOURS)), float("nan"))

    assert {each.accuracy for each in find(Broken(), *photos, side=SIDE).tried} == {0.0}


def test_options_go_before_what_is_stated() -> None:
    stated = Preprocessing(side=224, resize=Resize(rule="shorter_side", resize_to=256), source="a file")
    assert Options().over(stated) == stated
    smaller = Options(size=112, filter="bicubic").over(stated)
    assert (smaller.side, smaller.resize.resize_to, smaller.resize.filter) == (112, 128, "bicubic")
    assert smaller.source == "a file, --size, --filter"
    other = Options(resize="exact", antialias=False).over(stated)
    assert other.resize == Resize(rule="stretch", antialias=False)
    assert Options(resize="shorter_side:240").over(DEFAULT).resize.resize_to == 240
    assert Options(size=64).over(DEFAULT).side == 64


def test_statistics_by_name_are_of_the_scale_and_order() -> None:
    mean, std = IMAGENET
    made = Options(normalise="imagenet", scale="byte", channels="bgr").over(DEFAULT).normalise
    assert made.of_unit_pixels()[0] == pytest.approx(mean[::-1])
    assert made.of_unit_pixels()[1] == pytest.approx(std[::-1])
    assert Options(normalise="none", scale="byte").over(DEFAULT).normalise.std == [1.0] * 3
    assert Options(normalise="half").over(DEFAULT).normalise.mean == [0.5] * 3
    assert Options(normalise="1,2,3/4,5,6", channels="bgr").over(DEFAULT).normalise.mean == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (Options(resize="fit"), "--resize fit: expected one of"),
        (Options(resize="pad:x"), "--resize pad:x: expected"),
        (Options(resize="center_crop:256"), "use shorter_side"),
        (Options(filter="lanczos", antialias=False), "needs antialias"),
        (Options(normalise="0,0,0/1,2,0"), "--normalise 0,0,0/1,2,0: expected imagenet"),
    ],
)
def test_options_that_cannot_be_followed(options: Options, problem: str) -> None:
    with pytest.raises(PreprocessingError, match=problem):
        options.over(DEFAULT)


def test_in_words() -> None:
    made = Options(224, "shorter_side:256", "bicubic", normalise="half", channels="bgr").over(DEFAULT)
    assert in_words(made) == (
        "shorter side to 256, crop 224, bicubic; BGR of 0..1 less 0.5, 0.5, 0.5, over 0.5, 0.5, 0.5"
    )
    assert "without antialiasing" in in_words(Options(224, "exact", antialias=False).over(DEFAULT))
