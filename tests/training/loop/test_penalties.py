from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from tests.training.toy import random_network, toy_dataset
from training.imaging.pixels import to_tensor
from training.loop.penalties import due, penalties, rank_neurons
from training.loop.trainer import Trainer
from training.losses.jacobian import Jacobian
from training.losses.settings import Terms
from training.losses.sns import Sns, sns_penalty
from training.losses.term import Context, NeuronTerm, Term
from training.recipes.training import Recipe, Stage
from training.util.module_modes import seeded

DATA = toy_dataset(train=32)
X, Y = to_tensor(DATA.train.x[:8]), torch.from_numpy(DATA.train.y[:8])
OTHER = (X + 0.02).clamp(0, 1)
SALIENCY = torch.rand(8, 16, 16, generator=seeded(1))
SENSITIVE = {"stem": torch.tensor([1]), "stage3": torch.tensor([0, 5])}
ALL: dict[str, Any] = {
    "jacobian": {"weight": 0.001},
    "selective": {"weight": 0.1, "grid": 4, "form": "ratio"},
    "align": {"weight": 0.2, "grid": 4},
    "sns": {"weight": 0.3},
    "fraction": 1.0,
}


def of(terms: dict[str, Any], **where: Any) -> dict[str, Tensor]:
    network = random_network(0)
    return penalties(Terms.model_validate(terms), network, X, Y, OTHER, SALIENCY, SENSITIVE, seeded(2), **where)


def test_ramp_and_cadence() -> None:
    plain, ramped = Jacobian(weight=2.0), Jacobian(weight=2.0, ramp_epochs=4)
    assert due(None, progress=1, step=0) == 0
    assert [due(plain, progress=p, step=0) for p in (0.0, 0.5, 9.0)] == [2, 2, 2]
    assert [due(ramped, progress=p, step=0) for p in (0.0, 1.0, 2.5, 4.0, 9.0)] == [0, 0.5, 1.25, 2, 2]
    rare = Jacobian(weight=2.0, every=3)
    weights = [due(rare, progress=1, step=step) for step in range(9)]
    assert weights == [6, 0, 0, 6, 0, 0, 6, 0, 0]
    assert sum(weights) == 9 * plain.weight  # as much as without a cadence, on average


def test_every_term_is_there_weighted_and_can_be_descended() -> None:
    found = of(ALL)
    assert set(found) == {"jacobian", "selective", "align", "sns"}
    for name, value in found.items():
        assert value.dtype == torch.float32
        assert value.shape == ()
        alone = of({name: ALL[name], "fraction": 1.0})
        assert set(alone) == {name}
        torch.testing.assert_close(alone[name], value)
        doubled = of({name: ALL[name] | {"weight": 2 * ALL[name]["weight"]}, "fraction": 1.0})
        torch.testing.assert_close(doubled[name], 2 * value)
        assert value.requires_grad


def test_terms_that_are_not_due_are_left_out() -> None:
    terms = ALL | {"jacobian": {"weight": 1, "every": 2}, "sns": {"weight": 1, "ramp_epochs": 2}}
    assert set(of(terms, progress=0.0, step=1)) == {"selective", "align"}
    assert set(of(terms, progress=1.0, step=2)) == {"jacobian", "selective", "align", "sns"}
    torch.testing.assert_close(of(terms, progress=1.0, step=0)["sns"] * 2, of(terms)["sns"])
    assert of({"sns": {"weight": 1, "every": 5}}, step=3) == {}
    assert of({}) == {}


def test_fraction_takes_the_first_images() -> None:
    network, terms = random_network(0), Terms.model_validate({"sns": {"weight": 1}, "fraction": 0.5})
    found = penalties(terms, network, X, Y, OTHER, None, SENSITIVE, seeded(2))["sns"]
    expected = sns_penalty(network.taps(X[:4])[1], network.taps(OTHER[:4])[1], SENSITIVE)
    torch.testing.assert_close(found, expected)


def test_what_belongs_to_other_images_does_not_count() -> None:
    """Saliency, labels and adversarial images of the part without penalties change nothing."""
    terms, network = Terms.model_validate(ALL | {"fraction": 0.5}), random_network(0)
    rest = [torch.cat([z[:4], z[4:].flip(0)]) for z in (X, Y, OTHER, SALIENCY)]
    first, again = (
        penalties(terms, network, x, y, other, saliency, SENSITIVE, seeded(2))
        for x, y, other, saliency in ((X, Y, OTHER, SALIENCY), rest)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    moved = penalties(terms, network, X, Y, OTHER, SALIENCY.flip(2), SENSITIVE, seeded(2))
    assert moved["selective"] != first["selective"]
    assert moved["align"] != first["align"]


def test_taps_of_the_adversarial_images_spare_their_forward() -> None:
    network = random_network(0)
    whole = of({"sns": {"weight": 1}, "fraction": 0.5})["sns"]
    taps = network.taps(OTHER)[1]
    torch.testing.assert_close(of({"sns": {"weight": 1}, "fraction": 0.5}, adversarial_taps=taps)["sns"], whole)
    zeros = {name: torch.zeros_like(tap) for name, tap in taps.items()}
    assert float(of({"sns": {"weight": 1}}, adversarial_taps=zeros)["sns"].detach()) == pytest.approx(
        1
    )  # |a - 0| / |a|


def test_bf16_on_one_side_has_the_gradient_of_fp32() -> None:
    """Cosine above 0.99 and size within 6 %: a rounding of 0.4 % beside changes of a tenth and more."""
    network, terms = random_network(0), Terms.model_validate({"sns": {"weight": 1}, "fraction": 1.0})
    moved = (X + 0.1 * torch.randn(X.shape, generator=seeded(5)).sign()).clamp(0, 1)
    gradients = []
    for half in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            taps = network.taps(moved)[1]
        penalty = penalties(terms, network, X, Y, moved, None, SENSITIVE, seeded(2), adversarial_taps=taps)["sns"]
        assert penalty.dtype == torch.float32
        parts = torch.autograd.grad(penalty, list(network.parameters()), materialize_grads=True)
        gradients.append(torch.cat([part.flatten() for part in parts]))
    assert float(torch.cosine_similarity(gradients[0], gradients[1], dim=0)) > 0.99
    assert float(gradients[1].norm() / gradients[0].norm()) == pytest.approx(1, abs=0.06)


def test_jacobian_draws_from_the_generator_alone() -> None:
    first, again = (of({"jacobian": {"weight": 1}})["jacobian"] for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("method", ["double_backprop", "finite_difference"])
def test_either_method_may_be_chosen_by_term(method: str) -> None:
    mixed = {name: ALL[name] | {"method": method} for name in ("jacobian", "selective")} | {"align": ALL["align"]}
    values = {name: value.detach() for name, value in of(mixed | {"fraction": 1.0}).items()}
    for name, value in values.items():
        torch.testing.assert_close(value, of(ALL)[name].detach())


def test_a_term_sets_the_length_of_its_finite_difference() -> None:
    network, slopes = random_network(0), []
    for h in (0.05, 0.05, 1.0):
        terms = Terms.model_validate({"jacobian": {"weight": 1, "h": h}, "fraction": 1.0})
        penalty = penalties(terms, network, X, Y, OTHER, None, {}, seeded(2))["jacobian"]
        slopes.append(torch.autograd.grad(penalty, network.head.weight)[0])
    assert torch.equal(slopes[0], slopes[1])
    assert not torch.allclose(slopes[0], slopes[2], rtol=0.01)


def test_maps_of_two_grids_are_refused() -> None:
    with pytest.raises(ValidationError, match="grid"):
        Terms.model_validate({"selective": {"weight": 1, "grid": 4}, "align": {"weight": 1, "grid": 6}})
    assert Terms.model_validate({"align": {"weight": 1, "grid": 6}}).grid == 6
    assert Terms.model_validate({"jacobian": {"weight": 1}}).grid is None


class Quiet(Term):
    """A toy penalty: the mean square of the logits, with a setting of its own."""

    scale: float = 1.0

    def penalty(self, context: Context) -> Tensor:
        return self.scale * context.logits.square().mean()


class Wider(NeuronTerm):
    def penalty(self, context: Context) -> Tensor:
        return torch.stack(
            [context.taps[name][:, index].square().mean() for name, index in context.sensitive.items()]
        ).mean()


class More(Terms):
    """`Terms` with one line more."""

    quiet: Quiet | None = None
    wider: Wider | None = None


def test_a_loss_is_one_class_and_one_line(tmp_path: Path) -> None:
    """It is weighted, ramped, logged and trained on without a change of the training loop."""
    network = random_network(0)
    terms = More.model_validate({"quiet": {"weight": 0.5, "scale": 2}, "fraction": 1.0})
    found = penalties(terms, network, X, Y, OTHER, None, {}, seeded(2))
    network.train(False)
    torch.testing.assert_close(found["quiet"], network(X).square().mean())
    stage = Stage(name="x", epochs=1, lr=0.05, batchnorm="frozen", terms=terms)
    recipe = Recipe.model_validate(
        {
            "name": "toy",
            "data": {"source": "npz:toy"},
            "model": {"width": 4},
            "batch": 16,
            "precision": "fp32",
            "stages": [{"name": "x", "epochs": 1, "lr": 0.05}],
        }
    ).model_copy(update={"stages": [stage]})
    events: list[dict[str, Any]] = []
    Trainer(recipe, DATA, tmp_path / "run").run(events.append)
    assert events[-1]["quiet"] > 0
    assert events[-1]["loss"] > events[-1]["quiet"]


def test_a_loss_of_neurons_has_them_ranked_and_needs_an_adversary() -> None:
    terms = More.model_validate({"wider": {"weight": 1, "share": 0.25}})
    assert terms.neurons == Wider(weight=1, share=0.25)
    with pytest.raises(ValidationError, match=r"terms\.wider needs an adversary or trades: neuron sensitivity"):
        Stage(name="x", epochs=1, lr=0.05, batchnorm="frozen", terms=terms)
    with pytest.raises(ValidationError, match="only one of sns, wider"):
        More.model_validate({"wider": {"weight": 1}, "sns": {"weight": 1}})


def test_settings_of_older_recipes_are_read() -> None:
    old = {
        "jacobian": {"weight": 0.1, "method": "finite_difference"},
        "selective": None,
        "sns": {"weight": 0.3, "ramp_epochs": 0, "every": 1, "share": 0.1, "pairs": 512},
        "fraction": 0.5,
    }
    terms = Terms.model_validate(old)
    assert terms.jacobian == Jacobian(weight=0.1)
    assert terms.sns == Sns(weight=0.3)
    assert terms.align is None
    assert due(terms.jacobian, progress=0, step=1) == 0.1


def test_sensitive_neurons_are_a_share_of_every_layer_and_repeatable() -> None:
    network, sns = random_network(0), Sns(weight=1, share=0.25, pairs=16)
    ranked = [
        rank_neurons(sns, network, network, DATA.train, eps=8 / 255, seed=seed, epoch=epoch)
        for seed, epoch in ((0, 0), (0, 0), (1, 0))
    ]
    assert {name: len(index) for name, index in ranked[0].items()} == {
        name: max(1, round(0.25 * channels)) for name, channels in network.tap_channels.items()
    }
    assert all(torch.equal(ranked[0][name], ranked[1][name]) for name in ranked[0])
    assert any(not torch.equal(ranked[0][name], ranked[2][name]) for name in ranked[0])
