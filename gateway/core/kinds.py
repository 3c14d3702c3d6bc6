"""Kinds of anomaly: an image unlike the training data, or one like them whose answer is unstable.

A rule of the bundle gives an image two numbers, the log-odds of a small softmax regression over what the graph computes
anyway: that it is *unfamiliar* rather than ordinary or attacked, and that it is *attacked* rather than ordinary or
unfamiliar. Each becomes a conformal p-value of its own (`gateway.core.grouped`). The rule was fitted elsewhere than on
the benign images that the p-values count, so that each is valid whatever the rule is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gateway.core.grouped import GroupedScores
from gateway.core.outputs import VerdictOutputs
from gateway.core.rules import KindRule

Kind = Literal["ordinary", "unfamiliar", "attacked", "both"]
KINDS: tuple[Kind, ...] = ("ordinary", "unfamiliar", "attacked", "both")


@dataclass(frozen=True)
class KindFound:
    """What kind an image is of, and the p-value in (0, 1] of either anomaly."""

    kind: Kind
    p_unfamiliar: float
    p_attacked: float


class Kinds:
    """The rule of one calibration with its benign log-odds."""

    def __init__(self, rule: KindRule, scores: Sequence[str], values: np.ndarray, weights: np.ndarray) -> None:
        """`scores` are the names of the graph's; `values` (n, 2) ascend by column, `weights` (n, 2) are theirs."""
        self.rule = rule
        self._scores = list(scores)
        self._benign = [GroupedScores(values[:, k], weights[:, k], rule.groups) for k in range(2)]
        self._mean, self._std = np.array(rule.mean), np.array(rule.std)
        self._weights = np.array(rule.weights)
        self._bias = np.array(rule.bias)

    def log_odds(self, outputs: VerdictOutputs) -> np.ndarray:
        """Log-odds (N, 2) of a batch: unfamiliar, attacked."""
        by_name = readings(outputs, self._scores)
        return self.of_readings(np.stack([by_name[name] for name in self.rule.readings], 1))

    def of_readings(self, values: np.ndarray) -> np.ndarray:
        """Log-odds (N, 2) from the rule's readings (N, R)."""
        return log_odds(standard(values, self._mean, self._std) @ self._weights.T + self._bias)

    def p_values(self, outputs: VerdictOutputs) -> np.ndarray:
        """Conformal p-values (N, 2) of a batch: unfamiliar, attacked."""
        return self.p_of_odds(self.log_odds(outputs))

    def p_of_odds(self, odds: np.ndarray) -> np.ndarray:
        """Conformal p-values (N, 2) of log-odds (N, 2)."""
        return np.stack([benign.p_values(odds[:, k]) for k, benign in enumerate(self._benign)], 1)

    def judge(self, outputs: VerdictOutputs, flagged: np.ndarray, alpha: float) -> list[KindFound]:
        """The kinds of a batch whose images are `flagged` (N,) by the verdict; see `kind_of`."""
        return [
            KindFound(kind_of(float(u), float(a), flagged=bool(hit), alpha=alpha), float(u), float(a))
            for (u, a), hit in zip(self.p_values(outputs), flagged, strict=True)
        ]


def kind_of(p_unfamiliar: float, p_attacked: float, *, flagged: bool, alpha: float) -> Kind:
    """The kinds whose p-value is at most `alpha`; of a flagged image with neither, that of the smaller p-value.

    A flag comes of more scores than the rule reads, so that it may stand where neither kind does.
    """
    unfamiliar, attacked = p_unfamiliar <= alpha, p_attacked <= alpha
    if unfamiliar and attacked:
        return "both"
    if unfamiliar or attacked:
        return "unfamiliar" if unfamiliar else "attacked"
    if not flagged:
        return "ordinary"
    return "unfamiliar" if p_unfamiliar < p_attacked else "attacked"


def readings(outputs: VerdictOutputs, scores: Sequence[str]) -> dict[str, np.ndarray]:
    """What rules may read of a batch, (N,) each, in float64.

    The graph's scores by name, `window` (the region of attack's score), and of the answering network and, as
    `companion_...`, the companion: `energy`, minus the log of the sum of exponentials of its logits (Liu et al. 2020,
    arXiv 2010.03759), and `doubt`, minus the lead of its best logit.
    """
    found = {name: outputs.scores[:, s].astype(np.float64) for s, name in enumerate(scores)}
    found["window"] = outputs.roa_score.astype(np.float64)
    for prefix, logits in (("", outputs.logits), ("companion_", outputs.companion_logits)):
        if logits is not None:
            found |= {f"{prefix}energy": _energy(logits), f"{prefix}doubt": _doubt(logits)}
    return found


def reading_names(scores: Sequence[str], *, companion: bool) -> list[str]:
    """Names of what rules may read."""
    return [*scores, "window", "energy", "doubt", *(["companion_energy", "companion_doubt"] if companion else [])]


def standard(values: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Readings (N, R) in benign deviations, large ones logarithmically: a foreign image can be a thousand away."""
    return np.asarray(np.arcsinh((values - mean) / std))


def log_odds(logits: np.ndarray) -> np.ndarray:
    """Log-odds (N, 2) of the second and third of three classes, each against the two others, from logits (N, 3)."""
    others = ((0, 2), (0, 1))
    return np.stack([logits[:, k + 1] - np.logaddexp(*logits[:, list(rest)].T) for k, rest in enumerate(others)], 1)


def _energy(logits: np.ndarray) -> np.ndarray:
    return np.asarray(-np.logaddexp.reduce(logits.astype(np.float64), axis=1))


def _doubt(logits: np.ndarray) -> np.ndarray:
    best = np.partition(logits.astype(np.float64), -2, axis=1)[:, -2:]
    return np.asarray(best[:, 0] - best[:, 1])
