"""From detector scores to a verdict: conformal p-values, Fisher fusion, cutoffs at a calibrated false-positive rate.

A score s of an input becomes p = (1 + #{benign >= s}) / (n + 1) (Vovk et al. 2005, conformal p-value). The p-values of
the fused scores are combined by Fisher's statistic -2 sum log p, and the guard's is set beside it, so that no other
score pays for its objection (`Fusion`). As the scores depend on one another the result has no known law; it is made
conformal again, on the same benign images (`Fusion.own`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from gateway.core.grouped import GroupedScores
from gateway.core.kinds import Kind, Kinds, kind_of
from gateway.core.loading import Bundle
from gateway.core.manifest import Calibration, Cascade, Guard
from gateway.core.outputs import VerdictOutputs
from gateway.core.votes import NAME, SHARE, Voted, Votes, joined, votes_part

TAIL = 0.05
_ROUNDING = 1 + 1e-12
"""Of p-values at a cutoff, which `GroupedScores.level` allows for, too."""
Level = Literal["flagged", "suspect", "none"]


def conformal_p(benign: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """p-values (N,) of `scores` (N,) against ascending benign scores (n,): (1 + #{benign >= s}) / (n + 1)."""
    at_least = len(benign) - np.searchsorted(benign, scores, side="left")
    return np.asarray((1.0 + at_least) / (len(benign) + 1.0))


def own_p(benign: np.ndarray) -> np.ndarray:
    """Column-wise share, of n + 1, of benign scores (n, S) at or above each of them, itself included -> (n, S).

    Full conformal prediction ranks a benign image among the others and the input; that can only add one to its count,
    so these are at most its p-values, whatever the input is.
    """
    ascending = np.sort(benign, axis=0)
    below = [np.searchsorted(ascending[:, s], benign[:, s], side="left") for s in range(benign.shape[1])]
    return np.asarray((len(benign) - np.stack(below, axis=1)) / (len(benign) + 1.0))


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


def preference(companion: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """By how much (N,) the companion's logits (N, K) favour labels `second` (N,) over `first` (N,)."""
    rows = np.arange(len(first))
    return np.asarray(companion[rows, second].astype(np.float64) - companion[rows, first])


@dataclass(frozen=True)
class Fusion:
    """From the scores of an image to one statistic, against benign images.

    `components` (n, S), `fisher` (m,) and `objections` (m,), the guard's scores, ascend; `columns` are the fused
    scores, `objecting` is the guard's. The last two arrays are of other images than `components` where there is a
    guard: a level that is the lower one of two keeps its validity only if both are set beforehand.
    """

    components: np.ndarray
    fisher: np.ndarray
    columns: list[int]
    guard: Guard | None
    objecting: int
    objections: np.ndarray

    @classmethod
    def fit(
        cls,
        benign: np.ndarray,
        names: Sequence[str],
        fused: Sequence[str],
        guard: Guard | None = None,
        *,
        tails: np.ndarray | None = None,
    ) -> Fusion:
        """The fusion whose benign images have the scores `benign` (n, S), in any order, of these `names`.

        `tails` (m, S) are scores of other benign images, from which the tails come; default: of the same.
        """
        columns = [names.index(name) for name in fused]
        seen = (benign if tails is None else tails).astype(np.float64)
        combined = np.sort(_below_top(fisher(own_p(seen[:, columns])), len(seen), len(columns)))
        objections = None if guard is None else np.sort(seen[:, names.index(guard.score)])
        return cls.of(np.sort(benign.astype(np.float64), axis=0), combined, names, fused, guard, objections)

    @classmethod
    def of(
        cls,
        components: np.ndarray,
        combined: np.ndarray,
        names: Sequence[str],
        fused: Sequence[str],
        guard: Guard | None = None,
        objections: np.ndarray | None = None,
    ) -> Fusion:
        """The fusion of ascending benign `components`, Fisher statistics `combined` and guard scores `objections`.

        Without `objections` they are the guard's column of `components`.
        """
        columns = [names.index(name) for name in fused]
        objecting = -1 if guard is None else names.index(guard.score)
        if objections is None:
            objections = components[:, objecting]
        return cls(components, combined, columns, guard, objecting, objections)

    def statistic(self, scores: np.ndarray, p: np.ndarray | None = None) -> np.ndarray:
        """-T (N,) of graph scores (N, S), larger is more unusual; `p` (N, S) are their `component_p`, where known.

        T is the lowest level whose budget, as the guard's shares divide it, the fused p-value or the guard's exhausts.
        Fisher's statistic adds evidence up, so that calm scores pay for an objection of the guard; a minimum does not.
        """
        if p is None:
            p = component_p(self.components, scores)
        # Contiguous, so that logarithms are summed in one order whoever asks: equal ranks must give equal statistics.
        return self._combined(fisher(np.ascontiguousarray(p[:, self.columns])), scores)

    def own(self, benign: np.ndarray) -> np.ndarray:
        """Statistics (n,) of the images `benign` (n, S) that `components` are of, among which inputs are ranked.

        Each is at least what it is in full conformal prediction, where the input counts among the images that the
        p-values are of; an input's statistic is the same there. Its conformal p-value against these is thus at least
        the exact one, so that no more than a share p of benign inputs have p or less (tests: `test_cross_fitting`).
        An input beyond every benign image in every score comes before the image that tops all others in each.
        """
        statistic = fisher(own_p(benign[:, self.columns]))
        return self._combined(_below_top(statistic, len(benign), len(self.columns)), benign)

    @property
    def beyond(self) -> float:
        """The statistic of an input beyond every benign image in every score."""
        return float(self.statistic(np.full((1, self.components.shape[1]), np.inf))[0])

    def _combined(self, statistic: np.ndarray, scores: np.ndarray) -> np.ndarray:
        level = tail_p(self.fisher, statistic)
        if self.guard is not None:
            g, objection = self.guard, tail_p(self.objections, scores[:, self.objecting])
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
        return _score_at(self.fisher, level - objection), _score_at(self.objections, objection)


def _below_top(statistic: np.ndarray, n: int, columns: int) -> np.ndarray:
    """Fisher statistics (N,) of n benign images, those that top all others in every column by a hair less.

    An input beyond them all has that highest statistic, too; ranked among n + 1 it alone would have it.
    """
    top = 2.0 * columns * np.log(n + 1.0)
    return np.asarray(np.minimum(statistic, top * (1 - 1e-9)))


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
    """The verdict on one input: p-values in (0, 1], whether it is flagged, and evidence by score.

    `gated` is set at the second level, `suspect_alpha`, by all scores but votes: the input is looked at twice.
    `kind` and its two p-values are None where the bundle has no rule for them, and of images that a screen let through.
    """

    p_value: float
    alpha: float
    p_cutoff: float
    flagged: bool
    gated: bool
    evidence: dict[str, float]
    layers: dict[str, float]
    suspect_alpha: float = 0.0
    suspect_cutoff: float = 0.0
    kind: Kind | None = None
    p_unfamiliar: float | None = None
    p_attacked: float | None = None
    p_without_votes: float | None = None
    """The p-value of all scores but the masks' votes; None where masks did not vote."""
    votes_beyond: float = SHARE

    @property
    def flagged_without_votes(self) -> bool:
        """Whether the other scores alone exhaust their share of alpha."""
        if self.p_without_votes is None:
            return self.flagged
        return joined(self.p_without_votes, 1.0, self.votes_beyond) <= self.p_cutoff * _ROUNDING

    def with_votes(self, voted: Voted) -> Verdict:
        """The verdict once masks have voted: flagged where either part of alpha is spent (`gateway.core.votes`).

        `gated` stays, since the image was looked at twice, or not, before.
        """
        p = joined(self.p_value, voted.p_value, voted.beyond)
        flagged, kind = p <= self.p_cutoff * _ROUNDING, self.kind
        if self.p_unfamiliar is not None and self.p_attacked is not None:
            kind = kind_of(self.p_unfamiliar, self.p_attacked, flagged=flagged, alpha=self.alpha)
        return replace(
            self,
            p_value=p,
            flagged=flagged,
            evidence=self.evidence | {NAME: voted.p_value},
            kind=kind,
            p_without_votes=self.p_value,
            votes_beyond=voted.beyond,
        )

    @property
    def level(self) -> Level:
        """`flagged` (at `alpha`), `suspect` (at `suspect_alpha` alone) or `none`."""
        suspect = self.gated if self.p_without_votes is None else self.p_value <= self.suspect_cutoff * _ROUNDING
        return "flagged" if self.flagged else "suspect" if suspect else "none"


class Judge:
    """Turns graph outputs into verdicts with one calibration of a bundle."""

    def __init__(self, bundle: Bundle, calibration: Calibration, *, alpha: float | None = None) -> None:
        manifest = bundle.manifest

        def array(name: str) -> np.ndarray:
            return bundle.arrays[f"{calibration.key}/{name}"]

        self.calibration = calibration
        self.alpha = manifest.policy.alpha if alpha is None else alpha
        self.fusion = Fusion.of(
            array("components"),
            array("fisher"),
            manifest.scores,
            calibration.fused,
            calibration.guard,
            None if calibration.n_tails is None else array("guard"),
        )
        self._names = manifest.scores
        self._layers = [layer.name for layer in manifest.layers]
        grouped = calibration.counted == "groups"
        self._total = calibration.groups if grouped else calibration.n
        self._fused = GroupedScores(
            array("fused"), array("fused_weights") if grouped else np.ones(calibration.n), self._total
        )
        self._layer_scores = array("layers")
        self.suspect_alpha = manifest.policy.gate_alpha
        self.p_cutoff = self.cutoff(self.alpha)
        rule = calibration.kinds
        self._kinds = None if rule is None else Kinds(rule, manifest.scores, array("kinds"), array("kind_weights"))
        voting, side = calibration.votes, manifest.input
        self.votes = (
            None
            if voting is None
            else Votes(
                voting, side.height, side.width, array("votes"), array("vote_weights"), small_field=manifest.small_field
            )
        )
        cascade = calibration.cascade
        if cascade:
            weights = array("cascade_weights") if grouped else np.ones(cascade.n_on)
            self._on = GroupedScores(array("cascade"), weights, self._total)
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

    @property
    def smallest_p(self) -> float:
        """The smallest p-value that an input can have: that of one beyond every benign image in every score."""
        return float(self._fused.p_values(np.array([self.fusion.beyond]))[0])

    def level(self, alpha: float, *, votes: bool = False) -> float:
        """The T (see `Fusion`) above which an image is not flagged at `alpha`; `votes`: of which masks have a part."""
        cutoff = self.cutoff(alpha)
        if votes and self.votes is not None:
            cutoff -= votes_part(cutoff, self.votes.beyond)
        return -self._fused.level(cutoff)

    def screen(self, screen_scores: np.ndarray) -> np.ndarray:
        """Which images (N,) of the part `screen`, scores (N, S1), need the full verdict; the others are benign."""
        threshold = self._cascade.threshold
        return fisher(component_p(self._screen_benign, screen_scores[:, self._screen_columns])) >= threshold

    def p_values(self, scores: np.ndarray, *, cascade: bool = False, evidence: np.ndarray | None = None) -> np.ndarray:
        """Conformal p-values (N,) of graph scores (N, S); with `cascade`, of images that the screen sent on.

        The composite's p-value counts benign images that the screen let through as less unusual than any other.
        `evidence` (N, S) are the scores' own p-values, where known.
        """
        statistic = self.fusion.statistic(scores, evidence)
        return (self._on if cascade else self._fused).p_values(statistic)

    def layer_band(self, quantile: float = 0.95) -> np.ndarray:
        """Benign `quantile` of `layer_deviation` by layer (L,)."""
        return np.asarray(np.quantile(self._layer_scores, quantile, axis=0))

    def judge(self, scores: np.ndarray, layer_deviation: np.ndarray, *, cascade: bool = False) -> list[Verdict]:
        """Verdicts of a batch: scores (N, S), layer_deviation (N, L); `cascade` if the screen sent the images on."""
        evidence = component_p(self.fusion.components, scores)
        p = self.p_values(scores, cascade=cascade, evidence=evidence)
        flag, gate = (self.cutoff(alpha, cascade=cascade) for alpha in (self.alpha, self.suspect_alpha))
        layers = component_p(self._layer_scores, layer_deviation)
        return [
            Verdict(
                p_value=float(p[i]),
                alpha=self.alpha,
                p_cutoff=flag,
                flagged=bool(p[i] <= flag),
                gated=bool(p[i] <= gate),
                suspect_alpha=self.suspect_alpha,
                suspect_cutoff=gate,
                evidence=dict(zip(self._names, map(float, evidence[i]), strict=True)),
                layers=dict(zip(self._layers, map(float, layers[i]), strict=True)),
            )
            for i in range(len(p))
        ]

    def with_kinds(self, verdicts: Sequence[Verdict], outputs: VerdictOutputs) -> list[Verdict]:
        """The verdicts of a batch with the kinds of anomaly of its `outputs`, where the bundle tells them apart."""
        if self._kinds is None:
            return list(verdicts)
        found = self._kinds.judge(outputs, np.array([verdict.flagged for verdict in verdicts]), self.alpha)
        return [replace(verdict, **vars(kind)) for verdict, kind in zip(verdicts, found, strict=True)]
