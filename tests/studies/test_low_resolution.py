from __future__ import annotations

import torch

from studies.low_resolution import enlarged, robust, table_of
from tests.training.toy import SIDE
from training.data.averaged import averaged
from training.data.dataset import SPLITS


def test_enlarged_images_are_those_of_before_once_averaged(toy) -> None:
    """Bicubic enlargement and averaging undo each other, but for the ringing at noise."""
    large = enlarged(toy, 2 * SIDE)
    assert all(getattr(large, name).x.shape[1:3] == (2 * SIDE, 2 * SIDE) for name in SPLITS)
    difference = averaged(large, SIDE).select.x.astype(int) - toy.select.x.astype(int)
    assert abs(difference).mean() < 12


def test_robust_accuracy_falls_with_the_radius(trained, toy) -> None:
    images = toy.test.take(torch.arange(32).numpy())
    shares = [robust(trained, images, eps=eps, steps=3, seed=0) for eps in (0, 16)]
    assert shares[1] < shares[0]


def test_the_table_has_a_row_for_each_bundle() -> None:
    cell = {"share": 0.25, "interval": [0.2, 0.3]}
    with_it = {"eps": 8, "bundle": "with", "network_fooled": cell, "alpha_0.01": cell, "alpha_0.05": cell}
    table = table_of([with_it | {"companion_errs": cell}, with_it | {"bundle": "without"}])
    assert table.row_count == 2
    assert list(table.columns[-1].cells) == ["25.0 % (20.0 to 30.0)", "-"]
