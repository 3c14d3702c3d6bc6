"""Calibration: benign scores of held-out images, taken through the served path, become p-values and cutoffs.

Constants are fitted on the select split; all p-values, of components and fused, come of the calibrate split, which no
constant has seen (`Fusion.own` on why both may). A guard's tails are set on the select split.
Images of one group (a physical sign's track, a patient, a camera) are alike, so n images are worth fewer independent
ones. With enough groups p-values count groups (`gateway.core.grouped`) and an input is flagged exactly when p <= alpha;
with few, they count images, and cutoffs allow for a design effect that is measured by a bootstrap over groups.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator
from scipy.stats import beta

from gateway.core.engine import Engine, Provider
from gateway.core.grouped import GroupedScores, group_weights
from gateway.core.manifest import Calibration, Cascade, Cutoff, Guard, InputSpec, Precision, Recovery
from gateway.core.verdict import Fusion, fisher, lead, own_p, preference
from training.bundling.kept import Kept
from training.data.corruptions import CHANGES, NOISES, partly_changed
from training.data.dataset import Dataset
from training.errors import TrainingError
from training.served.scoring import run_batches, run_images
from training.util.signatures import StepProgress

Counted = Literal["images", "groups"]

CALIBRATION = "calibration.npz"
ALPHAS = (0.005, 0.01, 0.02, 0.05, 0.1)
CONFIDENCE = 0.9
ROA_QUANTILE = 0.999
GATED, COST = 0.05, 0.002
GOES_ON = 0.13
FEWEST = 20
GUARD = Guard(score="companion_strict", share_below=0.2, share=0.9, knee=0.005)
SCREENED_BY = ("companion_margin",)
TRUSTED = 0.25
"""Share of clean images that a companion may answer otherwise than the network before its guard is left out."""


class Benign(BaseModel):
    """What counts as benign: held-out images as they are, and a `share` of them under one of the `changes`.

    With changes, false-positive rates are kept on that mixture: fewer flags on images as they are and on changed ones,
    attacks included.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    changes: list[str] = Field([], description="of `training.data.corruptions`; each as likely as the others")
    share: float = Field(0.5, gt=0, le=1)

    @field_validator("changes")
    @classmethod
    def _known(cls, changes: list[str]) -> list[str]:
        if unknown := sorted(set(changes) - set(CHANGES) - set(NOISES)):
            raise ValueError(f"unknown change {unknown[0]!r}; there are {', '.join([*CHANGES, *NOISES])}")
        return changes

    def images(self, images: np.ndarray, *, seed: int) -> np.ndarray:
        """uint8 images (N, H, W, C), changed as `benign` asks."""
        return partly_changed(images, self.changes, share=self.share, seed=seed) if self.changes else images


@dataclass(frozen=True)
class BenignScores:
    """What calibration reads of N images of the calibrate split; `tails` are the scores (M, S) of the select split.

    `hidden(rows)` are the logits (R, K) of those calibrate images with their region of attack inpainted,
    `companion(rows)` the companion's of the images as they come; None without a companion.
    """

    scores: np.ndarray  # (N, S)
    layer_deviation: np.ndarray  # (N, L)
    roa_score: np.ndarray  # (N,)
    answers: np.ndarray  # (N,) the network's labels
    groups: np.ndarray  # (N,)
    labels: np.ndarray  # (N,) the true ones
    hidden: Callable[[np.ndarray], np.ndarray]
    tails: np.ndarray | None = None
    companion: Callable[[np.ndarray], np.ndarray | None] = lambda _rows: None
    objects: np.ndarray | None = None  # (N,) whether the companion, where there is one, answers otherwise

    @property
    def disagreement(self) -> float | None:
        """Share of images that the companion answers otherwise than the network does; None without a companion."""
        return None if self.objects is None else float(self.objects.mean())


def benign_scores(
    engine: Engine,
    spec: InputSpec,
    data: Dataset,
    progress: StepProgress,
    *,
    benign: Benign = Benign(),
    guarded: bool = True,
    seed: int = 0,
    kept: Kept | None = None,
) -> BenignScores:
    """The calibrate split, as `benign` has it, through decoder and session in batches of a size that is served.

    The select split goes the same way if a guard's tails are needed (`guarded`). Of outputs as large as images only the
    regions of attack are kept, as bits. What a stopped run left is taken from `kept`.
    """
    batch, images = engine.buckets[-1], benign.images(data.calibrate.x, seed=seed + 1)

    def look() -> dict[str, np.ndarray]:
        parts: dict[str, list[np.ndarray]] = defaultdict(list)
        for run in run_batches(engine, images, spec, batch=batch, progress=partial(progress, "calibrate")):
            for name in ("scores", "layer_deviation", "roa_score"):
                parts[name].append(getattr(run, name))
            parts["answers"].append(run.logits.argmax(1))
            parts["regions"].append(np.packbits(run.roa > 0.5, axis=2))
            if run.companion_logits is not None:
                parts["objects"].append(run.companion_logits.argmax(1) != parts["answers"][-1])
        if guarded:
            others, tell = benign.images(data.select.x, seed=seed), partial(progress, "select")
            parts["tails"] = [run.scores for run in run_batches(engine, others, spec, batch=batch, progress=tell)]
        return {name: np.concatenate(arrays) for name, arrays in parts.items()}

    found = look() if kept is None else kept.arrays(look)

    again = partial(run_images, engine, spec=spec, part="verdict", batch=batch)

    def hidden(rows: np.ndarray) -> np.ndarray:
        masks = np.unpackbits(found["regions"][rows], axis=2, count=spec.width).astype(np.float32)
        return again(images[rows], masks=masks).logits

    def companion(rows: np.ndarray) -> np.ndarray | None:
        return again(images[rows]).companion_logits

    return BenignScores(
        found["scores"],
        found["layer_deviation"],
        found["roa_score"],
        found["answers"],
        data.calibrate.group,
        data.calibrate.y,
        hidden,
        found.get("tails"),
        companion,
        found.get("objects"),
    )


def calibrate(
    scores: BenignScores,
    *,
    names: Sequence[str],
    fused: Sequence[str],
    provider: Provider,
    precision: Precision = "fp32",
    graphs_sha256: str,
    out: Path,
    guard: Guard | None = None,
    screened_by: Sequence[str] = (),
    goes_on: float = GOES_ON,
    counted: Counted | None = None,
    evaluated: bool = True,
    seed: int = 0,
    today: date | None = None,
) -> Calibration:
    """Put the arrays into `calibration.npz` of `out`, beside other calibrations, and return the manifest's entry.

    `fused` names the scores that Fisher's statistic combines, `screened_by` those by which the cascade lets all but the
    share `goes_on` of benign images off. `counted` is what p-values count (`Calibration.counted`); None: groups where
    there are enough of them for the smallest of `ALPHAS`, else images. Not `evaluated`: the card's figures are those of
    another calibration. Raises `TrainingError` with fewer than 20 images or 2 groups.
    """
    benign = scores.scores.astype(np.float64)
    n, groups = len(scores.groups), len(np.unique(scores.groups))
    tails = scores.tails if guard is not None else None
    _enough(n if tails is None else len(tails), n, groups)
    fusion = Fusion.fit(benign, names, fused, guard, tails=tails)
    statistic = fusion.own(benign)
    if counted is None:
        counted = "groups" if groups + 1 >= 1 / min(ALPHAS) else "images"
    effect = design_effect(statistic, scores.groups, alpha=0.05, seed=seed)
    arrays = {
        "components": fusion.components,
        "fisher": fusion.fisher,
        "fused": np.sort(statistic),
        "layers": np.sort(scores.layer_deviation.astype(np.float64), axis=0),
    }
    if tails is not None:
        arrays["guard"] = fusion.objections
    cascade = None
    if screened_by:
        screened = [names.index(name) for name in screened_by]
        screen = fisher(own_p(benign[:, screened]))
        threshold = float(np.quantile(screen, 1 - goes_on, method="higher"))
        on = screen >= threshold
        composite = design_effect(np.where(on, statistic, -np.inf), scores.groups, alpha=0.05, seed=seed)
        arrays["cascade"] = np.sort(statistic[on])
        cascade = Cascade(
            scores=list(screened_by),
            threshold=threshold,
            goes_on=float(on.mean()),
            n_on=int(on.sum()),
            cutoffs=_cutoffs(n, composite, counted),
        )
    gated = np.flatnonzero(statistic >= np.quantile(statistic, 1 - GATED))
    key = f"{provider}-{precision}"
    if counted == "groups":
        weights = group_weights(scores.groups)
        order = np.argsort(statistic, kind="stable")
        arrays["fused_weights"] = weights[order]
        if cascade is not None:
            arrays["cascade_weights"] = weights[order][on[order]]
    benign_p = GroupedScores(
        arrays["fused"], arrays.get("fused_weights", np.ones(n)), groups if counted == "groups" else n
    )
    made = {f"{key}/{name}": array for name, array in arrays.items()}
    np.savez(out / CALIBRATION, allow_pickle=False, **_other_arrays(out / CALIBRATION, key), **made)
    return Calibration.model_validate(
        {
            "provider": provider,
            "precision": precision,
            "graphs_sha256": graphs_sha256,
            "fused": list(fused),
            "guard": guard,
            "cutoffs": _cutoffs(n, effect, counted),
            "cascade": cascade,
            "n": n,
            "groups": groups,
            "n_select": n,
            "n_tails": None if tails is None else len(tails),
            "counted": counted,
            "smallest_p": float(benign_p.p_values(np.array([fusion.beyond]))[0]),
            "design_effect": effect,
            "roa_threshold": float(np.quantile(scores.roa_score, ROA_QUANTILE)),
            "recovery": _recovery(
                scores, gated, allowed=allowed_count(n, n / effect, share=COST), trusted=guard is not None
            ),
            "date": today or datetime.now(UTC).date(),
            "evaluated": evaluated,
        }
    )


def enough_to_calibrate(data: Dataset) -> None:
    """`TrainingError` if the splits are too small to calibrate on: to be called before hours of training."""
    _enough(len(data.select), len(data.calibrate), len(np.unique(data.calibrate.group)))


def _enough(select: int, calibrate: int, groups: int) -> None:
    if select < FEWEST or calibrate < FEWEST or groups < 2:
        raise TrainingError(
            f"too few images to calibrate on: the select split has {select}, the calibrate split {calibrate} in "
            f"{groups} group(s); {FEWEST} each, in 2 groups, are needed: add images or give these splits a larger share"
        )


def _recovery(scores: BenignScores, gated: np.ndarray, *, allowed: int, trusted: bool) -> Recovery | None:
    """When second answers of `gated` calibrate images (M,) are served, so that at most `allowed` right ones go.

    A companion is asked only where it is `trusted`.
    """
    labels, first, after = scores.labels[gated], scores.answers[gated], scores.hidden(gated)
    second = after.argmax(1)
    lost = (first == labels).astype(int) - (second == labels)
    contrast = scores.roa_score[gated].astype(np.float64)
    companion = scores.companion(gated) if trusted else None
    prefers = None if companion is None else preference(companion, first, second)
    return fit_recovery(contrast, lead(after), lost, prefers, allowed=allowed)


def fit_recovery(
    contrast: np.ndarray, clear: np.ndarray, lost: np.ndarray, prefers: np.ndarray | None = None, *, allowed: int
) -> Recovery | None:
    """The lowest threshold whose second answers lose at most `allowed` images their right answer in total.

    Of gated benign images: `contrast` of the window (M,), the second answer's lead `clear` (M,), and `lost` (M,), which
    is 1 where a right answer becomes wrong, -1 where a wrong one becomes right; of a companion its preference `prefers`
    (M,) for the second label. None with fewer than two images, and where even the strongest answer loses more.
    """
    if len(lost) < 2:
        return None
    prefers = np.zeros(len(lost)) if prefers is None else prefers
    changed = prefers[prefers != 0]
    rule = Recovery(
        contrast_mean=float(contrast.mean()),
        contrast_std=float(max(contrast.std(), 1e-6)),
        lead_mean=float(clear.mean()),
        lead_std=float(max(clear.std(), 1e-6)),
        preference_rms=float(np.sqrt(np.mean(changed**2))) if len(changed) else None,
        threshold=0.0,
    )
    strength = rule.strength(contrast, clear, prefers)
    order = np.argsort(-strength, kind="stable")
    fits = np.flatnonzero(np.cumsum(lost[order]) <= allowed)
    return rule.model_copy(update={"threshold": float(strength[order[fits[-1]]])}) if len(fits) else None


def _cutoffs(n: int, effect: float, counted: Counted) -> list[Cutoff]:
    if counted == "groups":
        return [Cutoff(alpha=alpha, p_cutoff=alpha) for alpha in ALPHAS]
    return [
        Cutoff(alpha=alpha, p_cutoff=p_cutoff(n, n / effect, alpha=alpha), confidence=CONFIDENCE) for alpha in ALPHAS
    ]


def _other_arrays(path: Path, key: str) -> dict[str, np.ndarray]:
    """Arrays of the calibrations in `path`, which need not exist, but of that `key`."""
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files if not name.startswith(f"{key}/")}


def p_cutoff(n: int, effective: float, *, alpha: float, confidence: float = CONFIDENCE) -> float:
    """Largest conformal p-value at which flagging keeps the false-positive rate at or below `alpha`.

    At least the smallest p-value, 1 / (n + 1), is returned: an input more anomalous than every benign one is always
    flagged.
    """
    return (1 + allowed_count(n, effective, share=alpha, confidence=confidence)) / (n + 1)


def allowed_count(n: int, effective: float, *, share: float, confidence: float = CONFIDENCE) -> int:
    """How many of `n` benign images may be hit for the true share of hits to be at most `share`, with `confidence`.

    With k scores at or above a threshold, the share above it is Beta(k + 1, n - k) distributed; the bound takes n down
    to the `effective` number of independent images. 0 if none may.
    """
    k = np.arange(n)
    a = k / n * effective + 1
    bound = beta.ppf(confidence, a, np.maximum(effective + 1 - a, 1e-9))
    allowed = np.flatnonzero(bound <= share)
    return int(allowed[-1]) if len(allowed) else 0


def design_effect(statistic: np.ndarray, groups: np.ndarray, *, alpha: float, seed: int, draws: int = 500) -> float:
    """Variance of the share above the (1 - alpha) quantile, resampling groups, over that of single images; >= 1."""
    above = (statistic >= np.quantile(statistic, 1 - alpha)).astype(float)
    _, index = np.unique(groups, return_inverse=True)
    hits, sizes = np.bincount(index, weights=above), np.bincount(index)
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(sizes), (draws, len(sizes)))
    rates = hits[picks].sum(1) / sizes[picks].sum(1)
    rate = above.mean()
    return float(max(1.0, rates.var() / (rate * (1 - rate) / len(above))))
