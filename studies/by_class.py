"""Scales of the statistic by answered class, drawn towards that of all (a part of `studies.honest`).

Of benign images -log of the level T (`gateway.core.verdict.Fusion`) is nearly exponential; in a class whose signs are
hard to see it is larger throughout. It is divided by the mean of its class. A class has few calibration groups, so its
mean is that of its groups and of `strength` groups more that are like all others (the posterior mean of an exponential
scale under a conjugate prior). A quantile for each class, from so few groups, would be noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gateway.core.grouped import GroupedScores, group_weights

STRENGTHS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 1e6)


def exponent(statistic: np.ndarray) -> np.ndarray:
    """-log T (N,) >= 0 of statistics -T (N,)."""
    return np.maximum(-np.log(np.maximum(-statistic, 1e-300)), 0.0)


@dataclass(frozen=True)
class ByClass:
    """Benign exponents (n,) with their answered classes (n,), groups (n,) and the strength of the common scale."""

    exponents: np.ndarray
    answers: np.ndarray
    groups: np.ndarray
    classes: int
    strength: float

    @classmethod
    def fit(cls, exponents: np.ndarray, answers: np.ndarray, groups: np.ndarray, *, classes: int) -> ByClass:
        """With the strength of `STRENGTHS` that explains groups best that are left out (exponential likelihood)."""
        made = [cls(exponents, answers, groups, classes, strength) for strength in STRENGTHS]
        weights = group_weights(groups)

        def loss(rule: ByClass) -> float:
            scale = rule.left_out()
            return float((weights * (np.log(scale) + exponents / scale)).sum())

        return min(made, key=loss)

    def scales(self) -> np.ndarray:
        """The scale (K,) of each class, in units of the common one."""
        total, count = self._sums()
        common = total.sum() / count.sum()
        return np.asarray((total + self.strength * common) / (count + self.strength) / common)

    def left_out(self) -> np.ndarray:
        """The scale (n,) that each image has without its own group, not in units of the common one."""
        total, count = self._sums()
        common = total.sum() / count.sum()
        pairs, index = np.unique(np.stack([self.groups, self.answers]), axis=1, return_inverse=True)
        weights = group_weights(self.groups)
        own, share = (
            np.bincount(index.ravel(), weights=each, minlength=pairs.shape[1])[index.ravel()]
            for each in (weights * self.exponents, weights)
        )
        there, n = total[self.answers] - own, np.maximum(count[self.answers] - share, 0.0)
        return np.asarray((there + self.strength * common) / (n + self.strength))

    def benign(self) -> GroupedScores:
        """What inputs' scaled exponents are ranked among: those of benign images, each scaled without its own group."""
        total, count = self._sums()
        scaled = self.exponents / (self.left_out() / (total.sum() / count.sum()))
        order = np.argsort(scaled, kind="stable")
        return GroupedScores(scaled[order], group_weights(self.groups)[order], len(np.unique(self.groups)))

    def p_values(self, exponents: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """p-values (N,) of exponents (N,) of images answered as classes (N,)."""
        return self.benign().p_values(exponents / self.scales()[answers])

    def _sums(self) -> tuple[np.ndarray, np.ndarray]:
        weights = group_weights(self.groups)
        return (
            np.bincount(self.answers, weights=weights * self.exponents, minlength=self.classes),
            np.bincount(self.answers, weights=weights, minlength=self.classes),
        )
