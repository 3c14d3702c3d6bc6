from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from training.evaluate.checks import CHECKS, self_checks
from training.recipes.evaluation import Evaluation


def bits(share: float, n: int = 200) -> np.ndarray:
    return np.arange(n) < round(share * n)


def results(**sections: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: {"section": section, "curves": {}} for name, section in sections.items()}


def verdicts(found: dict[str, Any], outcomes: dict[str, np.ndarray] | None = None) -> dict[str, bool | None]:
    return {row["check"]: row["passed"] for row in self_checks(found, outcomes or {}, Evaluation())}


DRIVEN = {"accuracy": 0.0, "eps": 16, "n": 500}
CURVE = {"0": 0.95, "4": 0.7, "8": 0.5, "255": 0.0}
GRADIENTS = {"zero": 0.0, "sign": 0.6, "noise": 0.02}


def test_nothing_measured_is_nothing_told() -> None:
    assert set(verdicts({}).values()) == {None}


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        ("control", {"control": DRIVEN}, {"control": DRIVEN | {"accuracy": 0.02}}),
        (
            "unbounded",
            {"curve": {"n": 500, "companion": CURVE}},
            {"curve": {"n": 500, "companion": CURVE | {"255": 0.004}}},
        ),
        ("budget", {"curve": {"n": 500, "companion": CURVE}}, {"curve": {"n": 500, "companion": CURVE | {"8": 0.72}}}),
        (
            "gradients",
            {"gradients": {"n": 99, "companion": GRADIENTS}},
            {"gradients": {"n": 99, "companion": GRADIENTS | {"zero": 0.3}}},
        ),
        (
            "noise",
            {"gradients": {"n": 99, "companion": GRADIENTS}},
            {"gradients": {"n": 99, "companion": GRADIENTS | {"sign": 0.0}}},
        ),
        (
            "square_last_8",
            {"autoattack_8": {"n": 500, "fell_to": {"square": 0.002}}},
            {"autoattack_8": {"n": 500, "fell_to": {"square": 0.03}}},
        ),
        (
            "doubled",
            {"doubled": {"n": 200, "once": {"served": 0.5}, "twice": {"served": 0.505}}},
            {"doubled": {"n": 200, "once": {"served": 0.5}, "twice": {"served": 0.53}}},
        ),
        (
            "smoothed",
            {"smoothed": {"n": 200, "once": {"alpha_0.05": 0.5}, "averaged": {"alpha_0.05": 0.505}}},
            {"smoothed": {"n": 200, "once": {"alpha_0.05": 0.5}, "averaged": {"alpha_0.05": 0.53}}},
        ),
    ],
)
def test_what_a_section_tells(check: str, good: dict[str, Any], bad: dict[str, Any]) -> None:
    assert verdicts(results(**good))[check] is True
    assert verdicts(results(**bad))[check] is False


@pytest.mark.parametrize(
    ("check", "weak", "strong"),
    [
        ("iterative", "fgsm_8", "pgd_8"),
        ("square", "square_8", "pgd_8"),
        ("transfer", "transfer_8", "pgd_8"),
        ("radius", "pgd_4", "pgd_8"),
    ],
)
def test_a_weak_attack_may_not_win(check: str, weak: str, strong: str) -> None:
    """On as many images as both were made on."""
    fine = {f"fooled_{weak}": bits(0.9, 100), f"fooled_{strong}": bits(0.9)}
    assert verdicts({}, fine)[check] is True
    assert verdicts({}, {f"fooled_{weak}": bits(0.95), f"fooled_{strong}": bits(0.9)})[check] is False


def test_autoattack_and_pgd() -> None:
    def seen(pgd: float, auto: float) -> bool | None:
        return verdicts({}, {"pgd50_8": bits(pgd), "autoattack_8": bits(auto)})["autoattack_8"]

    assert seen(0.53, 0.51) is True
    assert seen(0.53, 0.40) is False  # PGD was misled
    assert seen(0.50, 0.55) is False  # AutoAttack was


def test_a_simple_attack_better_than_the_joint_one_fails() -> None:
    def seen(simple: float, joint: float) -> bool | None:
        curves = {"simple": {"all@0.05": simple}, "joint": {"all@0.05": joint}}
        found = {"section": {"adaptive": {"n": 200}}, "curves": curves}
        return verdicts({"adaptive_8": found})["adaptive_8"]

    assert seen(0.3, 0.5) is True
    assert seen(0.5, 0.3) is False


def test_a_broken_detector_has_to_be_broken() -> None:
    def seen(broken: float, answering: float) -> bool | None:
        systems = {"eps_8": {"max_softmax": {"fpr_0.05": broken}, "answering": {"fpr_0.05": answering}}}
        section = {"adaptive": {"n": 200}, "systems": systems}
        return verdicts({"adaptive_8": {"section": section, "curves": {"simple": {}, "joint": {}}}})["broken"]

    assert seen(0.98, 0.99) is True
    assert seen(0.60, 0.99) is False


def test_every_check_says_what_it_is_for() -> None:
    assert all(title for title, _ in CHECKS.values())
