"""A new calibration out of what a gateway has kept: the uniform sample of its traffic, sorted by its reviewers.

The uniform sample is all traffic in small, attacks included. Of it everything counts as benign but what reviewers have
confirmed as an attack; what is flagged and not reviewed is nobody's yet, so that it has to be reviewed first: leaving
it out would move the calibration towards calm images, and each such calibration would flag more. Flagged events beyond
the sample do not count: they were kept because they are unusual.
"""

from __future__ import annotations

import io
import shutil
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import numpy as np
from PIL import Image

from gateway.audit.database import sqlite_url
from gateway.audit.store import AuditStore, Filter, StoredEvent
from gateway.core.engine import Engine
from gateway.core.loading import Bundle, load_bundle, read_manifest, write_manifest
from training.bundling.calibrate import CALIBRATION, calibrate, enough_to_calibrate
from training.bundling.calibrate import benign_scores as scores_of
from training.bundling.kinds import Reader, benign_odds
from training.bundling.rules import add_arrays, revised
from training.bundling.votes import add_votes, hiding
from training.data.dataset import Dataset, Split
from training.errors import TrainingError
from training.util.atomic import draft_of
from training.util.signatures import StepProgress, silent

TOGETHER = timedelta(seconds=60)
"""Events of one caller that follow one another within it are one group: likely frames of one thing."""
SPAN = timedelta(minutes=5)
"""The longest that a group lasts: a caller who never pauses, as one key of a whole service, is no single thing."""
TAILS = 0.25
"""Share of the groups that the guard's tails are set on; p-values count the others."""
_PAGE = 200


@dataclass(frozen=True)
class Reviewed:
    """Images uint8 (N, H, W, C) of benign sampled events, their groups (N,), and how many events were left out."""

    images: np.ndarray
    groups: np.ndarray
    confirmed: int
    unpictured: int


def open_store(place: str) -> AuditStore:
    """The audit store at a database URL, or in a gateway's data folder; `TrainingError` if there is none."""
    if "://" in place:
        store = AuditStore(place)
    else:
        file = Path(place) / "audit.db"
        if not file.is_file():
            raise TrainingError(f"{file}: no such file; give the gateway's PALISADE_DATA_DIR or PALISADE_AUDIT_URL")
        store = AuditStore(sqlite_url(file))
    store.prepare()
    return store


def reviewed_images(store: AuditStore, bundle: Bundle) -> Reviewed:
    """The benign images of the uniform sample of the bundle's model and version.

    Raises `TrainingError` where flagged ones are not reviewed, or pictures are not those of the bundle's size.
    """
    sampled = [event for event in _events(store, bundle.name) if event.sampled and event.version == bundle.version]
    if waiting := [event for event in sampled if event.flagged and event.review is None]:
        raise TrainingError(
            f"{len(waiting)} flagged events of the uniform sample of {bundle.name} {bundle.version} are not reviewed, "
            f"the oldest is {min(event.id for event in waiting)}: review them first"
        )
    benign = [event for event in sampled if event.review != "confirmed"]
    spec, images, kept = bundle.manifest.input, [], []
    for event in benign:
        png = store.picture(event.id, "input")
        if png is None:
            continue
        image = np.asarray(Image.open(io.BytesIO(png)))
        image = image[..., None] if image.ndim == 2 else image
        if image.shape != (spec.height, spec.width, spec.channels):
            raise TrainingError(f"event {event.id}: its picture is {image.shape}, not of the bundle's size")
        images.append(image)
        kept.append(event)
    if not images:
        raise TrainingError(
            f"no pictures of the uniform sample of {bundle.name} {bundle.version}: PALISADE_AUDIT_SAMPLE above 0 and "
            "PALISADE_AUDIT_PRIVACY=image keep them"
        )
    return Reviewed(np.stack(images), groups_of(kept), len(sampled) - len(benign), len(benign) - len(images))


def groups_of(events: list[StoredEvent]) -> np.ndarray:
    """Groups (N,) of events: those of one caller, `TOGETHER` between one and the next and `SPAN` in all at most."""
    groups, number, last, first = np.zeros(len(events), np.int64), -1, None, None
    for i in sorted(range(len(events)), key=lambda i: (events[i].caller or "", events[i].time)):
        event = events[i]
        pause = last is None or event.caller != last.caller or event.time - last.time > TOGETHER
        if pause or first is None or event.time - first.time > SPAN:
            number, first = number + 1, event
        groups[i], last = number, event
    return groups


def from_reviews(
    path: Path,
    out: Path,
    store: AuditStore,
    *,
    version: str | None = None,
    seed: int = 0,
    progress: StepProgress = silent,
) -> tuple[Bundle, Reviewed]:
    """Write to `out` the bundle in `path`, calibrated on the reviewed sample in `store`, for the CPU in fp32.

    The version is by default the old one with the suffix `-reviews.1`, which is lower than the old one: a gateway that
    has both serves the old one until somebody activates the new one. Fused scores, guard, screen and the rule for
    kinds stay; what they are compared with is new. Raises `TrainingError`.
    """
    bundle = load_bundle(path)
    if out.exists():
        raise TrainingError(f"{out} exists; choose another --out")
    version = version or f"{bundle.version.partition('-')[0]}-reviews.1"
    manifest = revised(bundle, version)
    if version == bundle.version:
        raise TrainingError(f"{path} is already version {version}; give another --version")
    found, like = reviewed_images(store, bundle), bundle.calibration("cpu", "fp32")
    data = _dealt(found, bundle.manifest.classes, seed=seed)
    enough_to_calibrate(data)
    engine = Engine.open(bundle, device="cpu", precision="fp32")
    scores = scores_of(engine, manifest.input, data, progress, guarded=like.guard is not None, seed=seed)
    # Nobody has labelled them: a second answer is served where it agrees with the first one.
    scores = replace(scores, labels=scores.answers)
    with draft_of(out) as draft:
        shutil.copytree(path, draft, dirs_exist_ok=True)
        made = calibrate(
            scores,
            names=manifest.scores,
            fused=like.fused,
            provider="cpu",
            graphs_sha256=like.graphs_sha256,
            out=draft,
            guard=like.guard,
            screened_by=like.cascade.scores if like.cascade else [],
            evaluated=False,
            seed=seed,
        )
        if like.kinds is not None:
            group = data.calibrate.group
            read = Reader(bundle, progress)
            columns = [read.names.index(name) for name in like.kinds.readings]
            values = read("the sample", data.calibrate.x)[:, columns]
            rule = like.kinds.model_copy(update={"n": len(group), "groups": len(np.unique(group))})
            add_arrays(draft / CALIBRATION, like.key, benign_odds(rule, values, group))
            made = made.model_copy(update={"kinds": rule})
        # Nobody has labelled the images, and a pool's threshold is about labels: it stays.
        made = made.model_copy(update={"pool": like.pool})
        others = [each for each in manifest.calibrations if each.key != made.key]
        recalibrated = manifest.model_copy(update={"calibrations": [*others, made]})
        write_manifest(draft, recalibrated)
        if like.votes is not None:
            given = like.votes
            masks = hiding(manifest, patch=given.patch, masks_per_axis=given.masks_per_axis, by=given.by)
            add_votes(draft, read_manifest(draft), data.calibrate, masks=masks, whole=given.whole, progress=progress)
        load_bundle(draft)
    return load_bundle(out), found


def _events(store: AuditStore, model: str) -> list[StoredEvent]:
    found: list[StoredEvent] = []
    while page := store.page(Filter(model=model), limit=_PAGE, before=found[-1].id if found else None):
        found += page
    return found


def _dealt(found: Reviewed, classes: list[str], *, seed: int) -> Dataset:
    """The images as select split (a quarter of the groups) and calibrate split; the others are empty."""
    groups = np.random.default_rng([seed, 19]).permutation(np.unique(found.groups))
    first = np.isin(found.groups, groups[: round(TAILS * len(groups))])
    labels = np.full(len(found.images), -1, np.int64)
    whole = Split(found.images, labels, found.groups)
    none = whole.take(np.arange(0))
    return Dataset(
        "reviews", classes, none, whole.take(np.flatnonzero(first)), whole.take(np.flatnonzero(~first)), none
    )
