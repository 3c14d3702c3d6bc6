"""What p-values are worth, and the table of what was flagged."""

from __future__ import annotations

from datetime import date

import pytest

from gateway.core.manifest import Calibration, Cutoff, Policy
from training.bundling.calibrate import ALPHAS, p_cutoff
from training.bundling.trial import Flags, Trial, check_reach, images_needed, table
from training.errors import TrainingError


def calibration(n: int, *, smallest: float | None = None, effect: float = 1.0) -> Calibration:
    return Calibration(
        provider="cpu",
        precision="fp32",
        graphs_sha256="0" * 64,
        fused=["a"],
        cutoffs=[Cutoff(alpha=a, p_cutoff=p_cutoff(n, n / effect, alpha=a), confidence=0.9) for a in ALPHAS],
        n=n,
        groups=n,
        n_select=n,
        smallest_p=1 / (n + 1) if smallest is None else smallest,
        design_effect=effect,
        roa_threshold=0.0,
        date=date(2026, 11, 29),
    )


@pytest.mark.parametrize(("alpha", "needed"), [(0.005, 460), (0.01, 230), (0.02, 114), (0.05, 45), (0.1, 22)])
def test_images_that_an_alpha_needs(alpha: float, needed: int) -> None:
    assert images_needed(alpha, 0.9) == needed
    assert (1 - alpha) ** needed <= 0.1 < (1 - alpha) ** (needed - 1)


def test_enough_images_need_no_words() -> None:
    assert check_reach(calibration(600), Policy()) == []


def test_few_images_keep_few_alphas_and_copies_fewer() -> None:
    notes = check_reach(calibration(60), Policy())
    assert [note.split()[1] for note in notes] == ["0.005", "0.01", "0.02"]
    assert "60 calibrate images are worth 60 independent ones, and 230 are needed" in notes[1]
    assert "up to 3.8 % of benign images may be" in notes[1]
    assert len(check_reach(calibration(60, effect=2.0), Policy())) == 4


def test_a_smallest_p_above_the_policys_cutoff_is_an_error_above_another_a_note() -> None:
    ties = calibration(400, smallest=0.008)
    with pytest.raises(TrainingError, match=r"nothing can be flagged at alpha 0.01: the smallest p-value .* is 0.0080"):
        check_reach(ties, Policy())
    notes = check_reach(ties, Policy(alpha=0.05))
    assert [note.split(":")[0] for note in notes[:2]] == [
        "nothing can be flagged at alpha 0.005",
        "nothing can be flagged at alpha 0.01",
    ]


def test_the_table() -> None:
    row = Flags(title="PGD 8/255", n=16, fooled=15, flagged={"0.01": 14, "0.05": 15})
    lines = table(Trial(attacks=[row], clean=105, clean_flagged={"0.01": 0, "0.05": 4}))
    assert lines[1].split() == ["fooled", "alpha", "0.01", "alpha", "0.05"]
    assert lines[2].split() == ["PGD", "8/255", "15/16", "14/15", "15/15"]
    assert lines[3].split() == ["clean", "0/105", "4/105"]
