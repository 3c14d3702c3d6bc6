"""The seam of detector scores: lists are derived from what each score states, and no place in them carries meaning."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor

from gateway.core.manifest import Guard
from gateway.core.verdict import Fusion
from tests.training.seams import FeatureNorm, pixels_of, registered, scores_in_order
from tests.training.toy import CLASSES, SIDE, random_network
from training.attacks.joint_run import Only, Run, look
from training.data.dataset import Dataset
from training.defence.constants import Constants, fit_constants
from training.defence.graph import DefenceGraph
from training.defence.scores import SCORES, chosen, default_scores, of_answers, screening
from training.defence.scores.context import ScoreContext
from training.defence.scores.score import Score
from training.errors import TrainingError
from training.evaluate.harness.bench import Bench
from training.evaluate.harness.systems import Systems
from training.export.fold import folded
from training.util.registry import by_name

GUARD = Guard(score="companion_strict", share_below=0.2, share=0.9, knee=0.005)


def unasked(*_: Tensor) -> list[Tensor]:
    """Conditions of an attack that is only looked at."""
    raise AssertionError


def test_the_lists_follow_from_what_scores_state() -> None:
    assert default_scores(companion=True) == (
        "margin_drop",
        "neuron_sensitivity",
        "class_distance",
        "companion_margin",
    )
    assert default_scores(companion=False) == ("margin_drop", "neuron_sensitivity", "class_distance")
    assert screening() == ("class_distance", "companion_margin")
    assert chosen(["companion_strict"], companion=True) == (*default_scores(companion=True), "companion_strict")
    assert [score.name for score in of_answers()] == ["margin_drop", "filter_drop", "window_drop"]
    assert chosen(["class_distance"], companion=False) == default_scores(companion=False)
    with pytest.raises(TrainingError, match="no score 'luck'"):
        chosen(["luck"], companion=True)


def test_a_new_score_is_everywhere_that_its_statements_put_it(toy: Dataset) -> None:
    network, companion = folded(random_network(0)), folded(random_network(1))
    with registered(FeatureNorm()):
        assert default_scores(companion=False)[-1] == "feature_norm"
        assert screening()[-1] == "feature_norm"
        constants = fit_constants(network, toy.train, toy.select, classes=CLASSES)
        with_companion = DefenceGraph(network, companion, constants)
        alone = DefenceGraph(network, None, constants)
        assert with_companion.score_names == (*default_scores(companion=True),)
        assert with_companion.screen_names == ("class_distance", "companion_margin", "feature_norm")
        assert alone.score_names == ("margin_drop", "neuron_sensitivity", "class_distance", "feature_norm")
        assert alone.screen_names == ()
        x, mask = pixels_of(5, SIDE, 0), torch.zeros(5, SIDE, SIDE)
        out = with_companion(x, mask)
        norms = network.taps(x)[1]["stage3"].mean((2, 3)).pow(2).sum(1)
        torch.testing.assert_close(out.scores[:, -1], norms - constants.tensors()["mean_norm"])
        assert torch.equal(out.screen_scores[:, -1], out.scores[:, -1])
    assert "feature_norm" not in default_scores(companion=True)


def test_a_score_whose_constant_was_not_fitted_is_refused(toy: Dataset) -> None:
    network = folded(random_network(0))
    before = fit_constants(network, toy.train, toy.select, classes=CLASSES)
    with registered(FeatureNorm()), pytest.raises(TrainingError, match="'feature_norm' needs the constant 'mean_norm'"):
        DefenceGraph(network, None, before)


def orders(*scores: Score) -> list[tuple[Score, ...]]:
    """Twelve orders of `scores`, the listed and the reversed one among them."""
    every = list(itertools.permutations(scores))
    return [every[0], every[-1], *every[7 :: len(every) // 10][:10]]


@pytest.mark.parametrize("order", orders(*SCORES.values(), FeatureNorm()), ids=lambda o: "-".join(s.name for s in o))
def test_the_order_of_the_list_changes_no_fused_value(toy: Dataset, order: tuple[Score, ...]) -> None:
    """Columns move, and whatever is read of them moves along: fused statistic, guard's column, the calm ones."""
    network, companion = folded(random_network(0)), folded(random_network(1))

    def judged() -> tuple[dict[str, Tensor], np.ndarray, list[str], np.ndarray]:
        constants = fit_constants(network, toy.train, toy.select, classes=CLASSES)
        names = chosen(SCORES, companion=True)
        defence = DefenceGraph(network, companion, constants, scores=names)
        benign, seen = (
            defence(pixels_of(n, SIDE, n), torch.zeros(n, SIDE, SIDE)).scores.numpy().astype(np.float64)
            for n in (48, 24)
        )
        fusion = Fusion.fit(benign, names, default_scores(companion=True), GUARD)
        bench = SimpleNamespace(
            pipeline=SimpleNamespace(judge=SimpleNamespace(fusion=fusion)),
            bundle=SimpleNamespace(manifest=SimpleNamespace(scores=list(names))),
        )
        calm = [names[column] for column in Systems(cast(Bench, bench)).calm]
        columns = dict(zip(names, torch.from_numpy(seen).unbind(1), strict=True))
        return columns, fusion.statistic(seen), calm, seen[:, fusion.objecting]

    with registered(FeatureNorm()):
        columns, statistic, calm, objection = judged()
    with scores_in_order(order):
        moved, again, still_calm, objecting = judged()
    assert list(moved) == [score.name for score in order if score.name in columns]
    assert set(moved) == set(columns)
    for name, values in columns.items():
        assert torch.equal(moved[name], values), name
    np.testing.assert_allclose(again, statistic, rtol=1e-9)
    np.testing.assert_array_equal(objecting, objection)
    assert set(still_calm) == set(calm) == {"margin_drop", "neuron_sensitivity", "class_distance", "feature_norm"}


def test_without_the_companions_logits_the_other_columns_keep_their_places(defence: DefenceGraph) -> None:
    """An attack on the scores that do not ask the companion reads them where the fusion has them."""
    with scores_in_order([SCORES["companion_margin"], SCORES["class_distance"], SCORES["margin_drop"]]):
        turned = DefenceGraph(defence.network, defence.companion, defence.constants)
    x = pixels_of(4, SIDE, 1)
    whole = look(turned, x).scores
    run = Run(
        turned, x, torch.zeros(4).long(), unasked, lambda *_: torch.zeros(4, 1), "alone", None, full_precision=True
    )
    found = run._look(x).scores
    assert found[:, 0].isnan().all()
    assert torch.equal(found[:, 1:], whole[:, 1:])


@pytest.mark.parametrize("name", SCORES)
def test_one_score_alone_is_its_column(defence: DefenceGraph, name: str) -> None:
    every = DefenceGraph(defence.network, defence.companion, defence.constants, scores=list(SCORES))
    x = pixels_of(4, SIDE, 2)
    run = Run(
        every, x, torch.zeros(4).long(), unasked, lambda *_: torch.zeros(4, 1), Only(name), None, full_precision=True
    )
    torch.testing.assert_close(run._look(x).scores[:, 0], look(every, x).scores[:, list(SCORES).index(name)])


def test_what_a_score_does_not_need_is_not_computed(defence: DefenceGraph) -> None:
    """A screen runs no view: the scores that say so can be had of a context that has none to give."""
    x = pixels_of(3, SIDE, 3)
    logits, taps = defence.network.taps(x)

    class Blind(ScoreContext):
        @property
        def _views(self) -> tuple[Tensor, dict[str, Tensor]]:
            raise AssertionError("a view was asked for")

    assert defence.companion is not None
    told = defence.context(x, logits, taps, defence.companion(x))
    blind = Blind(**{name: getattr(told, name) for name in ScoreContext.__dataclass_fields__})
    for score in SCORES.values():
        if "views" in score.needs:
            with pytest.raises(AssertionError, match="a view was asked for"):
                score(blind)
        else:
            torch.testing.assert_close(score(blind), score(told))


def test_a_screen_that_reads_views_cannot_be_written() -> None:
    with pytest.raises(TypeError, match="a screen reads no views"):
        type("Slow", (FeatureNorm,), {"needs": frozenset({"views"})})


def test_names_are_there_once_and_titled() -> None:
    with pytest.raises(ValueError, match="'feature_norm' is used twice"):
        by_name(FeatureNorm(), FeatureNorm())
    with pytest.raises(ValueError, match="not a name"):
        by_name(type("Other", (FeatureNorm,), {"name": "Feature norm"})())
    with pytest.raises(ValueError, match="no title"):
        by_name(type("Other", (FeatureNorm,), {"title": ""})())


def test_a_score_that_fits_other_constants_than_it_states_is_refused(toy: Dataset) -> None:
    other = type("Other", (FeatureNorm,), {"constants": ("another",)})()
    with registered(other), pytest.raises(ValueError, match="feature_norm fitted"):
        fit_constants(random_network(0), toy.train, toy.select, classes=CLASSES)


def test_constants_survive_their_file_of_names(defence: DefenceGraph) -> None:
    tensors = defence.constants.tensors()
    assert set(tensors) == {"change_mean", "change_std", "whiten", "class_means"}  # as shipped bundles hold them
    again = Constants.of(tensors)
    assert all(torch.equal(again.tensors()[name], tensor) for name, tensor in tensors.items())
