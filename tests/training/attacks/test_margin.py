from __future__ import annotations

import torch

from training.attacks.margin import margin


def test_against_a_naive_loop() -> None:
    logits, label = torch.randn(50, 6) * 20, torch.randint(0, 6, (50,))
    naive = [
        row[k].item() - max(v for j, v in enumerate(row.tolist()) if j != k)
        for row, k in zip(logits, label.tolist(), strict=True)
    ]
    torch.testing.assert_close(margin(logits, label), torch.tensor(naive))


def test_sign_says_who_wins_and_a_tie_is_zero() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.0], [0.0, 3.0, 1.0], [1.0, 1.0, 0.0]])
    assert margin(logits, torch.tensor([0, 0, 0])).tolist() == [2.0, -3.0, 0.0]


def test_gradient_is_plus_one_and_minus_one() -> None:
    logits = torch.tensor([[2.0, 5.0, 1.0]], requires_grad=True)
    margin(logits, torch.tensor([0])).sum().backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[1.0, -1.0, 0.0]]
