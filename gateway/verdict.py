"""From detector scores to a verdict: conformal p-values, Fisher fusion, cutoffs at a calibrated false-positive rate.

A score s of an input becomes p = (1 + #{benign >= s}) / (n + 1) (Vovk et al. 2005, conformal p-value). The p-values of
the fused scores are combined by Fisher's statistic -2 sum log p, and the guard's is set beside it, so that no other
score pays for its objection (`Fusion`). As the scores depend on one another the result has no known law; it is made
conformal again on benign images that were not used for the first step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gateway.bundle import Bundle, Calibration, Cascade


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
class Fusion:
    """From the scores of an image to one statistic, against benign images of the select split.

    `components` (n_select, S) and `fisher` (n_select,) ascend; `columns` are the fused scores, `guard` is the column
    whose objection nothing outweighs, with the share `share` of the false-positive budget.
    """

    components: np.ndarray
    fisher: np.ndarray
    columns: list[int]
    guard: int | None = None
    share: float = 0.0

    @classmethod
    def fit(cls, benign: np.ndarray, columns: list[int], guard: int | None = None, share: float = 0.0) -> Fusion:
        """The fusion whose benign images have the scores `benign` (n_select, S), in any order."""
        components = np.sort(benign.astype(np.float64), axis=0)
        fused = np.sort(fisher(component_p(components[:, columns], benign[:, columns])))
        return cls(components, fused, columns, guard, share)

    def statistic(self, scores: np.ndarray) -> np.ndarray:
        """-T (N,) of graph scores (N, S), larger is more unusual; T = min(p_fused / (1 - share), p_guard / share).

        Fisher's statistic adds evidence up, so that calm scores pay for an objection of the guard; a minimum does not.
        """
        p = conformal_p(self.fisher, fisher(component_p(self.components[:, self.columns], scores[:, self.columns])))
        if self.guard is not None:
            objection = conformal_p(self.components[:, self.guard], scores[:, self.guard])
            p = np.minimum(p / (1 - self.share), objection / self.share)
        return np.asarray(-p)


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

        def array(name: str) -> np.ndarray:
            return bundle.arrays[f"{calibration.key}/{name}"]

        self.calibration = calibration
        self.alpha = manifest.policy.alpha if alpha is None else alpha
        self.fusion = Fusion(
            array("components"), array("fisher"), [manifest.scores.index(name) for name in calibration.fused],
            None if calibration.guard is None else manifest.scores.index(calibration.guard),
            calibration.guard_share or 0.0,
        )  # fmt: skip
        self._names = manifest.scores
        self._layers = [layer.name for layer in manifest.layers]
        self._fused = array("fused")
        self._layer_scores = array("layers")
        self._gate_alpha = manifest.policy.gate_alpha
        self.p_cutoff = self.cutoff(self.alpha)
        self.gate_cutoff = self.cutoff(self._gate_alpha)
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

    def screen(self, screen_scores: np.ndarray) -> np.ndarray:
        """Which images (N,) of the part `screen`, scores (N, S1), need the full verdict; the others are benign."""
        threshold = self._cascade.threshold
        return fisher(component_p(self._screen_benign, screen_scores[:, self._screen_columns])) >= threshold

    def p_values(self, scores: np.ndarray, *, cascade: bool = False) -> np.ndarray:
        """Conformal p-values (N,) of graph scores (N, S); with `cascade`, of images that the screen sent on.

        The composite's p-value counts benign images that were screened as less unusual than any that went on.
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
