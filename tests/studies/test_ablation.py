"""The study's file and the table's arithmetic; trainings and attacks have tests of their own."""

import math
from typing import Any

from studies.ablation import FIGURES, STUDY, Study, summary
from training.recipes.training import load_recipe, read_yaml, validate


def test_arms_differ_in_their_terms_alone() -> None:
    study = validate(Study, read_yaml(STUDY), STUDY)
    teacher = load_recipe(STUDY.parent / study.teacher)
    for seed in study.seeds:
        arms = {arm: study.arm_of(arm, seed, teacher.name) for arm in study.arms}
        assert {recipe.seed for recipe in arms.values()} == {seed}
        assert {recipe.init for recipe in arms.values()} == {study.base_of(seed).name}
        assert {recipe.epochs for recipe in arms.values()} == {study.arm.epochs}
        assert not arms["at"].stages[0].terms.active
        bare = [recipe.stages[0].model_copy(update={"terms": study.arms["at"]}) for recipe in arms.values()]
        assert all(stage == bare[0] for stage in bare)
    assert {recipe.name for recipe in study.surrogates}.isdisjoint({teacher.name})


def test_summary_is_the_mean_and_spread_over_seeds() -> None:
    rows: list[dict[str, Any]] = [
        {"seed": 0, "clean": 0.8, "sensitivity": {"stem": 0.1, "stage1": 0.3}},
        {"seed": 1, "clean": 0.9},
    ]
    found = summary(rows)
    assert math.isclose(found["clean"]["mean"], 0.85)
    assert math.isclose(found["clean"]["sd"], math.sqrt(0.005))
    assert found["clean"]["seeds"] == 2
    assert math.isclose(found["sensitivity"]["mean"], 0.2)
    assert found["sensitivity_stage1"] == {"mean": 0.3, "seeds": 1}
    assert "pgd_4" in FIGURES
    assert "pgd_4" not in found
