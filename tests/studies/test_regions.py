from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from studies import regions
from studies.localisers import candidates, hidden
from studies.regions import regions_report, regions_tables
from studies.strategies import FORWARDS, LESS, MEAN, PLAIN, strategies
from training.defence.constants import fit_constants
from training.defence.graph import DefenceGraph
from training.defence.localisers.texture_colour import colourfulness, texture
from training.defence.localisers.windows import contrasts, together
from training.defence.signals.margins import one_hot_margin, served_one_hot
from training.errors import TrainingError
from training.imaging.pixels import to_tensor
from training.util.module_modes import seeded

N = 6


@pytest.fixture(scope="module")
def guarded(trained, toy) -> DefenceGraph:
    """A network that has learnt something, as its own companion."""
    return DefenceGraph(trained, trained, fit_constants(trained, toy.train, toy.select, classes=4)).eval()


class Gateway:
    """A pipeline in torch: p-values rank margins, so that unsure images are behind the gate; serves first answers."""

    def __init__(self, defence: DefenceGraph) -> None:
        self.network = defence.network
        self.bundle = SimpleNamespace(name="toy")
        self.judge = SimpleNamespace(cutoff=lambda alpha: 4 * alpha, calibration=SimpleNamespace(design_effect=1.0))

    @torch.no_grad()
    def decide_images(self, images: list[np.ndarray], *, explain: bool) -> list[Any]:
        assert not explain
        logits = self.network(to_tensor(np.stack(images)))
        p = one_hot_margin(logits, served_one_hot(logits)).argsort().argsort().add(1) / (len(images) + 1)
        return [
            SimpleNamespace(
                raw=(
                    first := SimpleNamespace(
                        outputs=SimpleNamespace(logits=row.numpy()),
                        verdict=SimpleNamespace(p_value=float(value)),
                        prediction=SimpleNamespace(index=int(row.argmax())),
                    )
                ),
                served=first,
                neutralized=None,
            )
            for row, value in zip(logits, p, strict=True)
        ]


@pytest.fixture(scope="module")
def report(guarded, toy):
    return regions_report(guarded, Gateway(guarded), toy, n=N, benign=40)


def test_every_strategy_answers(guarded, test_images) -> None:
    x = test_images[0][:3]
    logits = guarded.network(x)
    found = strategies(guarded, x, logits, seeded(0))
    assert set(found) == set(FORWARDS)
    for answers in found.values():
        assert answers.window.shape == (3, 16, 16)
        assert (answers.window.amax((1, 2)) == 1).all()
    best = candidates(contrasts(together(texture(x), colourfulness(x))), 1)
    expected = guarded.network(hidden(x, best)).log_softmax(1)
    torch.testing.assert_close(found[PLAIN].scores, expected)
    less = found[f"{PLAIN}, less the first answer"]
    torch.testing.assert_close(less.scores, expected - LESS * logits.log_softmax(1))
    assert torch.equal(found[MEAN].window, found[PLAIN].window)


def test_every_figure_has_its_n_and_interval(report) -> None:
    assert (report["seed"], report["n"]["benign"], report["n"]["fit"]) == (0, 40, 40)
    assert list(report["gates"]) == ["0.05", "0.1"]
    assert set(report["strategies"]) == set(FORWARDS)
    cells = [report["accuracy"], *report["as_served"].values()]
    for kind in regions.KINDS:
        assert 1 < report["n"][kind] <= N
        missed = report["diagnosis"][kind]["missed"]
        assert sum(missed.values()) == pytest.approx(1 - report["as_served"][kind]["mean"])
    for told in report["strategies"].values():
        for kind in regions.KINDS:
            cells += [told["found"][kind]["covered"], told["found"][kind]["right"]]
            for at in told["gates"].values():
                assert (
                    at["threshold"][kind]["mean"] <= at["always"][kind]["mean"] <= told["found"][kind]["right"]["mean"]
                )
                assert at["threshold"]["neutralised"] <= at["always"]["neutralised"] < 0.45
                cells += [at[rule][key] for rule in ("always", "threshold") for key in (kind, "clean_change")]
    for cell in cells:
        assert cell["interval"][0] <= cell["mean"] <= cell["interval"][1]


def test_a_localiser_of_patches_beats_a_random_window(report) -> None:
    found = {name: told["found"]["noisy"] for name, told in report["strategies"].items()}
    assert found[PLAIN]["overlap"] > found["random window"]["overlap"] + 0.2
    assert found[PLAIN]["covered"]["mean"] > found["random window"]["covered"]["mean"]


def test_tables_have_a_row_for_each_strategy(report) -> None:
    lost, *gates = regions_tables(report)
    assert lost.row_count == 2
    assert [table.row_count for table in gates] == [1 + len(FORWARDS)] * 2


def test_without_a_companion_it_says_so(guarded, trained, toy) -> None:
    alone = DefenceGraph(trained, None, fit_constants(trained, toy.train, toy.select, classes=4))
    with pytest.raises(TrainingError, match="toy has no companion"):
        regions_report(alone, Gateway(guarded), toy, n=N)
