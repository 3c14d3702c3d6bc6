"""AutoAttack on linear networks, whose distance to the boundary is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.training.toy import Linear
from training.attacks.autoattack import autoattack
from training.errors import TrainingError
from training.util.module_modes import seeded

WEIGHT = torch.randn(4, 48, generator=seeded(1))
NETWORK = Linear(WEIGHT)
X = 0.3 + 0.4 * torch.rand(12, 3, 4, 4, generator=seeded(2))
Y = NETWORK(X).argmax(1)
CE = ("apgd-ce",)


def distance() -> Tensor:
    """Linf distance of each image to the nearest other class: min over k of margin_k / ||W_y - W_k||_1."""
    logits = NETWORK(X).detach()
    gap = logits.gather(1, Y[:, None]) - logits
    slope = (WEIGHT[Y][:, None] - WEIGHT[None]).abs().sum(2)
    return (gap / slope).masked_fill(torch.nn.functional.one_hot(Y, 4).bool(), torch.inf).amin(1)


EPS = float(distance().sort().values[5:7].mean())


def test_an_image_stands_just_if_the_boundary_is_beyond_eps() -> None:
    result = autoattack(NETWORK, X, Y, eps=EPS, attacks=("apgd-ce", "apgd-t"))
    assert torch.equal(result.robust, distance() > EPS)
    assert torch.equal(NETWORK(result.adversarial).argmax(1) != Y, ~result.robust)
    assert (result.adversarial - X).abs().max() <= EPS + 1e-6
    assert torch.equal(result.adversarial[result.robust], X[result.robust])
    assert result.accuracy()["clean"] == 1.0
    assert result.accuracy()["apgd-t"] == float(result.robust.float().mean()) == 0.5


def test_a_wrong_answer_needs_no_attack() -> None:
    y = Y.clone()
    y[0] = (y[0] + 1) % 4
    result = autoattack(NETWORK, X, y, eps=1e-6, attacks=CE)
    assert result.fell_to.tolist() == [0] + [-1] * 11
    assert torch.equal(result.adversarial, X)


@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_a_coarse_search_neither_breaks_nor_spares(shift: float) -> None:
    """With `shift` the search holds every image for fooled as it is: all the work is left to the exact one."""

    def coarse(x: Tensor) -> Tensor:
        logits = NETWORK(x)
        if not torch.is_grad_enabled():
            return logits
        wrong = torch.nn.functional.one_hot((logits.argmax(1) + 1) % 4, 4)
        return logits + shift * wrong + 0.1 * torch.sin(40 * logits).detach()

    result = autoattack(coarse, X, Y, eps=EPS, attacks=CE)
    assert torch.equal(NETWORK(result.adversarial).argmax(1) != Y, ~result.robust)
    assert (result.robust >= (distance() > EPS)).all()
    assert 0 < result.robust.sum() < 9


def test_few_classes_leave_out_what_they_have_no_loss_for() -> None:
    for classes, stages in ((2, ("clean", "apgd-ce")), (3, ("clean", "apgd-ce", "apgd-dlr"))):
        network = Linear(WEIGHT[:classes])
        y = network(X).argmax(1)
        result = autoattack(network, X, y, eps=1.0, attacks=("apgd-ce", "apgd-dlr", "apgd-t"))
        assert result.stages == stages
        assert not result.robust.any()


def test_the_generator_of_others_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    autoattack(NETWORK, X[:2], Y[:2], eps=0.01, attacks=CE)
    assert torch.equal(torch.rand(3), expected)


class Failing:
    """A network that breaks down after `calls` forwards."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def __call__(self, x: Tensor) -> Tensor:
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return NETWORK(x)


def test_goes_on_where_it_stopped(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    whole = autoattack(NETWORK, X, Y, eps=EPS, attacks=CE, batch=5)
    with pytest.raises(KeyboardInterrupt):
        autoattack(Failing(150), X, Y, eps=EPS, attacks=CE, batch=5, folder=folder)
    assert [path.name for path in sorted(folder.glob("*.safetensors"))] == ["images-000000.safetensors"]
    told: list[tuple[int, int]] = []
    again = autoattack(
        NETWORK, X, Y, eps=EPS, attacks=CE, batch=5, folder=folder, progress=lambda *now: told.append(now)
    )
    assert torch.equal(again.adversarial, whole.adversarial)
    assert torch.equal(again.robust, whole.robust)
    assert told[0] == (5, 12)
    assert told[-1] == (12, 12)
    # All is there now: the network is asked for its fingerprint only.
    assert torch.equal(autoattack(Failing(1), X, Y, eps=EPS, attacks=CE, batch=5, folder=folder).fell_to, whole.fell_to)


def test_another_run_is_refused(tmp_path: Path) -> None:
    def run(network: Linear = NETWORK, x: Tensor = X, eps: float = EPS) -> None:
        autoattack(network, x, Y, eps=eps, attacks=CE, folder=tmp_path)

    run()
    with pytest.raises(TrainingError, match="another eps"):
        run(eps=2 * EPS)
    with pytest.raises(TrainingError, match="another data"):
        run(x=X.flip(0))
    with pytest.raises(TrainingError, match="another network"):
        run(Linear(WEIGHT.flip(1)))
    (tmp_path / "images-000000.safetensors").write_bytes(b"half")
    with pytest.raises(TrainingError, match="remove it"):
        run()


@pytest.mark.reference
def test_the_standard_suite() -> None:
    result = autoattack(NETWORK, X, Y, eps=EPS)
    assert result.stages == ("clean", "apgd-ce", "apgd-t", "fab-t", "square")
    assert torch.equal(result.robust, distance() > EPS)
