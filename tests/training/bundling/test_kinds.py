"""`palisade kinds`: the rule is fitted and calibrated, and nothing else of the bundle changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from gateway.core.kinds import log_odds, standard
from gateway.core.loading import Bundle
from studies.kinds import Told, adaptive, false_alarms, fooling, odds_of, row
from tests.training.toy import gratings
from training.bundling.kinds import Reader, Seen, benign_odds, fit_rule, with_kinds
from training.bundling.networks import load_defence
from training.bundling.samples import Effort
from training.commands.main import app
from training.data.strangers import STRANGERS, strangers
from training.errors import TrainingError
from training.imaging.pixels import to_tensor
from training.util.statistics import auroc

QUICK = Effort(tried=40, steps=5, places=1, probe_steps=1)


def made_up(seed: int = 0) -> Seen:
    """Two readings: the first is large for unfamiliar images, the second for attacked ones."""
    rng = np.random.default_rng(seed)
    return Seen(
        rng.normal(size=(400, 2)),
        {"fog": rng.normal((6, 0), size=(60, 2)), "none": np.empty((0, 2))},
        {"pgd": rng.normal((0, 6), size=(90, 2))},
    )


def test_the_rule_tells_made_up_readings_apart() -> None:
    seen, fresh = made_up(), made_up(1)
    rule = fit_rule(seen, ["a", "b"], n=400, groups=40)
    assert rule.fitted == {"ordinary": 400, "fog": 60, "none": 0, "pgd": 90}
    odds = {}
    for name, values in (("fog", fresh.unfamiliar["fog"]), ("pgd", fresh.attacked["pgd"]), ("none", fresh.ordinary)):
        x = standard(values, np.array(rule.mean), np.array(rule.std))
        odds[name] = log_odds(x @ np.array(rule.weights).T + np.array(rule.bias))
    assert (auroc(odds["none"][:, 0], odds["fog"][:, 0]) or 0) > 0.99
    assert (auroc(odds["none"][:, 1], odds["pgd"][:, 1]) or 0) > 0.99
    assert (auroc(odds["pgd"][:, 0] - odds["pgd"][:, 1], odds["fog"][:, 0] - odds["fog"][:, 1]) or 0) > 0.99


def test_benign_odds_ascend_with_their_weights() -> None:
    seen = made_up()
    rule = fit_rule(seen, ["a", "b"], n=400, groups=2)
    groups = np.r_[np.zeros(100), np.ones(300)]
    arrays = benign_odds(rule, seen.ordinary, groups)
    assert (np.diff(arrays["kinds"], axis=0) >= 0).all()
    np.testing.assert_allclose(arrays["kind_weights"].sum(0), 2)
    assert set(np.unique(arrays["kind_weights"])) == {1 / 100, 1 / 300}


def test_nothing_to_tell_apart_is_an_error() -> None:
    seen = made_up()
    with pytest.raises(TrainingError, match="nothing to tell apart"):
        fit_rule(Seen(seen.ordinary, seen.unfamiliar, {"pgd": np.empty((0, 2))}), ["a", "b"], n=400, groups=2)


@pytest.mark.parametrize("channels", [1, 3])
def test_strangers_are_images_of_the_same_shape(channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 18, 20, channels), np.uint8)
    made, again = strangers(images, seed=4), strangers(images, seed=4)
    assert list(made) == list(STRANGERS)
    for name, some in made.items():
        assert some.shape == images.shape
        assert some.dtype == np.uint8
        np.testing.assert_array_equal(some, again[name])
        assert (some != images).any()


def test_a_bundle_gets_a_rule_and_stays_as_it_is(bundle: Bundle, tmp_path: Path) -> None:
    made = with_kinds(bundle.path, tmp_path / "told", effort=QUICK, threads=1)
    assert made.version == bundle.version
    before, after = bundle.manifest.calibrations[0], made.manifest.calibrations[0]
    assert after.model_copy(update={"kinds": None}) == before
    for name, values in bundle.arrays.items():
        np.testing.assert_array_equal(made.arrays[name], values)
    assert {n: s for n, s in made.manifest.files.items() if n != "calibration.npz"} == {
        n: s for n, s in bundle.manifest.files.items() if n != "calibration.npz"
    }
    rule = after.kinds
    assert rule is not None
    assert rule.n == before.n

    read, told = Reader(made, threads=1), Told(made, 0.05)
    split = gratings(8, seed=3)
    values = read("test", split.x)
    _, odds = odds_of(load_defence(made), rule, to_tensor(split.x))
    np.testing.assert_allclose(odds.detach().numpy(), told(values)["odds"], atol=0.05, rtol=0.01)
    alarms = false_alarms(told(values), np.arange(8))
    assert sum(alarms[f"named {kind}"][0] for kind in ("ordinary", "unfamiliar", "attacked", "both")) == pytest.approx(
        1
    )
    assert set(row(told(values))) >= {"n", "flagged", "both"}
    with pytest.raises(TrainingError, match="exists"):
        with_kinds(bundle.path, tmp_path / "told")


def test_attackers_who_know_the_rule_stay_within_their_radius(bundle: Bundle, tmp_path: Path) -> None:
    made = with_kinds(bundle.path, tmp_path / "told", effort=QUICK, threads=1)
    rule, defence, split = made.manifest.calibrations[0].kinds, load_defence(made), gratings(8, seed=3)
    assert rule is not None
    x, y = to_tensor(split.x), torch.from_numpy(split.y)
    for aim in ("unfamiliar", "not attacked"):
        found = adaptive(defence, rule, x, y, aim=aim, seed=0, steps=4)
        assert (found - x).abs().max() <= 8 / 255 + 1e-6
    counts = dict.fromkeys(("fgsm_8", "pgd_4", "pgd_8", "l2_1", "patch", "patch_low"), 2)
    assert set(fooling(defence, split, seed=0, counts=counts)) == set(counts)


def test_a_bad_version_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    command = ["kinds", str(bundle.path), "--out", str(tmp_path / "x"), "--version", "new", "--threads", "1"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2
    assert "expected three numbers" in " ".join(done.output.split())
