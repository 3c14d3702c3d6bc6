"""`palisade recalibrate --from-reviews`: what counts as benign, and the version that comes of it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from gateway.audit.database import sqlite_url
from gateway.audit.store import AuditStore, Filter
from gateway.core.engine import Engine
from gateway.core.loading import load_bundle
from gateway.core.pipeline import Pipeline
from gateway.versions.catalogue import _precedence as precedence
from tests.gateway.audit.records import NOON, record
from tests.gateway.core.test_kinds import tell_apart
from tests.gateway.core.test_precision import with_half
from tests.gateway.tiny import add_pool, add_small_field, add_votes, clean_image, patched_image, write_bundle
from training.bundling.reviewed import from_reviews, groups_of, open_store, reviewed_images
from training.commands.main import app
from training.errors import TrainingError

CALM: dict[str, Any] = {"kind": "sample", "sampled": True, "flagged": False}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AuditStore]:
    made = AuditStore(sqlite_url(tmp_path / "audit.db"))
    made.prepare()
    yield made
    made.close()


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def speckled(rng: np.random.Generator) -> np.ndarray:
    """A red image with up to 25 saturated pixels."""
    image = clean_image((int(rng.integers(60, 180)), 0, 0))
    for _ in range(rng.integers(0, 26)):
        image[tuple(rng.integers(0, 16, 2))] = (255, 0, 0)
    return image


def fill(store: AuditStore, n: int, **fields: object) -> None:
    """`n` sampled events of as many callers."""
    rng = np.random.default_rng(0)
    records = [
        record(i, pictures={"input": png(speckled(rng))}, **(CALM | {"caller": f"key-{i}"} | fields)) for i in range(n)
    ]
    store.insert(records)


def test_a_new_version_is_calibrated_on_the_sample_and_is_lower_than_the_old(store: AuditStore, tmp_path: Path) -> None:
    bundle = tell_apart(write_bundle(tmp_path / "tiny"), tmp_path / "told")
    fill(store, 300)
    store.insert([record(400, pictures={"input": png(patched_image())}, **(CALM | {"flagged": True}))])
    store.review(f"{400:026d}", {"review": "confirmed"}, reviewer="somebody")
    store.insert([record(401, pictures={}, **CALM), record(402, pictures={"input": png(patched_image())})])
    made, found = from_reviews(bundle, tmp_path / "new", store)
    assert (len(found.images), found.confirmed, found.unpictured) == (300, 1, 1)
    assert made.version == "1.0.0-reviews.1"
    assert precedence(made.version) < precedence("1.0.0")  # sorted after it, the newest first
    calibration = made.calibration("cpu", "fp32")
    assert (calibration.n, calibration.groups, calibration.n_tails) == (225, 225, 75)
    assert (calibration.counted, calibration.evaluated) == ("groups", False)
    assert calibration.kinds is not None
    assert calibration.kinds.n == 225
    pipeline = Pipeline.on(Engine.open(made, device="cpu", threads=1), made)
    calm, loud = pipeline.decide_images([clean_image(), patched_image()])
    assert not calm.flagged
    assert loud.flagged
    assert load_bundle(bundle).calibration("cpu", "fp32").n == 400


def test_votes_and_the_pool_stay_what_they_were(store: AuditStore, tmp_path: Path) -> None:
    tiny = add_small_field(write_bundle(tmp_path / "tiny"))
    add_pool(add_votes(tiny, patch=6, by="small_field", whole=0.5), small_field=0.8)
    fill(store, 100)
    made, _ = from_reviews(tiny, tmp_path / "new", store)
    old, new = (each.calibration("cpu", "fp32") for each in (load_bundle(tiny), made))
    assert new.votes is not None
    assert (new.votes.by, new.votes.whole, new.votes.n) == ("small_field", 0.5, 75)
    assert new.pool == old.pool is not None


def test_flagged_events_of_the_sample_have_to_be_reviewed(store: AuditStore, tmp_path: Path) -> None:
    bundle = load_bundle(write_bundle(tmp_path / "tiny"))
    fill(store, 30)
    store.insert([record(50, pictures={"input": png(patched_image())}, **(CALM | {"flagged": True}))])
    with pytest.raises(TrainingError, match=r"1 flagged events .* are not reviewed"):
        reviewed_images(store, bundle)
    store.review(f"{50:026d}", {"review": "false_positive"}, reviewer=None)
    assert len(reviewed_images(store, bundle).images) == 31


def test_events_of_other_versions_and_without_pictures_do_not_count(store: AuditStore, tmp_path: Path) -> None:
    bundle = load_bundle(write_bundle(tmp_path / "tiny"))
    fill(store, 5, version="0.9.0")
    with pytest.raises(TrainingError, match="PALISADE_AUDIT_PRIVACY=image"):
        reviewed_images(store, bundle)
    store.insert([record(60, pictures={"input": png(np.zeros((8, 8, 3), np.uint8))}, **CALM)])
    with pytest.raises(TrainingError, match="not of the bundle's size"):
        reviewed_images(store, bundle)


def test_events_of_one_caller_that_follow_one_another_are_a_group(store: AuditStore) -> None:
    seconds = [0, 30, 80, 200, 10]
    callers = ["a", "a", "a", "a", None]
    store.insert(
        [
            record(i, time=NOON + timedelta(seconds=second), caller=caller, **CALM)
            for i, (second, caller) in enumerate(zip(seconds, callers, strict=True))
        ]
    )
    events = sorted(store.page(Filter(), limit=10), key=lambda event: event.id)
    groups = groups_of(events)
    assert groups[0] == groups[1] == groups[2]
    assert len({groups[0], groups[3], groups[4]}) == 3


def test_a_caller_who_never_pauses_is_more_than_one_group(store: AuditStore) -> None:
    """One key of a whole service, an event each 30 seconds for an hour."""
    store.insert([record(i, time=NOON + timedelta(seconds=30 * i), caller="shop", **CALM) for i in range(120)])
    counts = np.bincount(groups_of(list(store.page(Filter(), limit=200))))
    assert len(counts) == 11
    assert counts.max() == 11


def test_calibrations_that_stay_as_they_were_are_named(store: AuditStore, tmp_path: Path) -> None:
    """A gateway on a GPU goes on serving with them."""
    bundle = with_half(write_bundle(tmp_path / "tiny"), "cuda-fp16")
    fill(store, 300)
    command = ["recalibrate", str(bundle), "--from-reviews", str(tmp_path), "--out", str(tmp_path / "new")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "serves with cuda-fp16 judges as before" in " ".join(done.output.split())


def test_too_few_events_and_wrong_places_are_errors(store: AuditStore, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "tiny")
    fill(store, 30)
    command = ["recalibrate", str(bundle), "--from-reviews", str(tmp_path), "--out", str(tmp_path / "new")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2
    assert "too few images to calibrate on" in " ".join(done.output.split())
    assert not (tmp_path / "new").exists()
    with pytest.raises(TrainingError, match="no such file"):
        open_store(str(tmp_path / "nowhere"))
