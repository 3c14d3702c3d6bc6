"""Self-checks of the harness: signs that an attack was too weak or that gradients are masked (methods, section 6).

After Carlini et al. 2019 (arXiv 1902.06705) and Athalye et al. 2018 (arXiv 1802.00420). Passing proves nothing; a check
that does not pass means that figures of this card overstate the defence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from training.recipes.evaluation import Evaluation

POINT = 0.01
CONTROL = 0.005
WEAKER = 0.08
Results = Mapping[str, Mapping[str, Any]]
Outcomes = Mapping[str, np.ndarray]
# None: it cannot be decided, as a unit is missing; else whether it passed and what was seen.
Verdict = tuple[bool, str] | None
Check = Callable[[Results, Outcomes, Evaluation], Verdict]


def self_checks(results: Results, outcomes: Outcomes, settings: Evaluation) -> list[dict[str, Any]]:
    """One row for each check: name, title, `passed` (None where a unit is missing) and what was seen."""
    rows = []
    for name, (title, test) in CHECKS.items():
        found = test(results, outcomes, settings)
        rows.append(
            {"check": name, "title": title, "passed": None, "seen": "not measured"}
            if found is None
            else {"check": name, "title": title, "passed": found[0], "seen": found[1]}
        )
    return rows


def _control(results: Results, _outcomes: Outcomes, _settings: Evaluation) -> Verdict:
    if "control" not in results:
        return None
    row = results["control"]["section"]
    return row["accuracy"] <= CONTROL, f"{_percent(row['accuracy'])} left at {row['eps']:g}/255, n = {row['n']:,}"


def _unbounded(results: Results, _outcomes: Outcomes, _settings: Evaluation) -> Verdict:
    if "curve" not in results:
        return None
    ends = {role: list(points.values())[-1] for role, points in _roles(results["curve"]["section"]).items()}
    return max(ends.values()) == 0, ", ".join(f"{role} {_percent(end)}" for role, end in ends.items())


def _budget(results: Results, _outcomes: Outcomes, _settings: Evaluation) -> Verdict:
    if "curve" not in results:
        return None
    section = results["curve"]["section"]
    worst = max(float(max(np.diff(list(points.values())).max(), 0)) for points in _roles(section).values())
    return worst <= max(POINT, 1.5 / section["n"]), f"largest rise from one radius to the next {_percent(worst)}"


def _pair(weak: str, strong: str) -> Check:
    """On the images that both were made on, the `weak` attack fools at most a point more than the `strong` one."""

    def test(_results: Results, outcomes: Outcomes, _settings: Evaluation) -> Verdict:
        a, b = (outcomes.get(f"fooled_{name}") for name in (weak, strong))
        if a is None or b is None:
            return None
        n = min(len(a), len(b))
        return _no_better(a[:n], b[:n], f"{weak} fools", strong)

    return test


def _no_better(weak: np.ndarray, strong: np.ndarray, verb: str, name: str) -> tuple[bool, str]:
    n, more = len(weak), float(weak.mean() - strong.mean())
    return more <= max(POINT, 1.5 / n), f"{verb} {_percent(weak.mean())}, {name} {_percent(strong.mean())}, n = {n:,}"


def _autoattack(eps: int) -> Check:
    """AutoAttack is at least as strong as PGD, and PGD not much weaker: otherwise gradients mislead PGD.

    A single start of PGD on the margin is a few points weaker on ordinary adversarially trained networks, too.
    """

    def test(_results: Results, outcomes: Outcomes, _settings: Evaluation) -> Verdict:
        ours, theirs = outcomes.get(f"pgd50_{eps}"), outcomes.get(f"autoattack_{eps}")
        if ours is None or theirs is None:
            return None
        n = min(len(ours), len(theirs))
        gap = float(ours[:n].mean() - theirs[:n].mean())
        slack = max(POINT, 1.5 / n)
        seen = f"PGD leaves {_percent(ours[:n].mean())}, AutoAttack {_percent(theirs[:n].mean())}, n = {n:,}"
        return -slack <= gap <= max(WEAKER, slack), seen

    return test


def _square_last(eps: int) -> Check:
    def test(results: Results, _outcomes: Outcomes, _settings: Evaluation) -> Verdict:
        if f"autoattack_{eps}" not in results:
            return None
        section = results[f"autoattack_{eps}"]["section"]
        fell = section["fell_to"].get("square", 0.0)
        return fell <= max(POINT / 2, 1.5 / section["n"]), f"{_percent(fell)} of images fell to Square alone"

    return test


def _gradients(results: Results, _outcomes: Outcomes, _settings: Evaluation) -> Verdict:
    if "gradients" not in results:
        return None
    section = results["gradients"]["section"]
    none = max(row["zero"] for row in _roles(section).values())
    return none <= POINT, f"zero at {_percent(none)} of images, n = {section['n']:,}"


def _noise(results: Results, _outcomes: Outcomes, _settings: Evaluation) -> Verdict:
    if "gradients" not in results:
        return None
    section = results["gradients"]["section"]
    seen = [(row["noise"], row["sign"]) for row in _roles(section).values()]
    worse = max(noise - sign for noise, sign in seen)
    shown = "; ".join(f"noise {_percent(noise)}, one step {_percent(sign)}" for noise, sign in seen)
    return worse <= max(POINT, 1.5 / section["n"]), shown


def _doubled(results: Results, _outcomes: Outcomes, _settings: Evaluation) -> Verdict:
    if "doubled" not in results:
        return None
    section = results["doubled"]["section"]
    once, twice, n = section["once"], section["twice"], section["n"]
    changes = {system: twice[system] - once[system] for system in once}
    shown = ", ".join(f"{system} {_percent(once[system])} to {_percent(twice[system])}" for system in once)
    return max(changes.values()) <= max(POINT, 1.5 / n), f"{shown}, n = {n}"


def _smoothed(results: Results, _outcomes: Outcomes, _settings: Evaluation) -> Verdict:
    if "smoothed" not in results:
        return None
    section = results["smoothed"]["section"]
    once, averaged, n = section["once"], section["averaged"], section["n"]
    shown = ", ".join(f"{_percent(once[key])} to {_percent(averaged[key])}" for key in once)
    return max(averaged[key] - once[key] for key in once) <= max(POINT, 1.5 / n), f"{shown}, n = {n}"


def _adaptive(eps: int) -> Check:
    """On every defended system the joint attacks win at least what simpler ones do."""

    def test(results: Results, _outcomes: Outcomes, _settings: Evaluation) -> Verdict:
        found = results.get(f"adaptive_{eps}")
        if found is None:
            return None
        joint, undefended = found["curves"]["joint"], ("answering", "max_softmax")
        simple = {column: won for column, won in found["curves"]["simple"].items() if not column.startswith(undefended)}
        worst = max(simple, key=lambda column: simple[column] - joint[column], default=None)
        if worst is None:
            return None
        n = found["section"]["adaptive"]["n"]
        more = simple[worst] - joint[worst]
        return more <= max(POINT, 1.5 / n), f"{worst}: simple {_percent(simple[worst])}, joint {_percent(joint[worst])}"

    return test


def _broken(results: Results, _outcomes: Outcomes, _settings: Evaluation) -> Verdict:
    systems = results["adaptive_8"]["section"].get("systems", {}).get("eps_8") if "adaptive_8" in results else None
    if not systems:
        return None
    broken, answering = (systems[name]["fpr_0.05"] for name in ("max_softmax", "answering"))
    return broken >= 0.9 * answering, f"{_percent(broken)} pass it, of {_percent(answering)} that are answered wrong"


def _radii(_results: Results, outcomes: Outcomes, _settings: Evaluation) -> Verdict:
    a, b = outcomes.get("joint_4"), outcomes.get("joint_8")
    if a is None or b is None:
        return None
    n = min(len(a), len(b))
    return _no_better(a[:n], b[:n], "at 4/255 it wins", "at 8/255")


def _roles(section: Mapping[str, Any]) -> dict[str, Any]:
    return {role: section[role] for role in ("answering", "companion") if role in section}


def _percent(value: float) -> str:
    return f"{100 * float(value):.1f} %"


CHECKS: dict[str, tuple[str, Check]] = {
    "control": ("the undefended network is driven to 0 % (at most 0.5 %)", _control),
    "unbounded": ("nothing is left when any pixel may change", _unbounded),
    "budget": ("a larger radius never helps the defender", _budget),
    "gradients": ("gradients of the margin are not zero", _gradients),
    "noise": ("random noise is weaker than one gradient step of the same size", _noise),
    "iterative": ("many steps are no weaker than one", _pair("fgsm_8", "pgd_8")),
    "square": ("Square is no stronger than white-box PGD", _pair("square_8", "pgd_8")),
    "transfer": ("transferred attacks are no stronger than white-box PGD", _pair("transfer_8", "pgd_8")),
    "radius": ("PGD at 4/255 is no stronger than at 8/255", _pair("pgd_4", "pgd_8")),
    "autoattack_4": ("AutoAttack and PGD agree at 4/255", _autoattack(4)),
    "autoattack_8": ("AutoAttack and PGD agree at 8/255", _autoattack(8)),
    "square_last_4": ("Square adds nothing to AutoAttack's white-box attacks at 4/255", _square_last(4)),
    "square_last_8": ("Square adds nothing to AutoAttack's white-box attacks at 8/255", _square_last(8)),
    "adaptive_4": ("no simpler attack does better than the joint one at 4/255", _adaptive(4)),
    "adaptive_8": ("no simpler attack does better than the joint one at 8/255", _adaptive(8)),
    "adaptive_radius": ("the joint attack at 4/255 wins no more than at 8/255", _radii),
    "doubled": ("twice the steps win less than one point more", _doubled),
    "smoothed": ("gradients averaged over noise win less than one point more", _smoothed),
    "broken": ("a deliberately broken detector is broken", _broken),
}
