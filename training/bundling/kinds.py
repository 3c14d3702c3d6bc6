"""The rule that tells kinds of anomaly apart, fitted and calibrated for a bundle: `gateway.core.kinds`.

The softmax regression sees ordinary images of the select split, the same images made strange, and the same images
attacked, each kind with the same weight in total. No other data set is needed. Its p-values come of the calibrate
split, averaged over its groups.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

from gateway.core.decode import decode_image
from gateway.core.engine import Engine
from gateway.core.grouped import group_weights
from gateway.core.kinds import log_odds, reading_names, readings, standard
from gateway.core.loading import Bundle, load_bundle
from gateway.core.manifest import Manifest
from gateway.core.rules import KindRule
from training.bundling.networks import load_defence
from training.bundling.provenance import made_with
from training.bundling.rules import add_rule, revised
from training.bundling.samples import TITLES, Effort, attacked_images
from training.data.dataset import Dataset, Split
from training.data.strangers import strangers
from training.errors import TrainingError
from training.served.scoring import run_batches
from training.util.atomic import draft_of
from training.util.signatures import StepProgress, silent

EFFORT = Effort(tried=200, steps=15, places=3, probe_steps=4)
RIDGE = 1e-3


@dataclass(frozen=True)
class Seen:
    """Readings (N, R) of images by what they are: `ordinary`, or the name of a change or of an attack."""

    ordinary: np.ndarray
    unfamiliar: Mapping[str, np.ndarray]
    attacked: Mapping[str, np.ndarray]


def fit_rule(seen: Seen, names: list[str], *, n: int, groups: int) -> KindRule:
    """The softmax regression on `seen` readings of these `names`; `n` and `groups` are the calibrate split's.

    Kinds weigh the same in total, and within one the sets that it has. A ridge on the weights keeps them finite where
    kinds are separable. Raises `TrainingError` where a kind has no images.
    """
    if not all(sum(map(len, kind.values())) for kind in (seen.unfamiliar, seen.attacked)):
        raise TrainingError("no unfamiliar images, or no attack that fools the network: nothing to tell apart")
    mean, std = seen.ordinary.mean(0), np.maximum(seen.ordinary.std(0), 1e-6)
    kinds: list[Mapping[str, np.ndarray]] = [{"ordinary": seen.ordinary}, seen.unfamiliar, seen.attacked]
    x, y, weight = [], [], []
    for k, sets in enumerate(kinds):
        full = [values for values in sets.values() if len(values)]
        for values in full:
            x.append(standard(values, mean, std))
            y.append(np.full(len(values), k))
            weight.append(np.full(len(values), 1 / len(full) / len(values)))
    weights, bias = _softmax_regression(np.concatenate(x), np.concatenate(y), np.concatenate(weight) / 3)
    counts = {name: len(values) for sets in kinds for name, values in sets.items()}
    return KindRule(
        readings=names,
        mean=mean.tolist(),
        std=std.tolist(),
        weights=weights.tolist(),
        bias=bias.tolist(),
        n=n,
        groups=groups,
        fitted=counts,
    )


def _softmax_regression(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (3, R) and bias (3,) of least weighted cross-entropy and ridge, for x (N, R) and labels y (N,)."""
    one_hot, size = np.eye(3)[y], x.shape[1]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w, b = flat[: 3 * size].reshape(3, size), flat[3 * size :]
        logits = x @ w.T + b
        log_p = logits - np.logaddexp.reduce(logits, axis=1)[:, None]
        slope = (np.exp(log_p) - one_hot) * weight[:, None]
        value = -(weight * log_p[np.arange(len(y)), y]).sum() + RIDGE / 2 * (w**2).sum()
        return float(value), np.concatenate([(slope.T @ x + RIDGE * w).ravel(), slope.sum(0)])

    found = minimize(loss, np.zeros(3 * size + 3), jac=True, method="L-BFGS-B", options={"maxiter": 2000}).x
    return found[: 3 * size].reshape(3, size), found[3 * size :]


def benign_odds(rule: KindRule, values: np.ndarray, groups: np.ndarray) -> dict[str, np.ndarray]:
    """The calibration's arrays `kinds` and `kind_weights`, both (n, 2), from benign readings (n, R) in groups (n,)."""
    logits = standard(values, np.array(rule.mean), np.array(rule.std)) @ np.array(rule.weights).T + np.array(rule.bias)
    odds, weights = log_odds(logits), group_weights(groups)
    order = np.argsort(odds, axis=0, kind="stable")
    return {"kinds": np.take_along_axis(odds, order, axis=0), "kind_weights": weights[order]}


class Reader:
    """Readings of images, taken through the gateway's decoder and session."""

    def __init__(self, bundle: Bundle, progress: StepProgress = silent, *, threads: int = 0) -> None:
        manifest = bundle.manifest
        self.names = reading_names(manifest.scores, companion=manifest.companion)
        self._manifest, self._progress = manifest, progress
        self._engine = Engine.open(bundle, device="cpu", precision="fp32", threads=threads)

    def decode(self, data: bytes) -> np.ndarray:
        """The image of a file, uint8 (H, W, C) at the network's size; raises the decoder's errors."""
        return decode_image(data, self._manifest.input)

    def __call__(self, name: str, images: np.ndarray) -> np.ndarray:
        """Readings (N, R) of uint8 images (N, H, W, C); `name` is what progress calls them."""
        rows = [np.empty((0, len(self.names)))]
        for run in run_batches(
            self._engine,
            images,
            self._manifest.input,
            batch=self._engine.buckets[-1],
            progress=lambda done, total: self._progress(f"reading {name}", done, total),
        ):
            by_name = readings(run, self._manifest.scores)
            rows.append(np.stack([by_name[each] for each in self.names], 1))
        return np.concatenate(rows)


def look(
    bundle: Bundle,
    read: Reader,
    select: Split,
    *,
    effort: Effort,
    seed: int,
    progress: StepProgress = silent,
) -> Seen:
    """Readings of the `select` images, of the first of them made strange, and of those that fool once attacked."""
    made = attacked_images(load_defence(bundle).network, select, tuple(TITLES), effort, seed=seed, progress=progress)
    strange = strangers(select.x[: effort.tried], seed=seed)
    return Seen(
        ordinary=read("select", select.x),
        unfamiliar={name: read(name, some) for name, some in strange.items()},
        attacked={name: read(name, some.images[some.fooled]) for name, some in made.items()},
    )


def with_kinds(
    path: Path,
    out: Path,
    *,
    version: str | None = None,
    effort: Effort = EFFORT,
    threads: int = 0,
    progress: StepProgress = silent,
) -> Bundle:
    """Write to `out` the bundle in `path`, with a rule for kinds beside its CPU calibration in fp32.

    Scores, p-values, cutoffs and flags stay as they are, so that the version may, too. Of the select
    split, in an order drawn by the bundle's seed, `effort.tried` images are made strange (`training.data.strangers`)
    and attacked. Raises
    `TrainingError` where `out` exists, or the data are not those that the bundle was made with.
    """
    bundle = load_bundle(path)
    if out.exists():
        raise TrainingError(f"{out} exists; choose another --out")
    manifest = revised(bundle, version)
    data, evaluation = made_with(bundle)
    with draft_of(out) as draft:
        shutil.copytree(bundle.path, draft, dirs_exist_ok=True)
        add_kinds(draft, manifest, data, seed=evaluation.seed, effort=effort, threads=threads, progress=progress)
    return load_bundle(out)


def add_kinds(
    folder: Path,
    manifest: Manifest,
    data: Dataset,
    *,
    seed: int,
    effort: Effort = EFFORT,
    threads: int = 0,
    progress: StepProgress = silent,
) -> None:
    """Give the bundle in `folder`, made with `data`, a rule for kinds beside its CPU calibration, and this `manifest`.

    Images and attacks are those of `with_kinds`.
    """
    bundle = load_bundle(folder)
    key = bundle.calibration("cpu", "fp32").key
    read = Reader(bundle, progress, threads=threads)
    select = data.select.take(np.random.default_rng([seed, 7]).permutation(len(data.select)))
    seen = look(bundle, read, select, effort=effort, seed=seed, progress=progress)
    groups = data.calibrate.group
    rule = fit_rule(seen, read.names, n=len(groups), groups=len(np.unique(groups)))
    arrays = benign_odds(rule, read("calibrate", data.calibrate.x), groups)
    add_rule(folder, manifest, key, arrays, kinds=rule)
