from __future__ import annotations

import numpy as np
import pytest

from training.errors import TrainingError
from training.evaluate.harness.found import Figure, counted, pack, unpack, value_of


@pytest.mark.parametrize("n", [0, 1, 8, 13])
def test_packed_outcomes_come_back(n: int) -> None:
    bits = np.random.default_rng(n).random(n) < 0.5
    assert unpack(pack(bits)).tolist() == bits.tolist()


@pytest.mark.parametrize(
    "told", [{"n": 9, "bits": "gA=="}, {"n": 3, "bits": "#"}, {"bits": "gA=="}, {"n": "x", "bits": ""}]
)
def test_broken_outcomes_are_refused(told: dict[str, object]) -> None:
    with pytest.raises(TrainingError, match="outcomes"):
        unpack(told)


def test_figures() -> None:
    outcomes = {
        "won": np.array([True, True, False, False]),
        "fooled": np.array([True, False, True, False]),
        "erred": np.array([True, False, False, False]),
        "nobody": np.zeros(4, bool),
    }
    assert value_of(Figure("won"), outcomes) == 0.5
    assert value_of(Figure("won", "fooled"), outcomes) == 0.5
    assert counted(Figure("won", "fooled"), outcomes) == 2
    assert value_of(Figure("won", minus="erred"), outcomes) == 0.25
    assert value_of(Figure("won", "nobody"), outcomes) is None
    assert Figure("won", "fooled", "erred").outcomes == ["won", "fooled", "erred"]
