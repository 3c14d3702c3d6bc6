"""The study of pools, on the colour classifier of the gateway's tests."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from gateway.core.pipeline import Pipeline
from gateway.settings import Settings
from gateway.versions.registry import load_pipeline
from studies.pool import POOLS, pool_report, pool_table, seen
from tests.gateway.tiny import clean_image, doubtful_image, write_bundle
from tests.studies.test_recovery import Colours
from training.bundling.pool import fitted
from training.data.dataset import Split
from training.util.signatures import silent


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return load_pipeline(write_bundle(tmp_path_factory.mktemp("models") / "tiny"), Settings(threads=1))


@pytest.fixture(scope="module")
def split() -> Split:
    """Two plain images that a small change makes blue, and one that is suspect and answered as blue."""
    images = np.stack([clean_image((60, 0, 12)), clean_image((0, 60, 12)), doubtful_image()])
    return Split(images, np.array([0, 1, 0]), np.arange(3))


def test_a_pool_serves_what_it_would_of_all_images_and_of_suspect_ones(pipeline: Pipeline, split: Split) -> None:
    found = seen(pipeline, split, "three images", silent)
    assert found.suspect.tolist() == [False, False, True]
    assert found.without.tolist() == [0, 1, 2]
    assert found.served(None).tolist() == [0, 1, 2]
    weights = POOLS["answering .5, companion"]
    assert weights is not None
    many = split.take(np.array([0, 1] * 12))
    fit = seen(pipeline, many, "benign", silent)
    rule = fitted(*fit.asked(weights), fit.truth, fit.group, weights=weights)
    assert found.served(rule).tolist() == found.served(rule, gated=True).tolist() == [0, 1, 0]
    calm = replace(found, suspect=np.zeros(3, bool))
    assert calm.served(rule).tolist() == [0, 1, 0]
    assert calm.served(rule, gated=True).tolist() == [0, 1, 2]


def test_every_pool_is_reported_that_the_bundle_can_have(pipeline: Pipeline, split: Split) -> None:
    data = SimpleNamespace(calibrate=split.take(np.array([0, 1] * 12)), select=split.take(np.array([0, 1] * 20)))
    report = pool_report(pipeline, cast(Any, Colours()), cast(Any, data), names=("pgd_8",), n=4, progress=silent)
    assert set(report["pools"]) == {title for title, weights in POOLS.items() if not (weights and weights[2])}
    for found in report["pools"].values():
        assert found["clean"]["mean"] == 1
        assert 0 <= found["right"]["pgd_8"]["mean"] <= 1
    assert pool_table(report).row_count == 3
