from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gateway.core.upstream import PlainHttp
from gateway.errors import UpstreamInvalid
from gateway.upstream.plain import scores_of

CLASSES = {"cat": 0, "dog": 1, "owl": 2}
LIST = PlainHttp(url="http://host/p", scores="result.0.scores")
NAMED = PlainHttp(url="http://host/p", label="label")


def test_scores_in_the_classes_order_and_by_name() -> None:
    found = scores_of(LIST, CLASSES, {"result": [{"scores": [0.1, 0.2, 0.7]}]})
    np.testing.assert_allclose(found, [0.1, 0.2, 0.7], atol=1e-6)
    best = [{"label": "owl", "score": 0.7}, {"label": "cat", "score": 0.2}]
    np.testing.assert_allclose(scores_of(NAMED, CLASSES, best), [0.2, 0.1, 0.7], atol=1e-6)


def test_a_score_that_is_no_number_is_not_left_out() -> None:
    nan = float("nan")
    assert np.isnan(scores_of(NAMED, CLASSES, [{"label": name, "score": nan} for name in CLASSES])).all()
    assert np.isnan(scores_of(NAMED, CLASSES, [{"label": "owl", "score": nan}, {"label": "cat", "score": 0.2}]))[2]


def test_logits_are_read_where_no_class_is_left_out() -> None:
    logits = [{"label": name, "score": score} for name, score in zip(CLASSES, (-1.5, 4.0, 0.0), strict=True)]
    np.testing.assert_array_equal(scores_of(NAMED, CLASSES, logits), [-1.5, 4.0, 0.0])


@pytest.mark.parametrize(
    ("spec", "answer"),
    [
        (NAMED, [{"label": "owl", "score": -0.5}, {"label": "cat", "score": -0.9}]),
        (NAMED, [{"label": "owl", "score": 7.5}, {"label": "cat", "score": 0.9}]),
        (LIST, {"result": []}),
        (LIST, {"result": {"0": 1}}),
        (LIST, "text"),
        (LIST, {"result": [{"scores": [0.1, 0.9]}]}),
        (LIST, {"result": [{"scores": [0.1, "b", 0.3]}]}),
        (LIST, {"result": [{"scores": [0.1, 10**400, 0.3]}]}),
        (LIST, {"result": [{"scores": 3}]}),
        (NAMED, []),
        (NAMED, [{"label": "bird", "score": 1.0}]),
        (NAMED, [{"label": ["cat"], "score": 1.0}]),
        (NAMED, [{"score": 1.0}]),
        (NAMED, [3]),
    ],
)
def test_a_hostile_answer_is_named(spec: PlainHttp, answer: Any) -> None:
    with pytest.raises(UpstreamInvalid, match="upstream's"):
        scores_of(spec, CLASSES, answer)
