from __future__ import annotations

import torch

from training.attacks.margin import margin
from training.defence.signals.margins import one_hot_margin, served_one_hot


def test_against_a_naive_loop() -> None:
    logits, label = torch.randn(50, 6) * 20, torch.randint(0, 6, (50,))
    one_hot = torch.nn.functional.one_hot(label, 6).float()
    naive = [
        row[k].item() - max(v for j, v in enumerate(row.tolist()) if j != k)
        for row, k in zip(logits, label.tolist(), strict=True)
    ]
    torch.testing.assert_close(one_hot_margin(logits, one_hot), torch.tensor(naive))
    torch.testing.assert_close(one_hot_margin(logits, one_hot), margin(logits, label))


def test_served_label_is_one_hot_and_the_lowest_index_wins_a_tie() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0], [1.0, 1.0, 1.0], [-3.0, -2.0, -1.0]])
    assert served_one_hot(logits).tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1]]


def test_served_margin_is_never_negative() -> None:
    logits = torch.randn(100, 5)
    assert (one_hot_margin(logits, served_one_hot(logits)) >= 0).all()
