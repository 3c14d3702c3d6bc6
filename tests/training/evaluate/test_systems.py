"""Systems on a defence of random networks, with a judge whose p-values are known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from gateway.core.manifest import Guard
from tests.training.toy import CLASSES, SIDE
from training.attacks.margin import margin
from training.defence.graph import DefenceGraph
from training.defence.scores import default_scores
from training.evaluate.measurements.adaptive import SERVED, _judge, stages, stricter
from training.evaluate.measurements.systems import ALONE, DOUBTS, Systems
from training.recipes.evaluation import ALPHAS, RATES

SCORES = default_scores(companion=True)
RNG = np.random.default_rng(0)
BENIGN = np.sort(RNG.normal(size=(400, len(SCORES))), axis=0)


class Judge:
    """p-values of four images in turn: at the lower cutoff, just above it, at the upper one, above both."""

    calibration = SimpleNamespace(cascade=None)
    fusion = SimpleNamespace(
        columns=[0, 1, 2, 3],
        components=BENIGN,
        guard=None,
        statistic=lambda scores: scores.sum(1),
        limits=lambda _level: (3.0, np.inf),
    )

    def cutoff(self, alpha: float) -> float:
        return alpha

    def level(self, alpha: float) -> float:
        return alpha

    def p_values(self, scores: np.ndarray) -> np.ndarray:
        return np.resize([0.01, np.nextafter(0.01, 1.0), 0.05, 0.06], len(scores))


def bench_of(defence: DefenceGraph) -> Any:
    clean = SimpleNamespace(scores=BENIGN, confidence=RNG.uniform(0.3, 1.0, 400))
    pipeline = SimpleNamespace(judge=Judge(), can_screen=False)
    manifest = SimpleNamespace(scores=list(SCORES), screen_scores=[])
    return SimpleNamespace(defence=defence, clean=clean, pipeline=pipeline, bundle=SimpleNamespace(manifest=manifest))


@pytest.fixture
def systems(defence: DefenceGraph) -> Systems:
    return Systems(bench_of(defence))


def test_a_p_value_at_its_cutoff_is_flagged_as_in_the_gateway(systems: Systems, defence: DefenceGraph) -> None:
    """Cutoffs are p-values k / (n + 1), so that p often equals one; 0.01 is below itself in float32."""
    x = (torch.rand(4, 3, SIDE, SIDE) * 255).round() / 255
    right = defence.network(x).argmax(1)
    columns = [systems.columns.index(name) for name in ("served@0.01", "served@0.05")]
    wrong = systems.judged(x, (right + 1) % CLASSES)
    assert wrong[:, columns].tolist() == [[False, False], [True, False], [True, False], [True, True]]
    assert wrong[:, 0].all()
    found = systems.judged(x, right)
    assert not found[:, : systems.columns.index(ALONE)].any()


def test_images_are_judged_as_a_file_carries_them(systems: Systems) -> None:
    x = torch.rand(4, 3, SIDE, SIDE)
    label = torch.zeros(4, dtype=torch.long)
    assert (systems.judged(x, label) == systems.judged((x * 255).round() / 255, label)).all()


def test_thresholds_flag_their_rate_of_the_benign_images(systems: Systems) -> None:
    clean = systems.bench.clean
    for (system, rate), threshold in systems.thresholds.items():
        values = systems.readings[system](clean.scores, clean.confidence)
        assert (values > threshold).mean() <= rate + 1e-9, system
    flagged = systems.readings["companion"](clean.scores, clean.confidence) > systems.thresholds["companion", 0.05]
    assert flagged.mean() == 0.05


def test_the_detector_is_not_told_what_the_companion_says(systems: Systems) -> None:
    assert systems.calm == [0, 1, 2]
    shouted = BENIGN.copy()
    shouted[:, 3] = 99
    read = systems.readings["detector"]
    assert (read(shouted, np.ones(400)) == read(BENIGN, np.ones(400))).all()


def test_with_a_guard_only_what_it_lets_pass_is_tried_against_everything(defence: DefenceGraph) -> None:
    bench = bench_of(defence)
    fusion = vars(Judge.fusion) | {
        "guard": Guard(score="companion_margin", share_below=0.2, share=0.9, knee=0.005),
        "objecting": 3,
    }
    fusion["limits"] = lambda level: (3.0, 10 * level)
    bench.pipeline.judge.fusion = SimpleNamespace(**fusion)
    systems = Systems(bench)
    levels = {f"{rate:g}": -systems.thresholds["all", rate] for rate in RATES}
    assert systems.guards == {name: 10 * level for name, level in levels.items()} | {"served": 0.5}
    found = {stage.name: stage for stage in stages(systems)}
    for rate in RATES:
        assert found[f"guard, {rate:g}"].until == found[f"joint, {rate:g}"].given == f"guard@{rate:g}"
    assert found["joint, as served"].given == "guard@served"
    x = torch.rand(4, 3, SIDE, SIDE)
    label = (defence.network(x).argmax(1) + 1) % CLASSES
    doubt = -margin(defence.companion(x), defence.network(x).argmax(1))
    column = systems.judged(x, label)[:, systems.columns.index("guard@served")]
    assert column.tolist() == (doubt <= 0.5).tolist()


def test_every_system_is_attacked_at_every_rate(systems: Systems) -> None:
    found = stages(systems)
    until = {stage.until for stage in found}
    assert until == {
        ALONE,
        SERVED,
        "max_softmax@0.1",
        *(f"{s}@{r:g}" for s in ("detector", "companion", "all") for r in RATES),
    }
    assert {stage.given for stage in found} == {None, DOUBTS}
    order = [stage.until for stage in found]
    assert order.index(ALONE) < min(order.index(stage.until) for stage in found if stage.given)
    beaten = _judge(systems, SERVED)(torch.rand(2, 3, SIDE, SIDE), torch.zeros(2, dtype=torch.long))
    assert beaten.shape == (2, len(systems.columns) + 1)
    assert (beaten[:, -1] == beaten[:, systems.columns.index(SERVED)]).all()


def test_every_level_that_is_served_is_somebodys_aim(systems: Systems) -> None:
    """The level that flags fewest is no by-product of attacks on others: it is what a gateway serves by default."""
    aims = {stage.until for stage in [*stages(systems), *stricter(systems)]}
    assert {f"served@{alpha:g}" for alpha in ALPHAS} <= aims
    least = [stage for stage in stricter(systems) if stage.until == f"all@{RATES[0]:g}"]
    assert len(least) == 1
    assert least[0].given is None
