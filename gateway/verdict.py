"""From detector scores to a verdict: conformal p-values, Fisher fusion, cutoffs at a calibrated false-positive rate.

A score s of an input becomes p = (1 + #{benign >= s}) / (n + 1) (Vovk et al. 2005, conformal p-value). The p-values of
the fused scores are combined by Fisher's statistic -2 sum log p; that statistic is not chi-squared here (the scores
depend on one another), so it is made conformal again on benign images that were not used for the first step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gateway.bundle import Bundle, Calibration


def conformal_p(benign: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """p-values (N,) of `scores` (N,) against ascending benign scores (n,): (1 + #{benign >= s}) / (n + 1)."""
    at_least = len(benign) - np.searchsorted(benign, scores, side="left")
    return np.asarray((1.0 + at_least) / (len(benign) + 1.0))


def component_p(benign: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Column-wise `conformal_p`: benign (n, S) ascending by column, scores (N, S) -> (N, S)."""
    return np.stack([conformal_p(benign[:, s], scores[:, s]) for s in range(scores.shape[1])], axis=1)


def fisher(p: np.ndarray) -> np.ndarray:
    """Fisher's statistic (N,) of p-values (N, S); larger is more anomalous."""
    return np.asarray(-2.0 * np.log(p).sum(axis=1))


@dataclass(frozen=True)
class Verdict:
    """What calibration says of one input: p-values in (0, 1], whether it is flagged, and per-score evidence."""

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
        self.calibration = calibration
        self._names = manifest.scores
        self._layers = [layer.name for layer in manifest.layers]
        self._columns = [manifest.scores.index(name) for name in calibration.fused]
        self._components = bundle.arrays[f"{calibration.key}/components"]
        self._fused = bundle.arrays[f"{calibration.key}/fused"]
        self._layer_scores = bundle.arrays[f"{calibration.key}/layers"]
        self.alpha = manifest.policy.alpha if alpha is None else alpha
        self.p_cutoff = self.cutoff(self.alpha)
        self.gate_cutoff = self.cutoff(manifest.policy.gate_alpha)

    def cutoff(self, alpha: float) -> float:
        """The p-value at or below which an input is flagged at `alpha`; `ValueError` if it was not calibrated."""
        for cutoff in self.calibration.cutoffs:
            if cutoff.alpha == alpha:
                return cutoff.p_cutoff
        have = ", ".join(f"{c.alpha:g}" for c in self.calibration.cutoffs)
        raise ValueError(f"no cutoff was calibrated for alpha {alpha:g} (has {have})")

    def p_values(self, scores: np.ndarray) -> np.ndarray:
        """Fused conformal p-values (N,) of graph scores (N, S)."""
        components = component_p(self._components[:, self._columns], scores[:, self._columns])
        return conformal_p(self._fused, fisher(components))

    def layer_band(self, quantile: float = 0.95) -> np.ndarray:
        """Benign `quantile` of `layer_deviation` by layer (L,)."""
        return np.asarray(np.quantile(self._layer_scores, quantile, axis=0))

    def judge(self, scores: np.ndarray, layer_deviation: np.ndarray) -> list[Verdict]:
        """Verdicts of a batch: scores (N, S), layer_deviation (N, L)."""
        p = self.p_values(scores)
        evidence = component_p(self._components, scores)
        layers = component_p(self._layer_scores, layer_deviation)
        return [
            Verdict(
                p_value=float(p[i]),
                alpha=self.alpha,
                p_cutoff=self.p_cutoff,
                flagged=bool(p[i] <= self.p_cutoff),
                gated=bool(p[i] <= self.gate_cutoff),
                evidence=dict(zip(self._names, map(float, evidence[i]), strict=True)),
                layers=dict(zip(self._layers, map(float, layers[i]), strict=True)),
            )
            for i in range(len(p))
        ]
