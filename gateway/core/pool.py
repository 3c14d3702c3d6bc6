"""A pool of opinions: networks that an attack on one of them seldom fools into the same label.

The probabilities of the answering network, of its companion and of the network of small fields are averaged (a linear
opinion pool: Stone 1961), and the label with the most is served if it leads the first answer clearly enough. Most of
what fools the answering network alone is answered rightly so, whether it is suspect or not; on benign images the
networks agree. The network of small fields is asked only where its opinion could change the answer. Whoever makes the
companion and one of the others agree on a wrong label has the pool as well: it flags nothing and clears no flag.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gateway.core.outputs import softmax
from gateway.core.rules import PoolRule
from gateway.core.small_field import TEMPERATURE


@dataclass(frozen=True)
class Pooled:
    """What the pool makes of an image: probabilities (K,), their best label, and by how much it leads the first one."""

    probabilities: np.ndarray
    index: int
    lead: float


def field_logits(evidence: np.ndarray) -> np.ndarray:
    """Logits (..., K) of the network of small fields with evidence (..., K, h, w) for cells."""
    found: np.ndarray = evidence.sum((-1, -2)) / TEMPERATURE
    return found


def pooled(rule: PoolRule, answering: np.ndarray, companion: np.ndarray, field: np.ndarray | None) -> np.ndarray:
    """Probabilities (N, K) of the pool of logits (N, K); `field` are `field_logits`, if the rule has a weight for them.

    `ValueError` where it has and there are none.
    """
    parts = [(rule.answering, answering), (rule.companion, companion)]
    if rule.small_field is not None:
        if field is None:
            raise ValueError("the pool has a weight for the network of small fields, which was not asked")
        parts.append((rule.small_field, field))
    total = sum(weight for weight, _ in parts)
    return np.asarray(sum(weight / total * softmax(logits.astype(np.float64)) for weight, logits in parts))


def may_overrule(rule: PoolRule, index: int, answering: np.ndarray, companion: np.ndarray) -> bool:
    """Whether the network of small fields, whatever it says, could have the pool overrule the answer `index`.

    By the logits (K,) of the two others; the answer is exact but for rounding, which is allowed for.
    """
    if rule.small_field is None:
        return True
    total = rule.answering + rule.companion + rule.small_field
    first, second = (softmax(logits.astype(np.float64)) for logits in (answering, companion))
    known = rule.answering * first + rule.companion * second
    ahead = known[index] - np.delete(known, index).max()
    return bool(rule.small_field - ahead >= total * rule.threshold - 1e-9)


def leads(probabilities: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best labels (N,) of the pool's `probabilities` (N, K), and by how much they lead the labels `index` (N,)."""
    best = probabilities.argmax(1)
    rows = np.arange(len(best))
    return best, np.asarray(probabilities[rows, best] - probabilities[rows, index])


def opinion(
    rule: PoolRule, index: int, answering: np.ndarray, companion: np.ndarray, field: np.ndarray | None
) -> Pooled | None:
    """The pool's opinion of one image, logits (K,), if it overrules the first answer `index`; None if it does not."""
    found = pooled(rule, answering[None], companion[None], None if field is None else field[None])
    best, lead = leads(found, np.array([index]))
    if int(best[0]) == index or float(lead[0]) < rule.threshold:
        return None
    return Pooled(found[0], int(best[0]), float(lead[0]))
