"""From detector scores to a verdict: conformal p-values, Fisher fusion, cutoffs at a calibrated false-positive rate.

A score s of an input becomes p = (1 + #{benign >= s}) / (n + 1) (Vovk et al. 2005, conformal p-value). The p-values of
the fused scores are combined by Fisher's statistic -2 sum log p, and the guard's is set beside it, so that no other
score pays for its objection (`Fusion`). As the scores depend on one another the result has no known law; it is made
conformal again on benign images that were not used for the first step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gateway.core.loading import Bundle
from gateway.core.manifest import Calibration, Cascade, Guard

TAIL = 0.05


def conformal_p(benign: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """p-values (N,) of `scores` (N,) against ascending benign scores (n,): (1 + #{benign >= s}) / (n + 1)."""
    at_least = len(benign) - np.searchsorted(benign, scores, side="left")
    return np.asarray((1.0 + at_least) / (len(benign) + 1.0))


def component_p(benign: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Column-wise `conformal_p`: benign (n, S) ascending by column, scores (N, S) -> (N, S)."""
    p = np.empty(scores.shape)
    for s in range(scores.shape[1]):
        p[:, s] = conformal_p(benign[:, s], scores[:, s])
    return p


def fisher(p: np.ndarray) -> np.ndarray:
    """Fisher's statistic (N,) of p-values (N, S); larger is more anomalous."""
    return np.asarray(-2.0 * np.log(p).sum(axis=1))


def tail_p(benign: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """p-values (N,) that keep falling beyond the largest benign score, where `conformal_p` stays at its smallest value.

    Conformal up to the benign 95 % quantile, exponential with the benign mean excess above it. No law is claimed: what
    comes of these p-values is made conformal again.
    """
    first = len(benign) - max(2, round(TAIL * len(benign)))
    excess = max(float((benign[first:] - benign[first]).mean()), 1e-9)
    end = (1.0 + len(benign) - first) / (len(benign) + 1.0)
    beyond = np.maximum(scores - benign[first], 0.0)
    return np.where(scores < benign[first], conformal_p(benign, scores), end * np.exp(-beyond / excess))


def lead(logits: np.ndarray) -> np.ndarray:
    """By how much (N,) the best of logits (N, K) leads the next."""
    best = np.partition(logits.astype(np.float64), -2, axis=1)[:, -2:]
    return np.asarray(best[:, 1] - best[:, 0])


@dataclass(frozen=True)
class Fusion:
    """From the scores of an image to one statistic, against benign images of the select split.

    `components` (n_select, S) and `fisher` (n_select,) ascend; `columns` are the fused scores, `objecting` is the
    guard's column.
    """

    components: np.ndarray
    fisher: np.ndarray
    columns: list[int]
    guard: Guard | None = None
    objecting: int = -1

    @classmethod
    def fit(cls, benign: np.ndarray, names: Sequence[str], fused: Sequence[str], guard: Guard | None = None) -> Fusion:
        """The fusion whose benign images have the scores `benign` (n_select, S), in any order, of these `names`."""
        columns = [names.index(name) for name in fused]
        combined = fisher(component_p(np.sort(benign[:, columns], axis=0), benign[:, columns]))
        return cls.of(np.sort(benign.astype(np.float64), axis=0), np.sort(combined), names, fused, guard)

    @classmethod
    def of(
        cls,
        components: np.ndarray,
        combined: np.ndarray,
        names: Sequence[str],
        fused: Sequence[str],
        guard: Guard | None = None,
    ) -> Fusion:
        """The fusion of ascending benign `components` and Fisher statistics `combined`."""
        columns = [names.index(name) for name in fused]
        return cls(components, combined, columns, guard, -1 if guard is None else names.index(guard.score))

    def statistic(self, scores: np.ndarray) -> np.ndarray:
        """-T (N,) of graph scores (N, S), larger is more unusual.

        T is the lowest level whose budget, as the guard's shares divide it, the fused p-value or the guard's exhausts.
        Fisher's statistic adds evidence up, so that calm scores pay for an objection of the guard; a minimum does not.
        """
        level = tail_p(self.fisher, fisher(component_p(self.components[:, self.columns], scores[:, self.columns])))
        if self.guard is not None:
            g, objection = self.guard, tail_p(self.components[:, self.objecting], scores[:, self.objecting])
            level = np.minimum(
                _level(level, 1 - g.share_below, 1 - g.share, g.knee), _level(objection, g.share_below, g.share, g.knee)
            )
        return np.asarray(-level)

    def limits(self, level: float) -> tuple[float, float]:
        """Fisher's statistic and guard score below which T stays above `level`; infinite without a guard."""
        if self.guard is None:
            return _score_at(self.fisher, level), np.inf
        low, high = min(level, self.guard.knee), max(level - self.guard.knee, 0.0)
        objection = self.guard.share_below * low + self.guard.share * high
        return _score_at(self.fisher, level - objection), _score_at(self.components[:, self.objecting], objection)


def _level(p: np.ndarray, below: float, above: float, knee: float) -> np.ndarray:
    """The level at which a share `below` of it up to `knee`, and `above` beyond, comes to `p` (N,)."""
    return np.where(p <= below * knee, p / below, knee + (p - below * knee) / above)


def _score_at(benign: np.ndarray, p: float) -> float:
    """The score at which `tail_p` falls to `p`, by bisection."""
    low, high = float(benign[0]), float(benign[-1]) + 100 * float(benign[-1] - benign[0]) + 1.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if tail_p(benign, np.array([middle]))[0] > p else (low, middle)
    return low


@dataclass(frozen=True)
class Verdict:
    """The verdict on one input: p-values in (0, 1], whether it is flagged, and evidence by score."""

    p_value: float
    alpha: float
    p_cutoff: float
    flagged: bool
    gated: bool
    evidence: dict[str, float]
    layers: dict[str, float]


class Judge:
    """Turns graph outputs into verdicts with one calibration of a bundle."""

    def __init__(self, bundle: Bundle, calibration: Calibration, *, alpha: float | None = None) -> None:
        manifest = bundle.manifest

        def array(name: str) -> np.ndarray:
            return bundle.arrays[f"{calibration.key}/{name}"]

        self.calibration = calibration
        self.alpha = manifest.policy.alpha if alpha is None else alpha
        self.fusion = Fusion.of(
            array("components"), array("fisher"), manifest.scores, calibration.fused, calibration.guard
        )
        self._names = manifest.scores
        self._layers = [layer.name for layer in manifest.layers]
        self._fused = array("fused")
        self._layer_scores = array("layers")
        self._gate_alpha = manifest.policy.gate_alpha
        self.p_cutoff = self.cutoff(self.alpha)
        cascade = calibration.cascade
        if cascade:
            self._on = array("cascade")
            self._screen_benign = self.fusion.components[:, [manifest.scores.index(name) for name in cascade.scores]]
            self._screen_columns = [manifest.screen_scores.index(name) for name in cascade.scores]
            self.cutoff(self.alpha, cascade=True)

    def cutoff(self, alpha: float, *, cascade: bool = False) -> float:
        """The p-value at or below which an input is flagged at `alpha`; `ValueError` if it was not calibrated."""
        cutoffs = self._cascade.cutoffs if cascade else self.calibration.cutoffs
        for cutoff in cutoffs:
            if cutoff.alpha == alpha:
                return cutoff.p_cutoff
        have = ", ".join(f"{c.alpha:g}" for c in cutoffs)
        raise ValueError(f"no cutoff was calibrated for alpha {alpha:g} (has {have})")

    @property
    def _cascade(self) -> Cascade:
        if self.calibration.cascade is None:
            raise ValueError(f"calibration {self.calibration.key} has no cascade")
        return self.calibration.cascade

    def level(self, alpha: float) -> float:
        """The T (see `Fusion`) above which an image is not flagged at `alpha`."""
        allowed = round(self.cutoff(alpha) * (len(self._fused) + 1)) - 1  # benign images at least as unusual
        return float(-self._fused[len(self._fused) - 1 - allowed])

    def screen(self, screen_scores: np.ndarray) -> np.ndarray:
        """Which images (N,) of the part `screen`, scores (N, S1), need the full verdict; the others are benign."""
        threshold = self._cascade.threshold
        return fisher(component_p(self._screen_benign, screen_scores[:, self._screen_columns])) >= threshold

    def p_values(self, scores: np.ndarray, *, cascade: bool = False) -> np.ndarray:
        """Conformal p-values (N,) of graph scores (N, S); with `cascade`, of images that the screen sent on.

        The composite's p-value counts benign images that the screen let through as less unusual than any other.
        """
        statistic = self.fusion.statistic(scores)
        if not cascade:
            return conformal_p(self._fused, statistic)
        at_least = len(self._on) - np.searchsorted(self._on, statistic, side="left")
        return np.asarray((1.0 + at_least) / (len(self._fused) + 1.0))

    def layer_band(self, quantile: float = 0.95) -> np.ndarray:
        """Benign `quantile` of `layer_deviation` by layer (L,)."""
        return np.asarray(np.quantile(self._layer_scores, quantile, axis=0))

    def judge(self, scores: np.ndarray, layer_deviation: np.ndarray, *, cascade: bool = False) -> list[Verdict]:
        """Verdicts of a batch: scores (N, S), layer_deviation (N, L); `cascade` if the screen sent the images on."""
        p = self.p_values(scores, cascade=cascade)
        flag, gate = (self.cutoff(alpha, cascade=cascade) for alpha in (self.alpha, self._gate_alpha))
        evidence = component_p(self.fusion.components, scores)
        layers = component_p(self._layer_scores, layer_deviation)
        return [
            Verdict(
                p_value=float(p[i]),
                alpha=self.alpha,
                p_cutoff=flag,
                flagged=bool(p[i] <= flag),
                gated=bool(p[i] <= gate),
                evidence=dict(zip(self._names, map(float, evidence[i]), strict=True)),
                layers=dict(zip(self._layers, map(float, layers[i]), strict=True)),
            )
            for i in range(len(p))
        ]
